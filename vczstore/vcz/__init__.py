"""The VCZ format: arrays, dimensions, missing values, sample IDs, and their encoding in Zarr."""
