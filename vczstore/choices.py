"""The names a user chooses from. Here, so that the command line knows them without importing what they name."""

AMERICAN = {"harmonize": "harmonise", "normalize": "normalise"}
"""Names of commands, options and keys in American spelling, which are understood as well."""

BACKENDS = ("zarr", "obstore", "fsspec", "icechunk")
IMPLS = ("cubed", "zarr", "xarray")
ABSENT = ("missing", "reference")
NEW_VARIANTS = ("refuse", "drop", "insert")
REF_MISMATCHES = ("refuse", "keep")
KEPT_TAGS = ("all", "none")
MAX_DAYS = 36_500
IF_NONE = ("error", "ok")
TAGS = ("refuse", "delete", "recreate")
INFO_FIELDS = ("AC", "AN", "AF", "NS", "AC_Het", "AC_Hom", "AC_Hemi", "MAF", "F_MISSING", "HWE", "ExcHet")
"""The INFO fields that are computed from genotypes, as ``bcftools +fill-tags`` calls them."""
DEFAULT_INFO_FIELDS = INFO_FIELDS[:4]

MAX_CHUNK = 10**9
"""The longest chunk along an axis that can be asked for."""

MAX_GQ = 2**31 - 1
"""The highest genotype quality that can be asked for, and that VCF can hold."""

DEFAULT_SAMPLES_CHUNK = 1_000
"""How many samples a chunk of a new store has, if neither its sources nor an option say otherwise."""

COMPRESSORS = ("zstd", "lz4", "lz4hc", "zlib", "blosclz")
"""What compresses within Blosc."""
DEFAULT_LEVEL = 7
"""How hard, if nothing else is said: as VCF converters do."""

REGULAR, FLEXIBLE = "regular", "flexible"
SAMPLE_GRIDS = (REGULAR, FLEXIBLE)
"""How the samples axis is cut: into chunks of one width, or into columns that have each a width of their own."""

OURS = "vczstore-"
"""Begins the names of branches that are made and deleted within operations."""
