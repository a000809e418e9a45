"""Operations, one file each: its options, and what compiles a store and its sources into a plan."""
