"""The scans of `verify` over the data of a store."""

import numpy as np

from plans.maintenance.check_blocks import BlockOrder
from plans.maintenance.check_chunks import Chunks, Outside
from plans.maintenance.check_metadata import CALL
from plans.maintenance.check_variants import Order
from plans.maintenance.findings import FindingScan
from vczstore.errors import VczstoreError
from vczstore.vcz.missing import TEXT
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, dimensions, has_grid, samples_axis


def data_scans(vcz: Vcz) -> list[FindingScan]:
    """Return scans over all chunks of a store, and over the order of its variants and kept blocks."""
    try:
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
    except VczstoreError:
        removed = np.empty(0, dtype="i8")  # the scan of chunks reports the damaged chunk
    alleles = vcz.arrays.get("variant_allele")
    if alleles is not None and (alleles.ndim != 2 or alleles.dtype.kind not in TEXT or not has_grid(alleles)):
        alleles = None
    regular = {name: array for name, array in (*vcz.arrays.items(), *vcz.inner.items()) if has_grid(array)}
    scans = [FindingScan(Outside(tuple(regular.items())).look, len(regular), 1, 0)]
    for name, array in regular.items():
        axis = samples_axis(array)
        is_genotype = name == "call_genotype" and array.dtype.kind == "i" and array.ndim == 3
        chunks = Chunks(
            name,
            array,
            axis if len(removed) and name != SAMPLE_ID else None,
            removed if axis is not None else removed[:0],
            alleles if is_genotype and dimensions(array)[:2] == CALL else None,
        )
        scans.append(chunks.scan())
    return [*scans, *Order.scans(vcz), *BlockOrder.scans(vcz)]
