"""Errors of a store that its metadata and sample IDs reveal, without reading other chunks."""

from collections import Counter
from collections.abc import Iterator

from plans.maintenance.findings import Finding
from vczstore.errors import DamagedStoreError, VczstoreError
from vczstore.stores import parent_metadata
from vczstore.vcz import metadata
from vczstore.vcz.missing import TEXT
from vczstore.vcz.model import REMOVED, SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions, has_grid, listing

CALL = (VARIANTS, SAMPLES)

FIXED: dict[str, tuple[str, tuple[str, ...]]] = {
    "contig_id": (TEXT, ("contigs",)),
    "contig_length": ("i", ("contigs",)),
    "filter_id": (TEXT, ("filters",)),
    "region_index": ("i", ("region_index_values", "region_index_fields")),
    "sample_id": (TEXT, (SAMPLES,)),
    "variant_allele": (TEXT, (VARIANTS, "alleles")),
    "variant_contig": ("i", (VARIANTS,)),
    "variant_filter": ("b", (VARIANTS, "filters")),
    "variant_id": (TEXT, (VARIANTS,)),
    "variant_id_mask": ("b", (VARIANTS,)),
    "variant_length": ("i", (VARIANTS,)),
    "variant_position": ("i", (VARIANTS,)),
    "variant_quality": ("f", (VARIANTS,)),
    "call_genotype": ("i", (*CALL, "ploidy")),
    "call_genotype_mask": ("b", (*CALL, "ploidy")),
    "call_genotype_phased": ("b", CALL),
}
"""The allowed dtype kinds and the dimensions of the arrays named in the VCF Zarr specification 0.4."""

DECIDES = {
    SAMPLES: SAMPLE_ID,
    VARIANTS: "variant_position",
    "alleles": "variant_allele",
    "contigs": "contig_id",
    "filters": "filter_id",
    "ploidy": "call_genotype",
}
"""The reference array for the length of a dimension; for other dimensions, the most common length is used."""

BEGINS: dict[str, tuple[str, ...]] = {"call_": CALL, "variant_": (VARIANTS,)}
"""The leading dimensions of other fields, by prefix of their name."""

FIELD_KINDS = "biuf" + TEXT
"""The allowed dtype kinds of other fields, from the types of VCF."""


def metadata_errors(vcz: Vcz) -> list[Finding]:
    """Return all errors in the metadata and sample IDs of a store."""
    inner = [Finding(path, None, why) for path, why in vcz.out_of_reach.items() if path in vcz.inner]
    return [*length_errors(vcz), *_fields(vcz), *inner, *_samples(vcz), *consolidated_errors(vcz)]


def length_errors(vcz: Vcz) -> Iterator[Finding]:
    """Yield an error for each array whose length along a dimension differs from the reference array's."""
    by_dimension: dict[str, dict[str, int]] = {}
    for name, array in vcz.arrays.items():
        for dimension, n in zip(dimensions(array), array.shape, strict=False):
            if dimension is not None:
                by_dimension.setdefault(dimension, {})[name] = n
    for dimension, lengths in by_dimension.items():
        reference = DECIDES.get(dimension)
        if reference not in lengths:
            (usual, _), *_ = Counter(lengths.values()).most_common(1)
            reference = next(name for name, n in lengths.items() if n == usual)
        way_out = (
            "; if an append was stopped here, run that append again, or vczstore repair" if dimension == SAMPLES else ""
        )
        for name, n in lengths.items():
            if n != lengths[reference]:
                yield Finding(name, None, f"has {n:,} {dimension}, {reference} has {lengths[reference]:,}{way_out}")


def _fields(vcz: Vcz) -> Iterator[Finding]:
    """Yield an error for each dtype, list of dimensions and chunk grid that violates the specification."""
    for name, array in vcz.arrays.items():
        names, kind = dimensions(array), array.dtype.kind
        leading = next((dims for prefix, dims in BEGINS.items() if name.startswith(prefix)), ())
        kinds, dims = FIXED.get(name, (FIELD_KINDS if leading else kind, None))
        if kind not in kinds:
            yield Finding(name, None, f"has dtype {array.dtype}, which VCF Zarr does not have for it")
        if name in vcz.out_of_reach:
            yield Finding(name, None, vcz.out_of_reach[name])
        elif len(names) != array.ndim or None in names:
            yield Finding(name, None, "has dimensions without a name")
        elif len(set(names)) < len(names):
            yield Finding(name, None, f"has dimensions {names}, one of them twice")
        elif (dims is not None and names != dims) or names[: len(leading)] != leading:
            expected = dims or (*leading, "...")
            yield Finding(name, None, f"has dimensions {names}, in VCF Zarr they are {expected}")
        if not has_grid(array):
            yield Finding(name, None, "has chunks of different sizes")


def _samples(vcz: Vcz) -> Iterator[Finding]:
    """Yield an error if ``sample_id`` cannot be read or has duplicate IDs; removed samples do not count."""
    try:
        ids = vcz.sample_ids.tolist()
    except VczstoreError as error:
        yield Finding(SAMPLE_ID, None, str(error).partition(f"{SAMPLE_ID} ")[2])
        return
    first: dict[str, int] = {}
    pairs = [(at, i) for i, sample in enumerate(ids) if sample != REMOVED and (at := first.setdefault(sample, i)) != i]
    if pairs:
        shown = listing([f"{i} (as at {at})" for at, i in pairs])
        yield Finding(SAMPLE_ID, None, f"has the same ID more than once, at {shown}; remove the sample and append it")


def consolidated_errors(vcz: Vcz) -> Iterator[Finding]:
    """Yield an error for each difference between the consolidated metadata, if any, and those of arrays and groups."""
    way_out = "; if an append was stopped here, run that append again, or vczstore repair"
    for folder in parent_metadata.stale(vcz):
        yield Finding(None, None, f"consolidated metadata of {folder}, the group that contains it, are stale{way_out}")
    try:
        copy = vcz.consolidated()
    except DamagedStoreError as error:
        yield Finding(None, None, f"{error}{way_out}")
        return
    if copy is None:
        return
    members, copies = ({**each.arrays, **each.inner} for each in (vcz, copy))
    for name in sorted({*members, *copies}):
        own, copied = (
            None if array is None else metadata.documents(array.metadata)
            for array in (members.get(name), copies.get(name))
        )
        if own is None or copied is None:
            which = "lack it" if copied is None else "have it, and it does not exist"
            yield Finding(name, None, f"consolidated metadata {which}{way_out}")
        elif own != copied:
            yield Finding(name, None, f"consolidated metadata differ from its own{way_out}")
    if copy.groups != vcz.groups:
        yield Finding(None, None, f"consolidated metadata have other groups, or other attributes of them{way_out}")
    if copy.attributes != vcz.attributes:
        yield Finding(None, None, f"consolidated metadata have other attributes of the root group{way_out}")
