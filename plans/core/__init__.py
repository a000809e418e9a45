"""What plans are made of: the model of a plan, the chunk grid, and blocks of chunks as Cubed arrays."""
