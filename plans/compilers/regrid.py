"""Regrid: change the chunk columns, chunks, shards or compressors of a store without changing its values.

Columns that stay the same are not touched, and columns that only change their index are not read. If no column has
to be re-encoded, only metadata change. Otherwise tasks read old chunks while others write new ones to the same keys, as
in `plans.schema.rebuild`: on Icechunk in one commit, on plain Zarr into a folder that replaces the store.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.types import AnyArray

from plans.core.copy_chunks import Recode
from plans.core.gather_samples import Part, PutSamples, has_same_chunks
from plans.core.keep_columns import keep_columns
from plans.core.memory import Memory, compile_each
from plans.core.model import Plan, Survey
from plans.core.select_rows import Rows
from plans.core.views import in_store
from plans.schema.rebuild import in_place
from plans.variants.region_index import FIELDS, REGION_INDEX, IndexRows, other_regions
from vczstore.choices import FLEXIBLE
from vczstore.errors import UnsuitableError
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, Delete, MetadataEdit, SetShape
from vczstore.vcz import arrays, conversion
from vczstore.vcz.cuts import Cuts
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz, dimensions, has_grid, samples_axis

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore


OPERATION = "regrid"
IF_STOPPED = "readers see the same values, in old or in new chunks"


def compile_regrid(
    store: Store,
    vcz: Vcz,
    memory: Memory,
    *,
    sample_grid: str | None,
    samples_chunk: int | None,
    variants_chunk: int | None = None,
    shards: Mapping[str, int] = {},
    compressor: tuple[str, int] | None = None,
    regions: np.ndarray | None = None,
) -> Plan:
    """
    Compile a change of chunks, shards and compressors.

    Parameters
    ----------
    store, vcz
        The store, and its state when the plan will run.
    memory
        Memory limits of a task.
    sample_grid
        One of `vczstore.choices.SAMPLE_GRIDS`; None to keep it.
    samples_chunk
        The number of samples per chunk of a regular grid; for a flexible grid, the width up to which columns are
        merged. None to keep the columns.
    variants_chunk
        The number of variants per chunk; None to keep it.
    shards
        The numbers of variants and samples per shard, by dimension; 0 for no shards. Empty to keep them.
    compressor
        The compressor and level of Blosc, for all arrays; None to keep the compressors.
    regions
        The rows of ``region_index`` for the new `variants_chunk`; None to keep it.

    Raises
    ------
    UnsuitableError
        If the store cannot have a flexible grid or such shards, or chunks would be rewritten of plain Zarr that is
        not in a local folder.
    """
    vcz.require_whole(OPERATION)
    has_shards = any(shards.values())
    is_flexible = vcz.is_flexible if sample_grid is None else sample_grid == FLEXIBLE
    columns = merged(vcz.columns, samples_chunk) if is_flexible and samples_chunk else vcz.columns
    width = samples_chunk or vcz.chunk_lengths[SAMPLES]
    lengths = {} if variants_chunk is None else {VARIANTS: variants_chunk}
    after = {n: _regular(a, lengths) for n, a in _others(vcz, {**lengths, **shards}, compressor).items()}
    if has_shards:
        _require_shards(vcz, is_flexible)
    if is_flexible:
        require_flexible(OPERATION, vcz, without_shards=bool(shards))
        after |= {n: _flexible(array, columns, width, lengths) for n, array in vcz.samples_arrays.items()}
    else:
        after |= {n: _regular(array, {**lengths, SAMPLES: width}) for n, array in vcz.samples_arrays.items()}
    after = {name: _sharded(array, shards, vcz.label) for name, array in after.items()}
    if compressor is not None:
        after = {name: conversion.recompressed(array, *compressor) for name, array in after.items()}
    old = vcz.arrays
    changed = {n: a for n, a in after.items() if a is not old[n] and _grid_edit(a) != _grid_edit(old[n])}
    unchanged = {n: _unchanged(vcz.arrays[n], array) for n, array in changed.items() if n in vcz.samples_arrays}
    rewritten = {n: array for n, array in changed.items() if n in unchanged and unchanged[n][1] < vcz.n_samples}
    recoded = {n: array for n, array in changed.items() if n not in unchanged}
    compilers: dict[str, Callable[[], Recode | PutSamples]] = {
        **{n: partial(Recode.to, OPERATION, vcz.arrays[n], array, memory) for n, array in recoded.items()},
        **{n: partial(_moved, vcz.arrays[n], array, unchanged[n][1], memory) for n, array in rewritten.items()},
    }
    given = {"samples-chunk": samples_chunk, "variants-chunk": variants_chunk}
    given |= {f"{name}-shard": n for name, n in shards.items()}
    smaller = " or ".join(f"--{name}" for name, n in given.items() if n)
    compiled = compile_each(OPERATION, compilers, memory, smaller and f"a smaller {smaller}")
    edits: list[MetadataEdit] = [*map(_grid_edit, changed.values())]
    if regions is not None:
        written = other_regions(vcz.arrays[REGION_INDEX], regions)
        edits += [Delete(REGION_INDEX), written]
        changed[REGION_INDEX] = written.array
    planned = vcz.planned(changed, vcz.sample_ids)
    plan = Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        edits=(*edits, Consolidate(tuple(changed), vcz.zarr_format)) if changed else (),
        memory=memory,
        after=planned,
        if_stopped=IF_STOPPED,
        counts={"columns before": len(vcz.columns), "columns after": len(planned.columns)},
        notes=_wider_notes(columns, samples_chunk) if is_flexible and samples_chunk else {},
    )
    if not compiled:
        return plan
    puts = {name: write for name, write in compiled.items() if isinstance(write, PutSamples)}
    others = [write for name, write in compiled.items() if name not in puts]
    n_unchanged = {name: n for name, (n, _) in unchanged.items()}
    store = in_place(OPERATION, store, f"chunks of {store.label} would be rewritten")
    writes, preparations = keep_columns(store, vcz, n_unchanged, puts, others)
    rewriting = replace(plan, store=store, writes=writes, preparations=preparations, counts={})
    return replace(plan, edits=(), first_steps=(rewriting,))  # the only step


def look_up_regions(
    vcz: Vcz, variants_chunk: int | None, memory: Memory
) -> Generator[Survey, list[list[Any]], np.ndarray | None]:
    """Compute the rows of ``region_index`` for a new chunk length; None if it does not change, or there is no index."""
    if variants_chunk in (None, vcz.chunk_lengths[VARIANTS]) or REGION_INDEX not in vcz.arrays:
        return None
    assert variants_chunk is not None
    missing = [name for name in FIELDS if name not in vcz.arrays]
    if missing:
        raise UnsuitableError(
            f"{OPERATION}: {vcz.label} has a region_index, which counts chunks of variants, and no {missing[0]} from "
            "which another one could be made; delete region_index, or leave out --variants-chunk"
        )
    scan = IndexRows.of(vcz, Rows.of(np.array([[0, vcz.n_variants]])), variants_chunk)
    (index_rows,) = yield Survey(OPERATION, (scan,), memory)
    return IndexRows.joined(index_rows)


def _wider_notes(columns: Sequence[int], most: int) -> dict[str, str]:
    """A note for the user if columns are wider than `most`; they are not split."""
    wider = [width for width in columns if width > most]
    if not wider:
        return {}
    return {
        "not split": f"{len(wider):,} of {len(columns):,} columns have more than {most:,} samples, up to "
        f"{max(wider):,}; --sample-grid regular --samples-chunk {most} cuts all to one width"
    }


def merged(columns: Sequence[int], most: int) -> tuple[int, ...]:
    """
    Merge adjacent columns of similar width, up to a maximal width.

    From right to left, a column joins the run to its right if it is less than twice as wide as that run; else it begins
    another run. Widths of runs thus decrease from left to right by at least half, and if n samples are added one by
    one, each is re-encoded log2(n) times at most, as in the levels of a log-structured merge tree (O'Neil et al. 1996,
    doi:10.1007/s002360050048). Runs wider than `most` are then cut, between columns.

    Parameters
    ----------
    columns
        The widths of columns.
    most
        The maximal width of a merged column; wider columns are not split.

    Examples
    --------
    >>> merged((1000, 200, 150, 30, 1, 1), 1000)
    (1000, 350, 30, 2)
    >>> merged((1000, 1, 1, 1, 1, 1, 1, 1), 1000)
    (1000, 7)
    >>> merged((1, 1, 1, 1, 1), 4)
    (4, 1)
    """
    runs: list[list[int]] = []
    total = 0
    for width in reversed(columns):
        if width < 2 * total:
            runs[-1].append(width)
            total += width
        else:
            runs.append([width])
            total = width
    return tuple(width for run in reversed(runs) for width in _joined(reversed(run), most))


def _joined(columns: Iterable[int], most: int) -> list[int]:
    """Merge columns greedily from left to right, up to a width of `most`."""
    result: list[int] = []
    for width in columns:
        if result and result[-1] + width <= most:
            result[-1] += width
        else:
            result.append(width)
    return result


def _require_shards(vcz: Vcz, is_flexible: bool) -> None:
    """
    Check that the arrays of a store can have shards.

    Raises
    ------
    UnsuitableError
        If they are of format 2, or have or get a flexible grid.
    """
    if vcz.zarr_format == 2:
        raise UnsuitableError(
            f"{OPERATION}: {vcz.label} is of Zarr format 2, which has no shards; copy it, and regrid the copy: "
            f"vczstore copy-store-to-icechunk {vcz.label} NEW_STORE"
        )
    if is_flexible:
        raise UnsuitableError(
            f"{OPERATION}: shards have one width, and {vcz.label} has a flexible sample grid, or is to have one; add "
            "--sample-grid regular"
        )


def require_flexible(operation: str, vcz: Vcz, *, without_shards: bool = False) -> None:
    """
    Check that the arrays of a store can have a flexible grid.

    Raises
    ------
    UnsuitableError
        If they are of format 2, or have shards that are not removed by the same operation.
    """
    if vcz.zarr_format == 2:
        raise UnsuitableError(
            f"{operation}: {vcz.label} is of Zarr format 2, whose chunks have one width; copy it, and regrid the copy: "
            f"vczstore copy-store-to-icechunk {vcz.label} NEW_STORE"
        )
    for name, array in vcz.samples_arrays.items():
        if array.shards and not without_shards:
            raise UnsuitableError(
                f"{operation}: {name} of {vcz.label} has shards of {array.shards}, which have one width; take the "
                f"shards from it as well: vczstore regrid {vcz.label} --sample-grid flexible --samples-shard 0"
            )


def _others(vcz: Vcz, lengths: Mapping[str, int], compressor: object) -> dict[str, AnyArray]:
    """The arrays without samples that may change, except ``region_index``, which is replaced as a whole."""
    others = {n: a for n, a in vcz.arrays.items() if n not in vcz.samples_arrays and n != REGION_INDEX and has_grid(a)}
    return {n: a for n, a in others.items() if compressor is not None or {*lengths} & {*dimensions(a)}}


def _flexible(array: AnyArray, columns: Sequence[int], width: int, lengths: Mapping[str, int]) -> AnyArray:
    if not lengths and arrays.widths(array)[samples_axis(array) or 0] == tuple(columns):
        return array
    array = conversion.without_shards(array)
    cut = arrays.with_columns(array, samples_axis(array) or 0, columns, if_empty=width)
    if not lengths:
        return cut
    sides = zip(dimensions(array), arrays.widths(cut), strict=True)
    return arrays.with_widths(cut, [lengths.get(str(d), width) for d, width in sides])


def _regular(array: AnyArray, lengths: Mapping[str, int]) -> AnyArray:
    return conversion.in_format(array, array.metadata.zarr_format, chunks=lengths)


def _sharded(array: AnyArray, shards: Mapping[str, int], label: str) -> AnyArray:
    """
    The array with shards of the given lengths, by dimension; unchanged if it has none of these dimensions.

    Raises
    ------
    UnsuitableError
        If a shard would not hold whole chunks.
    """
    names = dimensions(array)
    if not {*shards} & {*names} or arrays.is_flexible(array):
        return array
    if not any(shards.values()):
        return conversion.without_shards(array)
    shape = [shards.get(str(d), n) for d, n in zip(names, arrays.outer_chunks(array), strict=True)]
    for name, n, chunk in zip(names, shape, array.chunks, strict=True):
        if n % chunk:
            raise UnsuitableError(
                f"{OPERATION}: {array.path} of {label} has chunks of {chunk:,} {name}, of which a shard of {n:,} holds "
                f"no whole number; let --{name}-shard be a multiple of {chunk}, or change --{name}-chunk as well"
            )
    return conversion.with_shards(array, shape)


def _grid_edit(array: AnyArray) -> SetShape:
    return SetShape.of(array, grid=True, codecs=True)


def _cut(array: AnyArray) -> Cuts:
    return arrays.cuts(array)[samples_axis(array) or 0]


def _unchanged(before: AnyArray, after: AnyArray) -> tuple[int, int]:
    """The number of leading columns that stay the same, and of their samples."""
    old, new = _cut(before), _cut(after)
    n = 0
    if not has_same_chunks(before, after, samples_axis(before) or 0):
        return 0, 0
    while n < min(old.n, new.n) and old.encoded(n) == new.encoded(n) and old.span(n) == new.span(n):
        n += 1
    return n, new.stop(n - 1) if n else 0


@dataclass(frozen=True)
class PutInColumns(PutSamples):
    """Write samples of an array into other columns of the same array."""

    def reading_from(self, store: "ZarrStore") -> "PutInColumns":
        """The same write, with the samples read from another store."""
        return replace(self, parts=tuple(replace(part, array=in_store(part.array, store)) for part in self.parts))


def _moved(before: AnyArray, after: AnyArray, start: int, memory: Memory) -> PutSamples:
    """The write of all samples from position `start` on to their new columns."""
    where = np.arange(start, _cut(after).length)
    return PutInColumns.of(OPERATION, before, after, [Part.make(before, where, where)], memory)
