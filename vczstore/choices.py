"""The names a user chooses from. Here, so that the command line knows them without importing what they name."""

BACKENDS = ("zarr", "obstore", "fsspec", "icechunk")
IMPLS = ("cubed", "zarr", "xarray")
ABSENT = ("missing", "reference")
NEW_VARIANTS = ("refuse", "drop")
