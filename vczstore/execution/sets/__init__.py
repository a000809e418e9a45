"""Operations on sets of stores, such as one per chromosome: applied to all parts, or to none."""
