"""Local alleles: fields that go by alleles of each call's own.

LAA lists, call by call, the ALTs "that are actually in-play for that sample and the order in which they are
interpreted" (VCF 4.5, section 1.6.2). They are numbers of the variant's alleles, and need not increase. So where
alleles get other numbers, those in LAA change and nothing else does: LAD, LPL and their like are in the order that LAA
gives, and stay as they are.
"""

from collections.abc import Container

from zarr.types import AnyArray

from vczstore.vcz.model import dimensions

LOCAL_ALLELES = ("call_LAA", "call_LA")
"""What holds numbers of alleles: LAA of ALTs, as in VCF; LA of REF, too, as bio2zarr writes it with local alleles."""

_NAMES = ("LGT", "LAD", "LADF", "LADR", "LEC", "LGL", "LGP", "LPL", "LPP")
"""As VCF 4.5 reserves them, and LGT, the genotype by local alleles, which drafts of it had and Hail has."""
_NUMBERS = ("LA", "LR", "LG")
_DIMENSIONS = ("local_alleles", "local_alt_alleles", "local_genotypes")


def is_local(name: str, array: AnyArray, number: str) -> bool:
    """Whether a field goes by local alleles: by its name, its dimension, or its Number in the VCF header."""
    field = name.removeprefix("call_").removesuffix("_mask").removesuffix("_fill")
    return field in _NAMES or number in _NUMBERS or str(dimensions(array)[-1]).startswith(_DIMENSIONS)


def has_local_alleles(names: Container[str]) -> bool:
    """Whether a VCZ with these arrays says which alleles are the local ones."""
    return any(name in names for name in LOCAL_ALLELES)
