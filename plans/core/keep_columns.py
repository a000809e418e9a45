"""Chunk columns that stay what they are, where others are re-encoded: they may get other numbers, and are never read.

In Icechunk the references to their chunks are renumbered; in the folder that takes the place of one on plain Zarr their
files are hard links.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from plans.core.copy_chunks import LinkChunks
from plans.core.gather_samples import PutSamples
from plans.core.model import Write
from vczstore.stores.base import Store
from vczstore.stores.edits import Edit
from vczstore.stores.folder_swap import LinkAllBut
from vczstore.vcz.model import Vcz, has_grid, samples_axis


def keep_columns(
    store: Store,
    vcz: Vcz,
    left: Mapping[str, int],
    puts: Mapping[str, PutSamples],
    others: Sequence[Write] = (),
) -> tuple[tuple[Write, ...], tuple[Edit, ...]]:
    """
    Let columns that stay what they are be where they belong.

    Parameters
    ----------
    store, vcz
        The store, whose writes become visible at once: where it is, and the state that it will be in.
    left
        How many columns at the beginning stay where they are, of the arrays that change, by name.
    puts
        What moves the samples of the other columns, of arrays of which there are any.
    others
        What rewrites arrays without samples.

    Returns
    -------
    writes : tuple of Write
        All of them; of `puts`, what re-encodes columns.
    preparations : tuple of Edit
        What comes before them.
    """
    moves = {
        n: tuple((t, o) for c in p.copied for t, o in zip(c.source_columns, c.columns, strict=True))
        for n, p in puts.items()
    }
    writes: list[Write] = []
    preparations: list[Edit] = []
    if store.begins_empty:
        known = {name: array for name, array in vcz.arrays.items() if has_grid(array)}
        for name, array in known.items():
            if any(write.name == name for write in others):
                continue
            columns = None
            if name in left:
                columns = (*((i, i) for i in range(left[name])), *moves.get(name, ()))
            writes.append(LinkChunks.of(array, columns))
        preparations.append(LinkAllBut.of(store, frozenset(known)))
    else:
        preparations += [
            store.renumbering(vcz.arrays[name], samples_axis(vcz.arrays[name]) or 0, columns)
            for name, columns in moves.items()
            if any(theirs != ours for theirs, ours in columns)
        ]
    writes += [*(replace(put, copied=()) for put in puts.values()), *others]
    return tuple(w for w in writes if w.encoded_chunks or w.decoded_chunks), tuple(preparations)
