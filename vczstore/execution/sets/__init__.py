"""Operations on sets of stores, such as one for each chromosome: what is done to one part is done to all or to none."""
