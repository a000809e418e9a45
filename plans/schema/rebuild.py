"""Rebuild: re-encode all chunks of arrays that need a wider dtype or another axis.

Old and new chunks have the same keys, so tasks never read the state that they write: on Icechunk they read the base
snapshot, and a local folder is replaced by a new one, in which unchanged chunks are hard links. The values are the same
before and after.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from zarr.types import AnyArray

from plans.core.copy_chunks import LinkChunks
from plans.core.memory import Memory
from plans.core.model import Plan, Write
from plans.schema.layout import STRINGS, Form, Layout, has_no_samples
from plans.schema.widen import Rewritten
from plans.variants.allele_dimensions import widened_array
from vczstore.errors import IncompatibleError, OptionError, StorageError, UnsuitableError
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, Delete, MetadataEdit, WriteDocuments
from vczstore.stores.folder_swap import LinkAllBut
from vczstore.vcz import arrays, conversion, metadata
from vczstore.vcz.model import Vcz, dimensions, has_grid


def rebuilt_arrays(operation: str, vcz: Vcz, layout: Layout, texts: Sequence[str] = ()) -> dict[str, AnyArray]:
    """
    Return the arrays of a store that must be rebuilt, as they will be: writing additional chunks is not enough.

    `texts` are arrays of fixed-width strings that become variable-length strings.

    Raises
    ------
    IncompatibleError
        If an array has a codec that does not support the new dtype.
    """
    if has_no_samples(vcz):
        return {}
    result = {}
    for name, array in vcz.arrays.items():
        form = layout.forms.get(name) or Form.of(array)
        if name in texts and array.dtype.kind in "US":
            form = replace(form, dtype=STRINGS)
        grown = widened_array(array, layout.lengths).shape
        n_longer = sum(n != m for n, m in zip(array.shape, grown, strict=True))
        if (form.dtype, form.dimensions) == (array.dtype, dimensions(array)) and n_longer < 2:
            continue
        lengths = (layout.lengths.get(str(d), n) for d, n in zip(form.dimensions, form.lengths, strict=True))
        shape = (*grown, *list(lengths)[array.ndim :])
        try:
            result[name] = conversion.reformed(array, dtype=form.dtype, shape=shape, dimension_names=form.dimensions)
        except metadata.UnsupportedCodecError as error:
            raise IncompatibleError(
                f"{operation}: {name} of {vcz.label} has {array.dtype} over {dimensions(array)} and needs "
                f"{form.dtype} over {form.dimensions}, which its {error} does not take; make the store with bio2zarr"
            ) from error
    return result


def compile_rebuild(operation: str, store: Store, vcz: Vcz, targets: Mapping[str, AnyArray], memory: Memory) -> Plan:
    """
    Compile the re-encoding of arrays of a store to `targets`, as they will be; their values do not change.

    Raises
    ------
    UnsuitableError
        If the store is on plain Zarr, but not a local folder that can be replaced.
    """
    writes: list[Write] = [Rewritten.of(operation, vcz.arrays[name], after, memory) for name, after in targets.items()]
    store = in_place(operation, store, f"{', '.join(targets)} of {store.label} would be re-encoded")
    preparations: list[MetadataEdit] = []
    if store.begins_empty:
        others = [a for n, a in vcz.arrays.items() if n not in targets and has_grid(a)]
        linked = [LinkChunks.of(a) for a in others]
        preparations.append(LinkAllBut.of(store, frozenset([*targets, *(link.name for link in linked)])))
        writes += linked
    preparations += [Delete(name) for name, array in targets.items() if array.ndim != vcz.arrays[name].ndim]
    preparations += [WriteDocuments.of(array) for array in targets.values()]
    return Plan(
        operation=operation,
        store=store,
        base=vcz.state,
        writes=tuple(writes),
        edits=(Consolidate(tuple(targets), vcz.zarr_format),),
        memory=memory,
        after=replace(vcz, arrays={**vcz.arrays, **targets}),
        if_stopped="readers see the same values, perhaps in wider arrays",
        preparations=tuple(preparations),
    )


def in_place(operation: str, store: Store, what: str, instead: str = "") -> Store:
    """
    Return the store to which new chunks are written while tasks read the old ones.

    Raises
    ------
    UnsuitableError
        If the store is on plain Zarr, but not a local folder that can be replaced. The message has
        `what` would be done, and `instead` as an alternative.
    """
    try:
        return store.in_place()
    except (OptionError, StorageError) as error:
        way_out = f"make a store that takes this in one commit: vczstore copy-store-to-icechunk {store.label} NEW_STORE"
        way_out += f", or {instead}" if instead else ""
        if store.folder is None:
            raise UnsuitableError(
                f"{operation}: {what}, which on plain Zarr takes a folder of this machine: elsewhere readers would see "
                f"one half of it; {way_out}"
            ) from error
        why = str(error).partition(": ")[2].partition("; ")[0]
        raise UnsuitableError(f"{operation}: {what}, for which the folder is replaced, but {why}; {way_out}") from error


def wider_notes(vcz: Vcz, targets: Mapping[str, AnyArray], widened: Mapping[str, AnyArray]) -> dict[str, str]:
    """Return a note for the user on the dtypes and axes of arrays that are widened, before and after."""
    texts = []
    for name, after in sorted({**widened, **targets}.items()):
        before = vcz.arrays[name]
        changes = [f"{before.dtype} to {after.dtype}"] if before.dtype != after.dtype else []
        old = dict(zip(dimensions(before), before.shape, strict=True))
        changes += [
            f"{d} {old.get(d, 'none')} to {n}"
            for d, n in zip(dimensions(after), after.shape, strict=True)
            if d not in ("samples", "variants") and old.get(d) != n
        ]
        texts += [f"{name} ({', '.join(changes)})"] if changes else []
    return {"widened": "; ".join(texts)} if texts else {}


def cost(plan: Plan) -> dict[str, int]:
    """Return the numbers of chunks and decoded bytes that are re-encoded."""
    rewrites = [write for write in plan.writes if isinstance(write, Rewritten)]
    n_bytes = sum(math.prod(w.target.shape) * arrays.element_bytes(w.target) for w in rewrites)
    return {"chunks re-encoded": sum(w.decoded_chunks for w in rewrites), "bytes re-encoded": n_bytes}
