"""Chunk columns that are kept unchanged while others are re-encoded. Their indices may change, and they are never read.

In Icechunk the references to their chunks are renumbered. On plain Zarr, where a new folder replaces the store, their
files are hard-linked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from plans.core.copy_chunks import LinkChunks
from plans.core.gather_samples import PutSamples
from plans.core.model import Write
from vczstore.stores.base import Store
from vczstore.stores.edits import MetadataEdit
from vczstore.stores.folder_swap import LinkAllBut
from vczstore.vcz.model import Vcz, has_grid, samples_axis


def keep_columns(
    store: Store,
    vcz: Vcz,
    n_unchanged: Mapping[str, int],
    puts: Mapping[str, PutSamples],
    others: Sequence[Write] = (),
) -> tuple[tuple[Write, ...], tuple[MetadataEdit, ...]]:
    """
    Replace the verbatim copies of columns by renumbered references or hard links.

    Parameters
    ----------
    store, vcz
        The store, whose writes become visible together, and its state when the plan will run.
    n_unchanged
        For each array that changes, the number of leading columns that stay in place.
    puts
        Writes of the samples in the remaining columns, by the name of the array.
    others
        Writes of arrays without samples.

    Returns
    -------
    writes, preparations
        Links, the re-encoding part of `puts`, and `others`; edits to apply before the writes.
    """
    moves = {
        n: tuple((t, o) for c in p.copied for t, o in zip(c.source_columns, c.columns, strict=True))
        for n, p in puts.items()
    }
    writes: list[Write] = []
    preparations: list[MetadataEdit] = []
    if store.begins_empty:
        linked = {name: array for name, array in vcz.arrays.items() if has_grid(array)}
        for name, array in linked.items():
            if any(write.name == name for write in others):
                continue
            columns = None
            if name in n_unchanged:
                columns = (*((i, i) for i in range(n_unchanged[name])), *moves.get(name, ()))
            writes.append(LinkChunks.of(array, columns))
        preparations.append(LinkAllBut.of(store, frozenset(linked)))
    else:
        preparations += [
            store.renumbering(vcz.arrays[name], samples_axis(vcz.arrays[name]) or 0, columns)
            for name, columns in moves.items()
            if any(theirs != ours for theirs, ours in columns)
        ]
    writes += [*(replace(put, copied=()) for put in puts.values()), *others]
    return tuple(writes), tuple(preparations)
