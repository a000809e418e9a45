"""Compare two states of a store, or two stores."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from zarr.types import AnyArray

from plans.core.model import Survey
from plans.core.scan_reader import ScanReader
from plans.maintenance.compare_values import (
    CompareColumn,
    comparable,
    count_common,
    is_by_allele,
    n_differing_samples,
    phased_of,
    same_values,
)
from plans.maintenance.history import open_at
from plans.variants.field_numbers import GENOTYPE, numbers_of
from plans.variants.harmonise_rules import Rules
from plans.variants.match_index import FindMatches
from plans.variants.surveys import match_scan, run_scans
from vczstore.execution.engine import check_reachable, run_survey
from vczstore.execution.options import Options
from vczstore.execution.results import Shown
from vczstore.stores.base import Store
from vczstore.vcz import arrays
from vczstore.vcz.missing import masked_by
from vczstore.vcz.model import REMOVED, SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions, listing

OPERATION = "diff"

_KEYS = (SAMPLE_ID, "variant_contig", "variant_position", "variant_allele", "region_index")
"""Arrays that identify samples and variants, or are derived from them; their values are not compared."""

_VARIANT_KEYS = frozenset({"contig_id", "variant_contig", "variant_position", "variant_allele"})
"""Arrays that identify variants."""

_FILTERS = "filter_id"


@dataclass(frozen=True)
class Difference(Shown):
    """
    The differences between two VCZs. "in" means only in the second, "out" means only in the first.

    Attributes
    ----------
    store, other
        Labels of the first and the second VCZ.
    snapshot, other_snapshot
        Their snapshots; None on plain Zarr.
    samples_in, samples_out, samples_common
        Numbers of samples.
    ids_in, ids_out
        IDs of the samples that only one has, if requested; else None.
    fields_in, fields_out
        Names of the arrays that only one has.
    variants_in, variants_out, variants_common
        Numbers of variants.
    variants_realigned
        Number of common variants at which a common allele has different indices.
    changed
        Number of values that differ in each compared field: calls, or values per variant or per sample. An array with
        neither axis counts as one value.
    not_compared
        Fields that were not compared: their dimensions or kinds of dtype differ, they index filters that differ, or
        they are large and have neither axis. Those that are in `changed` too depend on the order of alleles, and were
        not compared at the `variants_realigned` variants only.
    attributes_changed
        Attributes of the root group that differ, except those of vczstore.
    exit_code
        Whether the exit status is 1 if there is a difference.
    """

    store: str
    snapshot: str | None
    other: str
    other_snapshot: str | None
    samples_in: int
    samples_out: int
    samples_common: int
    fields_in: list[str]
    fields_out: list[str]
    variants_in: int
    variants_out: int
    variants_common: int
    variants_realigned: int
    changed: Mapping[str, int]
    not_compared: list[str]
    attributes_changed: list[str]
    ids_in: list[str] | None = None
    ids_out: list[str] | None = None
    exit_code: bool = field(default=False, repr=False)

    @property
    def is_same(self) -> bool:
        counts = (self.samples_in, self.samples_out, self.variants_in, self.variants_out, self.variants_realigned)
        fields_differ = (self.fields_in, self.fields_out, self.not_compared, self.attributes_changed)
        return not any((*counts, *self.changed.values(), *fields_differ))

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.is_same or not self.exit_code

    def as_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if value is not None and name != "exit_code"}
        return {"same": self.is_same, **values}

    def lines(self) -> Iterator[str]:
        def in_out_both(*numbers: int) -> str:
            return ", ".join(f"{n:,} {what}" for n, what in zip(numbers, ("in", "out", "in both"), strict=True))

        first, second = self._name(self.store, self.snapshot), self._name(self.other, self.other_snapshot)
        yield f"diff {first} {second}: {'no difference' if self.is_same else 'different'}"
        yield f"  samples   {in_out_both(self.samples_in, self.samples_out, self.samples_common)}"
        for mark, ids in (("+", self.ids_in), ("-", self.ids_out)):
            yield from (f"    {mark} {sample if sample.isprintable() else repr(sample)}" for sample in ids or ())
        realigned = f", {self.variants_realigned:,} with alleles in another order" * bool(self.variants_realigned)
        yield f"  variants  {in_out_both(self.variants_in, self.variants_out, self.variants_common)}{realigned}"
        partly = [name for name in self.not_compared if name in self.changed]
        for what, names in (
            ("in", self.fields_in),
            ("out", self.fields_out),
            ("not compared", [name for name in self.not_compared if name not in self.changed]),
            ("not compared where alleles are in another order", partly),
        ):
            if names:
                yield f"  fields    {what}: {listing(names, limit=100)}"
        for name, n in self.changed.items():
            if n:
                yield f"  changed   {n:,} {_unit(name)} of {name}"
        if self.attributes_changed:
            yield f"  changed   attributes: {listing(self.attributes_changed, limit=100)}"

    @staticmethod
    def _name(label: str, snapshot: str | None) -> str:
        return label if snapshot is None else f"{label}@{snapshot}"


def _unit(name: str) -> str:
    """Return the unit in which the differences of a field are counted."""
    return next(
        (what for head, what in (("call_", "calls"), ("sample_", "samples")) if name.startswith(head)), "values"
    )


def compare(
    first: tuple[Store, str | None], second: tuple[Store, str | None], options: Options, *, ids: bool, exit_code: bool
) -> Difference:
    """
    Compare two VCZs.

    Parameters
    ----------
    first, second
        The store of each, and its tag, branch or snapshot; None is the present state.
    options
        Executor and memory of the tasks.
    ids
        Whether to list the IDs of samples that only one has.
    exit_code
        As in `Difference`.
    """
    check_reachable(OPERATION, second[0], options)
    a, b = (open_at(OPERATION, store, at) for store, at in (first, second))
    for vcz in (a, b):
        vcz.require_whole(OPERATION, edited=False)
    samples = _Samples.of(a, b)
    common = [name for name in a.arrays if name in b.arrays and name not in _KEYS]
    compared = {name: (a.arrays[name], b.arrays[name]) for name in common if _has_axis(a.arrays[name])}
    small = {name: same_values(a.arrays[name], b.arrays[name]) for name in common if name not in compared}
    fit = {name: pair for name, pair in compared.items() if comparable(*pair)}
    if not small.get(_FILTERS, _FILTERS not in a.arrays and _FILTERS not in b.arrays):
        fit.pop("variant_filter", None)  # its columns are those of other filters
    changed_chunks = _changed_chunks(a, b, first[0]) if first[0] is second[0] else None
    counts, changed = _counts(a, b, fit, samples, changed_chunks, first[0], options)
    matched, realigned = counts
    partly = [name for name in fit if realigned and _goes_by_allele(name, a, b)]
    of_small = {name: int(not same) for name, same in small.items() if same is not None}
    return Difference(
        store=a.label,
        snapshot=a.snapshot,
        other=b.label,
        other_snapshot=b.snapshot,
        samples_in=len(samples.only_there),
        samples_out=len(samples.only_here),
        samples_common=len(samples.here),
        ids_in=samples.only_there if ids else None,
        ids_out=samples.only_here if ids else None,
        fields_in=[name for name in b.arrays if name not in a.arrays],
        fields_out=[name for name in a.arrays if name not in b.arrays],
        variants_in=b.n_variants - matched,
        variants_out=a.n_variants - matched,
        variants_common=matched,
        variants_realigned=realigned,
        changed=dict(sorted({**{name: changed[name] for name in fit}, **of_small}.items())),
        not_compared=[name for name in common if name in partly or name not in {**fit, **of_small}],
        attributes_changed=_changed_attributes(a, b),
        exit_code=exit_code,
    )


def _changed_attributes(a: Vcz, b: Vcz) -> list[str]:
    names = sorted({*a.attributes, *b.attributes})
    return [n for n in names if not n.startswith("vczstore_") and a.attributes.get(n) != b.attributes.get(n)]


def _goes_by_allele(name: str, a: Vcz, b: Vcz) -> bool:
    """Whether the values of a field depend on the order of alleles, according to the metadata of either VCZ."""
    arrays_of = [vcz.arrays[name] for vcz in (a, b)]
    if VARIANTS not in dimensions(arrays_of[0]):
        return False
    kind = "FORMAT" if SAMPLES in dimensions(arrays_of[0]) else "INFO"
    return any(is_by_allele(name, array, numbers_of(vcz, kind)) for vcz, array in zip((a, b), arrays_of, strict=True))


def _has_axis(array: AnyArray) -> bool:
    return VARIANTS in dimensions(array) or SAMPLES in dimensions(array)


@dataclass(frozen=True)
class _Samples:
    """Positions of the common samples in the first (increasing) and the second VCZ, and the IDs of the others."""

    here: np.ndarray
    there: np.ndarray
    only_here: list[str]
    only_there: list[str]

    @classmethod
    def of(cls, a: Vcz, b: Vcz) -> "_Samples":
        ours, theirs = (
            {sample: i for i, sample in enumerate(vcz.sample_ids.tolist()) if sample != REMOVED} for vcz in (a, b)
        )
        pairs = np.array([(i, theirs[sample]) for sample, i in ours.items() if sample in theirs], dtype="i8")
        here, there = pairs.reshape(-1, 2).T
        return cls(here, there, [s for s in ours if s not in theirs], [s for s in theirs if s not in ours])


def _counts(
    a: Vcz,
    b: Vcz,
    fit: Mapping[str, tuple[AnyArray, AnyArray]],
    samples: _Samples,
    changed_chunks: Mapping[str, np.ndarray | None] | None,
    store: Store,
    options: Options,
) -> tuple[tuple[int, int], Counter[str]]:
    """Return the numbers of common and of realigned variants, and the number of values that differ in each field."""
    memory = options.memory
    scans = run_scans(OPERATION, a, [b])
    seen = run_survey(Survey(OPERATION, tuple(scans), memory), store, options)
    runs = [scan.joined(items) for scan, items in zip(scans, seen, strict=True)]
    matching = match_scan(OPERATION, a, [b], Rules(allow_new_alleles=True), runs, [None])
    matching = replace(matching, index=replace(matching.index, is_surveyed=True))
    phased = (phased_of(a.arrays), phased_of(b.arrays))
    has_same_variants = (
        changed_chunks is not None and a.n_variants == b.n_variants and _VARIANT_KEYS.isdisjoint(changed_chunks)
    )
    columns = [
        replace(
            scan, by_allele=_goes_by_allele(name, a, b), phased=phased if masked_by(name) == GENOTYPE else (None,) * 2
        )
        for name, pair in fit.items()
        for scan in _scans(name, *pair, samples, matching, changed_chunks)
        if not (has_same_variants and scan.is_unchanged)
    ]
    index = matching.index
    counting = ScanReader(partial(count_common, matching), index.n_variants, matching.rows_per_task, matching.mem)
    values = run_survey(Survey(OPERATION, (counting, *columns), memory), store, options)
    matched, realigned = np.sum([(0, 0), *values[0]], axis=0).tolist()
    changed = Counter[str]()
    for scan, items in zip(columns, values[1:], strict=True):
        changed[scan.name] += sum(items)
    for name, (ours, theirs) in fit.items():
        if VARIANTS not in dimensions(ours) and len(samples.here):
            changed[name] = n_differing_samples(name, ours, theirs, samples.here, samples.there)
    return (matched, realigned), changed


def _changed_chunks(a: Vcz, b: Vcz, store: Store) -> Mapping[str, np.ndarray | None] | None:
    """Return, by array, the chunks that may differ between two states of a repository; None if that is not known."""
    states = (a.snapshot or "", b.snapshot or "")
    chunks = store.history.changed_chunks(*states)
    return store.history.changed_chunks(*reversed(states)) if chunks is None else chunks


def _scans(
    name: str,
    ours: AnyArray,
    theirs: AnyArray,
    samples: _Samples,
    matching: FindMatches,
    changed_chunks: Mapping[str, np.ndarray | None] | None,
) -> Sequence[CompareColumn]:
    """Return the comparisons of a field with a variants axis, one per chunk column that has common samples."""
    changed = None if changed_chunks is None else changed_chunks.get(name, np.empty((0, ours.ndim), "i8"))
    if VARIANTS not in dimensions(ours):
        return []
    if SAMPLES not in dimensions(ours):
        return [CompareColumn(name, ours, theirs, matching, None, None, _as_set(changed))]
    columns = arrays.cuts(ours)[1].of(samples.here)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    parts = zip(columns[starts], np.split(samples.here, starts)[1:], np.split(samples.there, starts)[1:], strict=True)
    return [
        CompareColumn(
            name, ours, theirs, matching, here, there, _as_set(None if changed is None else changed[changed[:, 1] == i])
        )
        for i, here, there in parts
    ]


def _as_set(chunks: np.ndarray | None) -> frozenset[tuple[int, ...]] | None:
    return None if chunks is None else frozenset(map(tuple, chunks.tolist()))
