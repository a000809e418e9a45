"""
Repair: finish or undo operations that were interrupted on plain Zarr, where that is safe.

Also fix what vczstore 0.1.0 leaves, on Icechunk too: empty IDs without calls from its `create`; and masks that mark
removed calls as present, and values in ``sample_*`` arrays, from its `remove`.
"""

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from plans.compilers.remove import compile_header, compile_repair
from plans.core.withdrawn import Withdrawn
from plans.maintenance.check_chunks import LEFT
from plans.maintenance.check_metadata import consolidated_errors, length_errors
from plans.maintenance.findings import Finding, WithErrors
from plans.maintenance.verify import verify_store
from vczstore.errors import StorageError
from vczstore.execution.engine import run_plan
from vczstore.execution.options import Options
from vczstore.stores import parent_metadata
from vczstore.stores.base import Check, Location, Store
from vczstore.stores.edits import Consolidate, MetadataEdit, Reconsolidate, SetNoFill, SetShape
from vczstore.stores.leftovers import delete_half_written, leftovers, preview, settle, settling
from vczstore.stores.locations import folder_of
from vczstore.stores.resolve import place_of
from vczstore.vcz import vcf_headers
from vczstore.vcz.missing import has_missing_value
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, listing, samples_axis

TRANSACTIONS = "Icechunk commits all or nothing, so that nothing there is ever half-done"


@dataclass(frozen=True)
class Repaired(WithErrors):
    """
    The result of a repair.

    Attributes
    ----------
    store
        Label of the store.
    dry_run
        Whether nothing was written, and `done` lists what would be repaired.
    done
        Message for each repair; never with a sample ID.
    errors
        Remaining errors, as found by `verify`. They are not safe to repair without the data or a decision.
    note
        Why there is nothing to repair, or a description of leftovers that are no error; empty if neither applies.
    """

    store: str
    dry_run: bool
    done: tuple[str, ...]
    errors: tuple[Finding, ...]
    note: str = ""

    def lines(self) -> list[str]:
        """Return the lines that the command prints: repairs and remaining errors, one line each."""
        n = len(self.errors)
        left = f"; {n:,} error{'s' * (n > 1)} left that repair does not fix" if n else ""
        done = f"{len(self.done):,} repaired" if self.done else "nothing to repair"
        note, dry = f"; {self.note}" * bool(self.note), " (dry run, nothing was written)" * self.dry_run
        return [
            f"repair {self.store}: {done}{note}{left}{dry}",
            *(f"  repaired {what}" for what in self.done),
            *(f"  error {finding}" for finding in self.errors),
        ]


def repair_store(location: Location, opts: Options, *, dry_run: bool, quick: bool) -> Repaired:
    """
    Repair a store.

    Parameters
    ----------
    location, opts
        Location of the store, and the options to open and verify it.
    dry_run
        Whether to write nothing.
    quick
        Whether to check for remaining errors in metadata and sample IDs only.
    """
    path = folder_of(place_of(location))
    done = _compaction(path, opts, dry_run=dry_run)
    if dry_run and path is not None and not path.exists():
        return Repaired(str(location), dry_run, tuple(done), ())
    store = opts.open(location)
    with nullcontext() if dry_run else store.exclusive_lock() as lock:
        repaired = _stopped(store, done, dry_run=dry_run)
        done += _half_written(path, dry_run=dry_run)
        verified = verify_store(store, opts, quick=quick)
        errors = set(verified.errors)
        if dry_run:  # errors that would be repaired are still there
            errors -= repaired
        check = None if lock is None else lock.check
        _header(store, opts, done, check, dry_run=dry_run)
        errors = _half_removed(store, errors, opts, done, check, dry_run=dry_run, quick=quick)
    note = ""
    if not done:
        note = TRANSACTIONS if store.atomic else _describe_outside(store, sum(verified.outside.values()))
    return Repaired(store.label, dry_run, tuple(done), tuple(sorted(errors, key=lambda finding: finding.order)), note)


def _describe_outside(store: Store, n: int) -> str:
    """Describe the chunks left by a failed append, which are not an error: the same append overwrites them."""
    text = f"{n:,} chunk{'s' * (n > 1)} that no reader sees {'are' if n > 1 else 'is'} left of a stopped append"
    return f"{text}; vczstore gc {store.label} deletes {'them' if n > 1 else 'it'}" if n else ""


def _stopped(store: Store, done: list[str], *, dry_run: bool) -> set[Finding]:
    """Repair shapes and consolidated metadata after an interrupted append, and return the errors that this fixes."""
    if store.zarr_store is None:  # a transactional store has no such errors
        return set()
    before = store.open()
    after, *edits = _reveal(before, done)
    if (unfilled := SetNoFill.of(before.arrays[SAMPLE_ID])) is not None and (before.sample_ids == REMOVED).any():
        done.append(f"empty IDs of removed samples, which xarray shows as nan: {SAMPLE_ID} has no fill value any more")
        edits += [unfilled, Consolidate((SAMPLE_ID,), 2)]
    if stale := [*consolidated_errors(after)]:
        done.append("consolidated metadata that were stale are rewritten from the arrays' own")
        edits.append(Reconsolidate((*after.arrays, *after.inner), tuple(after.groups), after.zarr_format))
    if not dry_run:
        for edit in edits:
            edit.apply(store.zarr_store.with_read_only(False))
        parent_metadata.follow(store.zarr_store)
    return {*consolidated_errors(before), *stale, *set(length_errors(before)) - set(length_errors(after))}


