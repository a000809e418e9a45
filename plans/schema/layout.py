"""Layout: the dtypes, axes and axis lengths that arrays need to hold the samples of a store and all its sources.

Only metadata are read. The layout does not depend on the order of the sources.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from zarr.types import AnyArray

from plans.core.compatibility import BY_VARIANT, check_attributes, fits
from plans.variants.field_numbers import NUMBERS
from plans.variants.kept_blocks import BLOCKS, RUNS
from plans.variants.reference_blocks import LEN
from vczstore.errors import IncompatibleError, UnsuitableError
from vczstore.vcz import arrays, conversion
from vczstore.vcz.metadata import documents
from vczstore.vcz.missing import TEXT, masked_by
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions

STRINGS = np.dtypes.StringDType()


class Mismatch(Exception):
    """No layout holds two arrays: the name of the property that differs, and its value in both."""

    def __init__(self, what: str, theirs: object, ours: object) -> None:
        super().__init__(what, theirs, ours)
        self.what, self.theirs, self.ours = what, theirs, ours


@dataclass(frozen=True)
class Form:
    """
    The part of an array's metadata that decides which values it can hold.

    Attributes
    ----------
    dimensions
        The names of its axes.
    dtype
        Its dtype.
    lengths
        The lengths of its axes; 0 for variants and samples, which do not matter here.
    """

    dimensions: tuple[str | None, ...]
    dtype: np.dtype
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, array: AnyArray) -> "Form":
        names = dimensions(array)
        lengths = (0 if d in (SAMPLES, VARIANTS) else n for d, n in zip(names, array.shape, strict=True))
        return cls(names, array.dtype, tuple(lengths))

    def joined(self, other: "Form") -> "Form":
        """
        Return the form that holds the values of both.

        Raises
        ------
        Mismatch
            If there is none.
        """
        a, b = self._with_axes_of(other), other._with_axes_of(self)
        if a.dimensions != b.dimensions:
            raise Mismatch("dimensions", other.dimensions, self.dimensions)
        dtype = widest(self.dtype, other.dtype)
        if dtype is None:
            raise Mismatch("dtype", other.dtype, self.dtype)
        return Form(a.dimensions, dtype, tuple(map(max, a.lengths, b.lengths)))

    def _with_axes_of(self, other: "Form") -> "Form":
        """Add the last axis of the other with length 1: converters omit it where no call or record has two values."""
        if self.dimensions in ((), (SAMPLES,)) or other.dimensions[:-1] != self.dimensions:
            return self
        return replace(self, dimensions=other.dimensions, lengths=(*self.lengths, 1))

    def like(self, other: "Form") -> "Form":
        """Remove a last axis of length 0 or 1 if the other form lacks it."""
        has_axis = len(self.dimensions) == len(other.dimensions) + 1 > 2 and self.dimensions[:-1] == other.dimensions
        if not has_axis or self.lengths[-1] > 1:
            return self
        return replace(self, dimensions=self.dimensions[:-1], lengths=self.lengths[:-1])


def widest(a: np.dtype, b: np.dtype) -> np.dtype | None:
    """
    Return the dtype that holds the values of both, missing values included; None if there is none.

    >>> widest(np.dtype("i1"), np.dtype("u1")), widest(np.dtype("f4"), np.dtype("f8"))
    (dtype('int16'), dtype('float64'))
    >>> widest(np.dtype("i4"), np.dtype("f4"))  # None: Integer in one header and Float in another are not joined
    """
    if a == b:
        return a
    kinds = {a.kind, b.kind}
    if kinds <= set(TEXT) and kinds != {"S"}:
        return max(a, b, key=lambda dtype: dtype.itemsize) if kinds == {"U"} else STRINGS
    if kinds <= set("iu"):
        both = np.promote_types(a, b)
        return both if both.kind in "iu" else None
    if "T" not in kinds and a.newbyteorder("=") == b.newbyteorder("="):
        return a.newbyteorder("=")
    if kinds in ({"f"}, {"S"}):
        return max(a, b, key=lambda dtype: dtype.itemsize).newbyteorder("=")
    return None


# ---- fields ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """
    Names of arrays to drop or add where a store or a source lacks them.

    Attributes
    ----------
    drop
        Arrays to drop from a source if the store cannot take them; new samples are missing there.
    add
        Arrays to add to the store from a source; existing samples are missing there.
    """

    drop: Sequence[str] = ()
    add: Sequence[str] = ()


def base_of(name: str) -> str:
    """
    Return the array that a mask, phase or run array belongs to; other names are returned unchanged.

    >>> base_of("call_genotype_phased"), base_of("call_AD_mask"), base_of("call_AD")
    ('call_genotype', 'call_AD', 'call_AD')
    """
    return BLOCKS if name == RUNS else masked_by(name).removesuffix("_phased")


def array_name(field: str) -> str:
    """
    Return the name of the array of a FORMAT field; names of arrays are returned unchanged.

    >>> array_name("LPL"), array_name("GT"), array_name("call_AD"), array_name("sample_sex")
    ('call_LPL', 'call_genotype', 'call_AD', 'sample_sex')
    """
    return {"GT": "call_genotype"}.get(field, field if field.startswith(("call_", "sample_")) else f"call_{field}")


def field_of(name: str) -> str:
    """Return the name of the FORMAT field of an array."""
    return name.removeprefix("call_")


def named(name: str, fields: Collection[str]) -> bool:
    """Whether an array, or the one that it belongs to, is listed in `fields`."""
    return name in fields or base_of(name) in fields


# ---- a store and its sources ----------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """
    The forms of arrays over samples that a store needs to take the samples of its sources.

    Attributes
    ----------
    forms
        The form of each array, by name.
    lengths
        The lengths of dimensions. For a store with samples, only those of arrays that are new or grow.
    """

    forms: Mapping[str, Form]
    lengths: Mapping[str, int]


def layout_of(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    by_allele: Mapping[str, int] | None,
    *,
    add: Collection[str] = (),
    unfit: Collection[tuple[int, str]] = (),
) -> Layout:
    """
    Find the layout that a store needs to take the samples of its sources.

    Parameters
    ----------
    operation
        Name of the operation, for error messages.
    vcz, sources
        A store without samples gets all arrays of its sources. A store with samples keeps its own, widened if needed.
    by_allele
        Lengths of the dimensions per allele if sources are harmonised with the store; else None.
    add
        Fields to add to a store that has samples.
    unfit
        Arrays with values that the narrower dtype of the store cannot hold: index of the source, and name.

    Raises
    ------
    IncompatibleError
        If no form holds all values of an array.
    """
    taken = {n for s in sources for n in s.samples_arrays if _has_field(vcz, n, add)}
    forms, grown = {}, []
    for name in sorted({*vcz.samples_arrays, *taken}):
        labelled = _labelled(vcz, sources, name, by_allele is not None, unfit)
        forms[name] = _joined(operation, name, labelled)
        if has_no_samples(vcz) or name not in vcz.samples_arrays or forms[name].lengths != labelled[0][1].lengths:
            grown.append(forms[name])
    current = lengths_of(Form.of(array) for array in vcz.arrays.values())
    lengths = {**lengths_of(grown), **(by_allele or {})}
    for name, n in lengths.items():
        if name not in (by_allele or {}):
            lengths[name] = max(n, current.get(name, 0))
    return Layout(forms, _with_ploidy(lengths, current.get("ploidy", 0), by_allele))


def _with_ploidy(lengths: dict[str, int], before: int, by_allele: Mapping[str, int] | None) -> dict[str, int]:
    """Return the lengths with the number of genotypes that a greater ploidy requires."""
    ploidy = lengths.get("ploidy", 0)
    if by_allele and "genotypes" in by_allele and ploidy > before:
        n_genotypes = math.comb(by_allele["alleles"] + ploidy - 1, ploidy)
        lengths["genotypes"] = max(lengths["genotypes"], n_genotypes)
    return lengths


def has_no_samples(vcz: Vcz) -> bool:
    """Whether a store has no samples yet, so that it takes all arrays of its sources."""
    return vcz.n_samples == 0


def _has_field(vcz: Vcz, name: str, add: Collection[str]) -> bool:
    return name in vcz.samples_arrays or has_no_samples(vcz) or named(name, add)


def _labelled(
    vcz: Vcz, sources: Sequence[Vcz], name: str, harmonised: bool, unfit: Collection[tuple[int, str]]
) -> list[tuple[str, Form]]:
    """Return the forms of an array in a store and its sources, each with the label of its VCZ."""
    ours = vcz.samples_arrays.get(name)
    forms = [] if ours is None or (has_no_samples(vcz) and name == SAMPLE_ID) else [(vcz.label, Form.of(ours))]
    for i, source in enumerate(sources):
        if name in source.samples_arrays:
            form = Form.of(source.samples_arrays[name])
            if ours is not None and not has_no_samples(vcz):
                form = _relaxed(form, forms[0][1], (i, name) in unfit, harmonised)
            forms.append((source.label, form))
    return forms


def _relaxed(form: Form, ours: Form, is_unfit: bool, harmonised: bool) -> Form:
    """Return the form of a source with the dtype and lengths of the store where its values fit or are converted."""
    form = form.like(ours)
    if widest(ours.dtype, form.dtype) is not None:
        is_narrowed = (
            ours.dtype.kind in "iuUS" and not is_unfit and (form.dtype.kind == "S") == (ours.dtype.kind == "S")
        )
        if fits(form.dtype, ours.dtype) or is_narrowed:
            form = replace(form, dtype=ours.dtype)
        elif ours.dtype.kind in "US":
            form = replace(form, dtype=STRINGS)
    if harmonised and form.dimensions == ours.dimensions:
        lengths = zip(form.dimensions, form.lengths, ours.lengths, strict=True)
        form = replace(form, lengths=tuple(m if d in BY_VARIANT else n for d, n, m in lengths))
    return form


def _joined(operation: str, name: str, forms: Sequence[tuple[str, Form]]) -> Form:
    def join(a: tuple[str, Form], b: tuple[str, Form]) -> tuple[str, Form]:
        try:
            return a[0], a[1].joined(b[1])
        except Mismatch as error:
            if error.what == "dimensions":
                _refuse_unknown_number(operation, name, a, b)
            raise IncompatibleError(
                f"{operation}: {name} of {b[0]} has {error.what} {error.theirs}, {a[0]} has {error.ours}, and nothing "
                f"holds both; make them with one Number and Type, or leave it out with --drop-field {field_of(name)}"
            ) from error

    return reduce(join, forms)[1]


_OF_NUMBER_DOT = re.compile("FORMAT_.+_dim")
"""Name that bio2zarr gives to the last dimension of a FORMAT field with Number=. in the header."""


def _refuse_unknown_number(operation: str, name: str, *sides: tuple[str, Form]) -> None:
    """Raise an `IncompatibleError` if a field has values per allele on one side, and Number=. on the other."""
    lasts = {str(form.dimensions[-1]): label for label, form in sides}
    by_allele, dot = (next((d for d in lasts if test(d)), "") for test in (NUMBERS.get, _OF_NUMBER_DOT.fullmatch))
    if not by_allele or not dot:
        return
    field = field_of(name)
    number = f"--number {field}={NUMBERS[by_allele]}"
    way_out = f"say what it is with --harmonise {number} (harmonise: {{numbers: [{number.split()[1]}]}} in a job)"
    if operation == "update":
        way_out = f"express the source over the store first, with vczstore normalise {number}"
    raise IncompatibleError(
        f"{operation}: {name} of {lasts[dot]} has the dimension {dot}, as of a VCF header with Number=. for "
        f"{field}, and that of {lasts[by_allele]} goes by {by_allele}; {way_out}, or leave it out "
        f"with --drop-field {field}"
    )


def lengths_of(forms: Iterable[Form]) -> dict[str, int]:
    """Return the maximum length of each dimension other than variants and samples."""
    result: dict[str, int] = {}
    for form in forms:
        for dimension, n in zip(form.dimensions, form.lengths, strict=True):
            if dimension not in (SAMPLES, VARIANTS, None):
                result[dimension] = max(n, result.get(dimension, 0))
    return result


# ---- dropped fields -------------------------------------------------------------------------


def check_named(operation: str, store: Vcz, sources: Sequence[Vcz], fields: Fields) -> None:
    """
    Check that the fields to drop or add exist.

    Raises
    ------
    UnsuitableError
        If neither a source nor the store has one of them.
    """
    existing = {name for vcz in (store, *sources) for name in vcz.samples_arrays if name != SAMPLE_ID}
    existing.add(LEN)  # gVCFs may have it, but it is never copied
    for what, names in (("dropped", fields.drop), ("added", fields.add)):
        for name in names:
            if name not in existing:
                raise UnsuitableError(
                    f"{operation}: neither the store nor a source has {name}, so it cannot be {what}; see vczstore info"
                )


def without_unjoinable(
    operation: str, vcz: Vcz, sources: Sequence[Vcz], fields: Fields, *, harmonised: bool
) -> list[Vcz]:
    """
    Return the sources without the droppable fields that the store cannot take.

    If the store has no samples, a field is dropped from all sources if their layouts cannot be joined.
    """
    result = list(sources)
    for name in sorted({n for s in sources for n in s.samples_arrays if named(n, fields.drop)}):
        if not _has_field(vcz, name, fields.add):
            result = [_without(source, name) for source in result]
            continue
        groups = [result] if has_no_samples(vcz) else [[source] for source in result]
        kept = [g if _joins(operation, vcz, g, name, harmonised) else [_without(s, name) for s in g] for g in groups]
        result = [source for group in kept for source in group]
    return result


def _joins(operation: str, store: Vcz, sources: Sequence[Vcz], name: str, harmonised: bool) -> bool:
    forms = _labelled(store, sources, name, harmonised, ())
    holders = [store] if name in store.samples_arrays and not has_no_samples(store) else []
    holders += [source for source in sources if name in source.samples_arrays]
    try:
        _joined(operation, name, forms)
        for vcz in holders[1:]:
            check_attributes(operation, vcz.label, name, holders[0].samples_arrays[name], vcz.samples_arrays[name])
    except IncompatibleError:
        return False
    return True


def _without(source: Vcz, name: str) -> Vcz:
    dropped = {name, *(f"{name}_{what}" for what in ("mask", "fill", "phased")), *([RUNS] if name == BLOCKS else [])}
    return replace(source, arrays={n: a for n, a in source.arrays.items() if n not in dropped})


# ---- new arrays -----------------------------------------------------------------------------


def new_arrays(vcz: Vcz, sources: Sequence[Vcz], layout: Layout) -> dict[str, AnyArray]:
    """
    Return the arrays over samples that a store lacks, for its samples; all of them if it has no samples yet.

    Each has the encoding of one source's array if the Zarr formats allow, independent of the order of sources.
    """
    current = lengths_of(Form.of(array) for array in vcz.arrays.values())
    lengths = {**current, **layout.lengths, VARIANTS: vcz.n_variants, SAMPLES: vcz.n_samples}
    result = {}
    for name, form in layout.forms.items():
        ours = vcz.samples_arrays.get(name)
        is_new = ours is None or (has_no_samples(vcz) and (name != SAMPLE_ID or len(vcz.samples_arrays) == 1))
        if is_new and any(name in source.samples_arrays for source in sources):
            array = _in_form(_template(name, form, sources), form, lengths)
            array = conversion.in_format(array, vcz.zarr_format, chunks=vcz.chunk_lengths, store=vcz.store, path=name)
            result[name] = _in_columns(vcz, conversion.with_default_keys(array))
    return result


def _in_columns(vcz: Vcz, array: AnyArray) -> AnyArray:
    """Return a new array with the sample columns of the store, if its sample grid is flexible."""
    if not vcz.is_flexible:
        return array
    axis, columns = dimensions(array).index(SAMPLES), vcz.columns
    return arrays.with_columns(conversion.without_shards(array), axis, columns, if_empty=vcz.chunk_lengths[SAMPLES])


def _template(name: str, form: Form, sources: Sequence[Vcz]) -> AnyArray:
    """Return the source array to use as a template: preferably one that already has the form, and large chunks."""

    def rank(array: AnyArray) -> tuple[object, ...]:
        is_same = (array.ndim == len(form.dimensions), array.dtype == form.dtype)
        return (*is_same, arrays.outer_chunks(array), repr(sorted(documents(array.metadata).items())))

    return max((s.samples_arrays[name] for s in sources if name in s.samples_arrays), key=rank)


def _in_form(array: AnyArray, form: Form, lengths: Mapping[str, int]) -> AnyArray:
    """Return the metadata of an array in another form, with the given lengths of dimensions."""
    own = (*array.shape, *form.lengths[array.ndim :])
    shape = tuple(lengths.get(str(d), n) for d, n in zip(form.dimensions, own, strict=True))
    if form.dimensions == dimensions(array) and form.dtype == array.dtype:
        return arrays.planned(array, shape=shape)
    return conversion.reformed(array, dtype=form.dtype, shape=shape, dimension_names=form.dimensions)
