"""Local alleles: fields that are indexed by a list of alleles of each call.

LAA lists, call by call, the ALTs "that are actually in-play for that sample and the order in which they are
interpreted" (VCF 4.5, section 1.6.2). They are indices of the variant's alleles, and need not increase. So where
alleles are re-numbered, only the values of LAA change: LAD, LPL and similar fields are in the order of LAA, and stay
unchanged.
"""

from collections.abc import Container

from zarr.types import AnyArray

from vczstore.vcz.model import dimensions

LOCAL_ALLELES = ("call_LAA", "call_LA")
"""Fields that hold the indices of local alleles: LAA those of ALTs, as in VCF; LA also REF, as bio2zarr writes it."""

_NAMES = ("LGT", "LAD", "LADF", "LADR", "LEC", "LGL", "LGP", "LPL", "LPP")
"""Fields that VCF 4.5 reserves, and LGT, the genotype as indices of local alleles, of its drafts and of Hail."""
_NUMBERS = ("LA", "LR", "LG")
_DIMENSIONS = ("local_alleles", "local_alt_alleles", "local_genotypes")


def is_local(name: str, array: AnyArray, number: str) -> bool:
    """Whether a field is indexed by local alleles, by its name, its dimension, or its Number in the VCF header."""
    field = name.removeprefix("call_").removesuffix("_mask").removesuffix("_fill")
    return field in _NAMES or number in _NUMBERS or str(dimensions(array)[-1]).startswith(_DIMENSIONS)


def has_local_alleles(names: Container[str]) -> bool:
    """Whether a VCZ with these arrays has the indices of local alleles."""
    return any(name in names for name in LOCAL_ALLELES)