def _header(store: Store, opts: Options, done: list[str], check: Check | None, *, dry_run: bool) -> None:
    """Drop the lines of the VCF header that name samples recorded as removed."""
    vcz = store.open()
    present = {*vcz.sample_ids.tolist()}
    words = {*vcf_headers.words(vcz.attributes)} - present
    removed = list[str]()
    with suppress(StorageError):  # without the key the record of removed samples cannot be read
        removed = Withdrawn.of(store, vcz).among(sorted(words))
    if removed and (header := vcf_headers.without(vcz.attributes, removed, present)):
        done.append(f"lines of the VCF's header that name removed samples, in {listing([*header])}: dropped")
        if not dry_run:
            run_plan(compile_header(store, vcz, header, opts.memory), opts, before_commit=check)


def _half_removed(
    store: Store,
    errors: set[Finding],
    opts: Options,
    done: list[str],
    check: Check | None,
    *,
    dry_run: bool,
    quick: bool,
) -> set[Finding]:
    """Remove the values, or positions without calls, that vczstore 0.1.0 leaves of samples; return remaining errors."""
    vcz = store.open()
    stale = {d for d in errors if d.array in vcz.samples_arrays and d.what.startswith(LEFT)}
    fields = {d.array for d in stale if d.array is not None and has_missing_value(vcz.arrays[d.array])}
    # in all arrays: `verify` takes fill for missing, but its amount reveals a person's ploidy
    names = {n for n, a in vcz.samples_arrays.items() if n != SAMPLE_ID and has_missing_value(a)} if fields else set()
    n = vcz.beyond_calls
    if not names and n is None:
        return errors
    if n is not None:
        done.append(f"empty IDs of samples for which no array has values: {vcz.n_samples - n:,} deleted")
    if names:
        done.append(f"values of samples that have no ID any more, in {listing(sorted(fields))}: made missing")
    plan = compile_repair(store, vcz, names, opts.memory)
    if not dry_run:
        run_plan(plan, opts, before_commit=check)
        return set(verify_store(store, opts, quick=quick).errors)
    return errors - {d for d in stale if d.array in fields} - (set(length_errors(vcz)) - set(length_errors(plan.after)))


def _compaction(path: Path | None, opts: Options, *, dry_run: bool) -> list[str]:
    """Finish or undo an interrupted replacement of the folder, as by a compaction; return messages about it."""
    if path is None or not leftovers(path):
        return []
    with nullcontext() if dry_run else settling(path, no_lock=opts.no_lock):
        outcome = preview(path) if dry_run else settle(path)
    return [] if outcome is None else [_SETTLED[outcome]]


_SETTLED = {
    "completed": "a replacement of the store that was stopped is completed: the store as it was before is deleted",
    "undone": "a replacement of the store that was stopped before it took effect is undone: what it made is deleted",
}
"""The messages about an interrupted replacement, by its outcome."""


def _half_written(path: Path | None, *, dry_run: bool) -> list[str]:
    n = sum(delete_half_written(path, dry_run=dry_run).values())
    return [f"{n:,} file{'s' * (n > 1)} that a killed process has left half-written: deleted"] if n else []


def _reveal(vcz: Vcz, done: list[str]) -> tuple[Vcz, *tuple[MetadataEdit, ...]]:
    """
    Undo an append that was interrupted while its samples became visible: shrink arrays to the length of ``sample_id``.

    An append resizes arrays in the order of their names, sample_id last. So arrays up to some name have one greater
    length, and the others that of sample_id. Arrays that disagree in any other way are not repaired.

    Returns
    -------
    Vcz
        The store as it will be.
    MetadataEdit
        Edits that shrink the arrays. If interrupted, they leave the state of the same append interrupted earlier.
    """
    n = vcz.n_samples
    lengths = {name: array.shape[samples_axis(array) or 0] for name, array in vcz.samples_arrays.items()}
    longer = [name for name, length in lengths.items() if length > n]
    others = [length for name, length in lengths.items() if name not in longer]
    if (
        not longer
        or list(lengths)[: len(longer)] != longer
        or len({lengths[m] for m in longer}) > 1
        or set(others) != {n}
    ):
        return (vcz,)
    resized = vcz.resized(n)
    done.append(
        f"an append that was stopped is undone: {listing(longer)} had {lengths[longer[0]]:,} samples, {SAMPLE_ID} has "
        f"{n:,}; the same append brings them in"
    )
    edits = [SetShape.of(resized[name]) for name in reversed(longer)]
    return (replace(vcz, arrays={**vcz.arrays, **{name: resized[name] for name in longer}}), *edits)
