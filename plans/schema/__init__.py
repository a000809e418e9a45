"""Schema of a store: check that the arrays of sources fit, and compile the changes needed where they do not."""
