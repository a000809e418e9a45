"""Regrid: change the chunks, shards or compressors of a store."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import SAMPLE_GRID_HELP
from vczstore.choices import COMPRESSORS, DEFAULT_LEVEL, DEFAULT_SAMPLES_CHUNK, MAX_CHUNK, SAMPLE_GRIDS
from vczstore.declarations import option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


_WHEN = re.compile(r"columns\s*>\s*(?P<most>\d{1,9})|narrowest\s*<\s*(?P<least>\d{1,9})")


def _shard(what: str) -> Any:
    """Declare the length of a shard."""
    return option(
        None,
        f"Number of {what} per shard, for all arrays: a multiple of the chunk's. 0 removes the shards of all arrays.",
        metavar="N",
        bounds=(0, MAX_CHUNK),
        examples=(100000,),
        default_text="unchanged",
    )


@dataclass(frozen=True, kw_only=True)
class Regrid(Edit):
    """
    Change the chunks, shards or compressors of a store; all values stay the same.

    In a store with a flexible sample grid, each batch is appended as chunk columns of its own, without re-encoding
    existing chunks. With `samples_chunk`, adjacent narrow columns of similar width are merged, so that a sample is
    re-encoded a few times in total, not with each batch. A regular grid has chunks of one width, for readers that
    support no other, such as vcztools. Columns that stay the same are not touched. If chunks are rewritten, a local
    folder on plain Zarr is replaced by a new one, and plain Zarr elsewhere is refused. Readers that have such a folder
    open should open it again, since they would read new chunks with the old columns. A job regrids a store whenever
    there are columns to merge, so that the step can follow each batch; `when` makes it less frequent.

    Other chunks along the variants, or another compressor, re-encode all arrays concerned, chunk by chunk. A
    ``region_index``, which refers to chunks of variants, is then computed again from positions and lengths.

    A shard is an object that holds several chunks, so that a store has fewer objects. If only the shards change, chunks
    are copied into them verbatim. A shard has a length along variants and one along samples, as in Zarr's ``shards``,
    which are multiples of the chunk lengths; a length that is not given stays the same, or is one chunk if there are no
    shards. A task holds at least one shard. vcztools 0.2 does not read shards that hold several chunks.

    Raises
    ------
    OptionError
        If there is nothing to change, or only one of two shard lengths is 0.
    UnsuitableError
        If a flexible grid is requested for a store of format 2 or with shards, or shards for a store of format 2 or
        with a flexible grid; if a shard would not hold whole chunks; if chunks would be rewritten on plain Zarr that is
        not a local folder; or if the ``region_index`` cannot be computed again.
    MemoryLimitError
        If a shard exceeds the memory allowed for a task.

    Examples
    --------
    >>> regrid("cohort.icechunk", sample_grid="flexible").committed
    True
    """

    group: ClassVar[str] = "maintain"
    is_step: ClassVar[bool] = True
    needs_variants: ClassVar[bool] = True
    step_examples: ClassVar[tuple[Any, ...]] = (
        10000,
        {"when": "columns > 50"},
        {"sample-grid": "flexible", "samples-chunk": 10000},
    )

    sample_grid: str | None = option(
        None,
        SAMPLE_GRID_HELP,
        choices=SAMPLE_GRIDS,
        default_text="unchanged",
        examples=("flexible",),
    )
    samples_chunk: int | None = option(
        None,
        "Number of samples per chunk; in a flexible grid, the width up to which columns are merged. Wider ones stay.",
        flags=("--samples-chunk", "--sample-chunk"),
        metavar="N",
        bounds=(1, MAX_CHUNK),
        short=True,
        shorthand="the number of samples per chunk",
        examples=(10000,),
        default_text="the widest column, with when at least 1,000; in a flexible grid without when, none are merged",
    )
    variants_chunk: int | None = option(
        None,
        "Number of variants per chunk, for all arrays.",
        metavar="N",
        bounds=(1, MAX_CHUNK),
        examples=(10000,),
        default_text="unchanged",
    )
    samples_shard: int | None = _shard("samples")
    variants_shard: int | None = _shard("variants")
    compressor: str | None = option(
        None,
        "Compress all arrays by Blosc with this compressor.",
        choices=COMPRESSORS,
        examples=("zstd",),
        default_text="unchanged; zstd, with a level",
    )
    compression_level: int | None = option(
        None,
        "Level of compression; 0 stores chunks uncompressed.",
        metavar="N",
        bounds=(0, 9),
        examples=(7,),
        default_text="7, with a compressor",
    )
    when: str | None = option(
        None,
        "Change the width of chunks only when there are more than N chunk columns (`columns > N`), or when one has "
        "fewer than N samples (`narrowest < N`).",
        metavar="CONDITION",
        examples=("columns > 50", "narrowest < 500"),
        default_text="always",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.changed_options:
            raise OptionError(
                "regrid: nothing to change; give --sample-grid, --samples-chunk, --variants-chunk, --samples-shard, "
                "--variants-shard, --compressor or --when"
            )
        if 0 in (lengths := [n for n in (self.samples_shard, self.variants_shard) if n is not None]) and any(lengths):
            raise OptionError(
                f"regrid: samples-shard is {self.samples_shard} and variants-shard {self.variants_shard}; 0 stands for "
                "no shards at all: give 0 alone, or for one chunk its length"
            )
        if self.when is not None and not _WHEN.fullmatch(self.when):
            raise OptionError(f"regrid: when is {self.when!r}; write 'columns > N' or 'narrowest < N'")

    def is_due(self, columns: Sequence[int]) -> bool:
        """Whether columns of some widths fulfil the condition `when`; True if there is none."""
        if self.when is None:
            return True
        condition = _WHEN.fullmatch(self.when)
        assert condition is not None
        if condition["most"] is not None:
            return len(columns) > int(condition["most"])
        return min(columns, default=MAX_CHUNK) < int(condition["least"])

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the store; leftovers of an interrupted run are deleted, even if there is nothing else to do."""
        if written is not None:
            written.settle()
        return super().open(options, written)

    def compile(self, compiling: "Compiling") -> Stages:
        """Compile the change from metadata, and for a new ``region_index`` from a survey."""
        from plans.compilers.regrid import compile_regrid, look_up_regions
        from plans.core.model import with_notes

        regions = yield from look_up_regions(compiling.vcz, self.variants_chunk, compiling.memory)
        compressor = None
        if self.compressor is not None or self.compression_level is not None:
            level = DEFAULT_LEVEL if self.compression_level is None else self.compression_level
            compressor = self.compressor or COMPRESSORS[0], level
        plan = compile_regrid(
            compiling.store,
            compiling.vcz,
            compiling.memory,
            sample_grid=self.sample_grid,
            samples_chunk=self._width(compiling.vcz.columns),
            variants_chunk=self.variants_chunk,
            shards=self._shards,
            compressor=compressor,
            regions=regions,
        )
        if self.is_due(compiling.vcz.columns):
            return plan
        kept = "nothing to do" if plan.is_empty else "columns are kept"
        return with_notes(plan, f"{kept}: the condition {self.when!r} is not met")

    @property
    def _shards(self) -> dict[str, int]:
        """The lengths of a shard by dimension; 0 along both dimensions for no shards, empty to keep them."""
        options = {"samples": self.samples_shard, "variants": self.variants_shard}
        lengths = {name: n for name, n in options.items() if n is not None}
        return lengths if any(lengths.values()) else dict.fromkeys(options, 0) if lengths else {}

    def _width(self, columns: Sequence[int]) -> int | None:
        """The number of samples per chunk; None to keep the columns."""
        if self.when is None:
            return self.samples_chunk
        return (self.samples_chunk or max(DEFAULT_SAMPLES_CHUNK, *columns)) if self.is_due(columns) else None
