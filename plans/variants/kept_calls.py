"""Calls of one array that are derived from kept blocks; see `plans.variants.kept_blocks`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from plans.variants.kept_blocks import GENOTYPE, SPANNED, KeptBlocks, decode_genotypes, field_of, is_phased
from vczstore.vcz import arrays
from vczstore.vcz.missing import INT_FILL, INT_MISSING, fill_value, mask_of, masked_by, missing_value

LOOKED_UP = 2**17
"""Maximum number of calls that are looked up in blocks together, except that one variant is the minimum."""


@dataclass(frozen=True)
class KeptCalls:
    """
    Calls of one array that are derived from the `field` of kept blocks of a VCZ.

    The array is planned, with the samples of the VCZ.
    """

    blocks: KeptBlocks
    name: str
    like: AnyArray
    field: int

    @classmethod
    def of(cls, blocks: KeptBlocks | None, name: str, like: AnyArray) -> "KeptCalls | None":
        """Return the calls of an array; None if there are no blocks, or they have no such field."""
        field = field_of(name)
        return None if blocks is None or field is None else cls(blocks, name, like, field)

    def put(
        self,
        values: np.ndarray,
        missing: np.ndarray,
        rows: np.ndarray,
        contigs: np.ndarray,
        positions: np.ndarray,
        samples: np.ndarray,
    ) -> None:
        """
        Fill in the calls of blocks, and missing calls where other records span a variant.

        Parameters
        ----------
        values : variants by samples by axes of a call
            Calls so far; they are changed in place.
        missing : variants by 1 by axes of a call
            Missing calls.
        rows, contigs, positions
            Rows of the variants in the store, and their contigs and positions.
        samples
            Indices of the samples in the VCZ.
        """
        for batch_variants, batch_samples in self._batches(rows, samples):
            coverage = self.blocks.look(contigs[batch_variants], positions[batch_variants], samples[batch_samples])
            variants, calls = np.nonzero(coverage.kinds == SPANNED)
            values[batch_variants[variants], batch_samples[calls]] = missing[batch_variants[variants], 0]
            variants, calls, chosen = coverage.of_blocks(self.field)
            values[batch_variants[variants], batch_samples[calls]] = self._values(chosen)

    def _batches(self, rows: np.ndarray, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield variants and samples to look up together: by chunks, so that all fields share cached results."""
        chunks, columns = rows // arrays.outer_chunks(self.like)[0], arrays.cuts(self.like)[1].of(samples)
        for column in np.unique(columns).tolist():
            in_column = np.flatnonzero(columns == column)
            step = _n_at_once(len(in_column))
            for chunk in np.unique(chunks).tolist():
                in_chunk = np.flatnonzero(chunks == chunk)
                for start in range(0, len(in_chunk), step):
                    yield in_chunk[start : start + step], in_column

    def _values(self, chosen: np.ndarray) -> np.ndarray:
        """Return the values of calls, given the field of the block of each call."""
        trailing = self.like.shape[2:]
        values = np.full((len(chosen), int(np.prod(trailing))), INT_FILL, dtype="i8")
        of_call = decode_genotypes(chosen, values.shape[1]) if self.field == GENOTYPE else chosen[:, np.newaxis]
        values[:, : of_call.shape[1]] = of_call
        if self.name.endswith("_phased"):
            values = is_phased(chosen)
        return self._as_stored(values).reshape(len(chosen), *trailing)

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """Convert values of blocks to the dtype of the array, or to a mask if the array is one."""
        base = masked_by(self.name)
        if base != self.name:
            return mask_of(self.name, base, self.blocks.blocks, values)
        result = values.astype(self.like.dtype)
        if result.dtype.kind == "f":
            result[values == INT_MISSING] = missing_value(self.name, self.like)
            result[values == INT_FILL] = fill_value(self.name, self.like)
        elif (result != values).any():
            raise ValueError(f"values such as {values[result != values][0]} do not fit into {result.dtype}")
        return result

    def reading_mem(self, n_variants: int, n_samples: int) -> int:
        """Memory for looking up some calls, in bytes."""
        return self.blocks.reading_mem(min(n_variants, _n_at_once(n_samples)), n_samples)


def _n_at_once(n_samples: int) -> int:
    """Return the number of variants whose calls of `n_samples` samples are looked up together."""
    return max(1, LOOKED_UP // max(1, n_samples))
