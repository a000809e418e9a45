"""Calls that kept blocks tell, as an array of calls has them; see `plans.variants.kept_blocks`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from plans.variants.kept_blocks import GENOTYPE, SPANNED, KeptBlocks, decode_genotypes, field_of, is_phased
from vczstore.vcz import arrays
from vczstore.vcz.missing import INT_FILL, INT_MISSING, fill_value, mask_of, masked_by, missing_value

LOOKED_UP = 2**17
"""So many calls are looked up in blocks at a time."""


@dataclass(frozen=True)
class KeptCalls:
    """
    What the blocks of a VCZ tell of one array of calls.

    Attributes
    ----------
    blocks
        The blocks.
    name
        Of the array.
    like
        The array as it will be; it has the samples of the VCZ.
    field
        The field of blocks that tells its values.
    """

    blocks: KeptBlocks
    name: str
    like: AnyArray
    field: int

    @classmethod
    def of(cls, blocks: KeptBlocks | None, name: str, like: AnyArray) -> "KeptCalls | None":
        """None if there are no blocks, or they tell nothing of the array."""
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
        Put the calls of blocks where samples have one, and missing ones where something else spans a variant.

        Parameters
        ----------
        values : variants by samples by what a call has
            What they have so far.
        missing : variants by 1 by what a call has
            Missing calls.
        rows, contigs, positions
            Which variants of the store they are, and where.
        samples
            Which samples of the VCZ.
        """
        for at, who in self._looked_up(rows, samples):
            known = self.blocks.look(contigs[at], positions[at], samples[who])
            variants, calls = np.nonzero(known.kinds == SPANNED)
            values[at[variants], who[calls]] = missing[at[variants], 0]
            variants, calls, chosen = known.of_blocks(self.field)
            values[at[variants], who[calls]] = self._values(chosen)

    def _looked_up(self, rows: np.ndarray, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Which of some variants and samples are looked up together: by chunks, so that all fields ask for the same."""
        chunks, columns = rows // arrays.outer_chunks(self.like)[0], arrays.cuts(self.like)[1].of(samples)
        for column in np.unique(columns).tolist():
            who = np.flatnonzero(columns == column)
            step = _n_at_once(len(who))
            for chunk in np.unique(chunks).tolist():
                at = np.flatnonzero(chunks == chunk)
                for start in range(0, len(at), step):
                    yield at[start : start + step], who

    def _values(self, chosen: np.ndarray) -> np.ndarray:
        """The values of calls, each of which a block has."""
        trailing = self.like.shape[2:]
        values = np.full((len(chosen), int(np.prod(trailing))), INT_FILL, dtype="i8")
        of_call = decode_genotypes(chosen, values.shape[1]) if self.field == GENOTYPE else chosen[:, np.newaxis]
        values[:, : of_call.shape[1]] = of_call
        if self.name.endswith("_phased"):
            values = is_phased(chosen)
        return self._as_stored(values).reshape(len(chosen), *trailing)

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """Values of blocks as the array has them: values, or which of them are missing."""
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
        """What it takes to look some calls up."""
        return self.blocks.reading_mem(min(n_variants, _n_at_once(n_samples)), n_samples)


def _n_at_once(n_samples: int) -> int:
    """Of how many variants the calls of so many samples are looked up at a time."""
    return max(1, LOOKED_UP // max(1, n_samples))
