"""Operations, one module each: the declaration of its options, and `compile`, which turns them into a plan."""
