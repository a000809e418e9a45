"""Building blocks of plans: the model of a plan, the chunk grid, and blocks of chunks as Cubed arrays."""
