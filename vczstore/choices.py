"""The values that options allow, in a module of their own so that the command line need not import their users."""

from collections.abc import Sequence

from vczstore.errors import OptionError

AMERICAN = {"harmonize": "harmonise", "normalize": "normalise"}
"""American spellings of commands, options and keys, which are accepted as well."""

BACKENDS = ("zarr", "obstore", "fsspec", "icechunk")
IMPLS = ("cubed", "zarr", "xarray")
ABSENT = ("missing", "reference")
NEW_VARIANTS = ("refuse", "drop", "insert")
REF_MISMATCHES = ("refuse", "keep")
KEPT_TAGS = ("all", "none")
MAX_DAYS = 36_500
IF_NONE = ("error", "ok")
RECREATE = "recreate"
"""Treatment of tags: their states are rewritten, by an operation of this name in commit metadata."""
TAGS = ("refuse", "delete", RECREATE)
INFO_FIELDS = ("AC", "AN", "AF", "NS", "AC_Het", "AC_Hom", "AC_Hemi", "MAF", "F_MISSING", "HWE", "ExcHet")
"""The INFO fields that can be recomputed from genotypes, with their names in ``bcftools +fill-tags``."""
DEFAULT_INFO_FIELDS = INFO_FIELDS[:4]

STANDARD_OUTPUT = "-"
"""The name of standard output, where a file is written."""

MAX_CHUNK = 10**9
"""Maximum chunk length along an axis."""

MAX_GQ = 2**31 - 1
"""Maximum genotype quality, which is also the maximum integer of VCF."""

DEFAULT_SAMPLES_CHUNK = 1_000
"""Chunk length along samples of a new store, unless its sources or an option determine it."""

COMPRESSORS = ("zstd", "lz4", "lz4hc", "zlib", "blosclz")
"""Compressors within Blosc."""
DEFAULT_LEVEL = 7
"""Default compression level, the same as that of VCF converters."""

REGULAR, FLEXIBLE = "regular", "flexible"
SAMPLE_GRIDS = (REGULAR, FLEXIBLE)
"""Chunk grids of the samples axis: chunks of one width, or columns with individual widths."""

OURS = "vczstore-"
"""Prefix of the temporary branches that operations create and delete."""


def check_choice(what: str, value: str | None, choices: Sequence[str]) -> None:
    """Raise an `OptionError` for a value that is neither None nor one of the choices."""
    if value is not None and value not in choices:
        raise OptionError(f"no {what} {value!r}; choose one of {', '.join(choices)}")
