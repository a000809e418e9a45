"""From a VCF to a VCZ in the layout of a store, by bio2zarr: in steps, which other processes can do, too.

1. `Conversion.begin`: index the file, and cut it into parts of about the same size;
2. `Conversion.explode`, for each part: write the fields of its records by columns (bio2zarr's intermediate format);
3. `Conversion.lay_out`: say what the arrays are like, and cut them into ranges of chunks;
4. `Conversion.encode`, for each range: write its chunks;
5. `Conversion.end`: put all together.

No step holds more than `Conversion.budget` bytes of the file: bio2zarr buffers so much of each field, and a row of
chunks of one field.
"""

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vczstore.choices import DEFAULT_SAMPLES_CHUNK
from vczstore.errors import MemoryLimitError, VcfError, VczstoreError, first_line
from vczstore.sizes import human_size
from vczstore.vcf.files import EXTREME, UNDECLARED, VcfFile, captured, error_in, link, quiet
from vczstore.vcz import metadata
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz

_MIB = 2**20

MAX_BUFFER = 16
"""MiB of a field that bio2zarr gathers before it writes them, if memory allows; its own default."""

COPIES = 2
"""How often a row of chunks is held while it is encoded: as it is gathered, and as zarr takes chunks out of it."""

_UNDECLARED = re.compile(rf"(INFO|FORMAT) '(\w+)'(?: at (\S+))? {UNDECLARED}")
"""What HTSlib says of a field of which bio2zarr reads nothing."""

_EXTREME = re.compile(rf"Extreme (INFO|FORMAT)/(\S+) {EXTREME} at (\S+)")

_OF_A_RECORD = re.compile(
    r"Filter '(?P<filter>\S+)' was not|Max number of values (?P<n>\d+) .* for (?P<category>INFO|FORMAT)/(?P<name>\w+)"
)
"""What bio2zarr says of a record without its position."""

WARNED = threading.Event()
"""Set once HTSlib has said so: it does that once in a process, so that later files have to be read in others."""

MARKS = (-1, -2)
"""What stands for a missing integer, and for the end of a vector (VCF Zarr specification)."""

EXTENT = ("END", "SVLEN")
"""The INFO fields that say how long a variant is."""

LEN = "LEN"
"""The FORMAT field that says how long a reference block is (VCF 4.5)."""


@dataclass(frozen=True)
class Layout:
    """
    What a VCZ is going to be like.

    Attributes
    ----------
    variants, samples
        The chunk lengths.
    zarr_format
        2 or 3.
    encodings
        The dtype and the Blosc compressor of arrays, by name; None where it is another compressor.
    info
        The INFO fields that are of use, beside those that say how long a variant is; None for all.
    sites_only
        Whether no calls are of use, but what they say of the length of a reference block.
    is_narrow
        Whether a chunk is no longer than the file has samples, so that it is a column of a flexible grid as it is, and
        has no fill where it is decoded anyway.
    begin
        How many samples the last chunk column of the store has, if it is not full.
    """

    variants: int
    samples: int
    zarr_format: int = 3
    encodings: Mapping[str, tuple[str, Mapping[str, Any] | None]] = field(default_factory=dict)
    info: Collection[str] | None = ()
    sites_only: bool = False
    is_narrow: bool = False
    begin: int = 0

    @classmethod
    def of(cls, vcz: Vcz) -> "Layout":
        """The layout of a store, so that chunks can be copied to it as they are."""
        lengths = vcz.chunk_lengths
        encodings = {
            name: (array.dtype.str, metadata.blosc(array))
            for name, array in vcz.samples_arrays.items()
            if array.dtype.kind in "biuf"
        }
        info = [name.removeprefix("variant_") for name in vcz.arrays if name.startswith("variant_")]
        # columns that are there do not say how wide new ones may be: the first batch may have been one sample
        samples = max(1, lengths[SAMPLES], DEFAULT_SAMPLES_CHUNK if vcz.is_flexible and vcz.columns else 1)
        return cls(
            max(1, lengths[VARIANTS]),
            samples,
            vcz.zarr_format,
            encodings,
            sorted(info),
            is_narrow=vcz.is_flexible,
            begin=vcz.n_samples % samples,
        )

    def of_each(self, n_samples: Sequence[int]) -> Iterator["Layout"]:
        """
        The layouts of files of so many samples, which come in one after the other.

        The columns of a file that begins in the middle of one are decoded; of hundreds of files of one sample, chunks
        as wide as those of the store would be all fill.
        """
        begin = self.begin
        for i, n in enumerate(n_samples):
            # without `begin`: a file is not converted again since a store has grown meanwhile
            yield replace(self, is_narrow=self.is_narrow or bool(i and begin % self.samples), begin=0)
            begin += n

    def samples_chunk(self, n_samples: int) -> int:
        """The chunk length along the samples of a file that has so many."""
        return min(self.samples, max(1, n_samples)) if self.is_narrow else self.samples

    def wants(self, category: str, name: str) -> bool:
        """Whether a field of the VCF is of use."""
        match category:
            case "INFO":
                return name in EXTENT or self.info is None or name in self.info
            case "FORMAT":
                return not self.sites_only or name == LEN
            case _:
                return True

    def applied_to(self, schema: Any) -> None:
        """Give arrays of bio2zarr's schema the dtype and the compressor that they have here, where values allow it."""
        for array in schema.fields:
            if (known := self.encodings.get(array.name)) is None:
                continue
            dtype, compressor = known
            # of another kind, missing values would become numbers
            is_kind = np.dtype(array.dtype).kind == np.dtype(dtype).kind != "u"
            if is_kind and np.can_cast(np.dtype(array.dtype), np.dtype(dtype), "safe"):
                array.dtype = np.dtype(dtype).newbyteorder("=").str.lstrip("<=|")
            if compressor is not None:
                array.compressor = dict(compressor)


@dataclass(frozen=True)
class Conversion:
    """
    The conversion of one file, in a folder of its own.

    Attributes
    ----------
    operation
        For messages.
    file
        What is converted.
    folder
        Where all is that it takes.
    layout
        What the result is like.
    budget
        How many bytes a step may hold of the file.
    n_parts
        How many parts the file is cut into, at most.
    """

    operation: str
    file: VcfFile
    folder: Path
    layout: Layout
    budget: int
    n_parts: int

    @property
    def result(self) -> Path:
        """The VCZ."""
        return self.folder / "source.vcz"

    @property
    def _columns(self) -> Path:
        return self.folder / "columns"

    def begin(self) -> int:
        """Index the file, and cut it; returns how many parts there are."""
        import numcodecs
        import pysam.bcftools
        from bio2zarr import vcf

        self.folder.mkdir()
        path = link(self.file, self.folder)
        # its own: an index that lies beside the file may be that of an older one, and hide records
        pysam.bcftools.index("--csi", "--output", f"{path}.csi", os.fspath(path), catch_stdout=False)
        n_columns = self.file.n_fields + 8
        buffer = max(1, min(MAX_BUFFER, self.budget // (2 * n_columns * _MIB)))
        found = vcf.explode_init(
            self._columns,
            [path],
            column_chunk_size=buffer,
            target_num_partitions=self.n_parts,
            worker_processes=0,
            # what is soon deleted is compressed quickly
            compressor=numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.NOSHUFFLE),
        )
        self._leave_out_fields()
        return int(found.num_partitions)

    def explode(self, part: int) -> None:
        """Write the records of a part by columns."""
        from bio2zarr import vcf

        vcf.explode_partition(self._columns, part)

    def lay_out(self) -> int:
        """Say what the arrays are like; returns how many ranges of chunks there are."""
        from bio2zarr import vcf

        self._require_all_records()
        vcf.explode_finalise(self._columns)
        columns = vcf.IntermediateColumnarFormat(self._columns)
        self._refuse_marks(columns)
        schema = columns.generate_schema(
            variants_chunk_size=self.layout.variants,
            samples_chunk_size=self.layout.samples_chunk(len(self.file.samples)),
        )
        self.layout.applied_to(schema)
        self._require_memory(schema)
        described = self.folder / "schema.json"
        described.write_text(schema.asjson())
        found = vcf.encode_init(
            self._columns, self.result, self.n_parts, schema_path=described, zarr_format=self.layout.zarr_format
        )
        return int(found.num_partitions)

    def encode(self, part: int) -> None:
        """Write the chunks of a range."""
        from bio2zarr import vcf

        vcf.encode_partition(self.result, part)

    def end(self) -> None:
        """Put all together; with region_index only if it is taken whole, since it is not read from other sources."""
        from bio2zarr import vcf, vcz

        writer = vcz.VcfZarrWriter(vcf.IntermediateColumnarFormat, self.result, zarr_format=self.layout.zarr_format)
        writer.finalise()
        if self.layout.info is None and zarr.open_array(self.result, path="variant_position", mode="r").size:
            vcz.VcfZarrIndexer(self.result).create_index()
        self.file.require_unchanged(self.operation)
        shutil.rmtree(self._columns)

    def whole(self) -> None:
        """All steps, one after the other."""
        for part in range(self.begin()):
            self.explode(part)
        for part in range(self.lay_out()):
            self.encode(part)
        self.end()

    @property
    def _unfinished(self) -> Path:
        return self._columns / "wip"

    def _leave_out_fields(self) -> None:
        """Have fields not read that are of no use: those of INFO may be larger than all others."""
        path = self._unfinished / "metadata.json"
        said = json.loads(path.read_text())
        said["fields"] = [one for one in said["fields"] if self.layout.wants(one["category"], one["name"])]
        path.write_text(json.dumps(said))

    def _require_all_records(self) -> None:
        """Raise a `VcfError` if other records were read than the index counts: regions may hide some."""
        said = json.loads((self._unfinished / "metadata.json").read_text())
        parts = [self._unfinished / f"p{i}.json" for i in range(len(said["partitions"]))]
        n = sum(json.loads(part.read_text())["num_records"] for part in parts)
        if n != said["num_records"]:
            why = self._first_broken() or f"bio2zarr reads {n:,} of {said['num_records']:,} records"
            raise VcfError(f"{self.operation}: {self.file.label} cannot be converted ({why}); correct it")

    def _require_memory(self, schema: Any) -> None:
        """Raise a `MemoryLimitError` if a row of chunks is too large."""
        sizes = {array.name: array.variant_chunk_nbytes(schema) for array in schema.fields}
        together = sum(n for name, n in sizes.items() if name.startswith(("call_genotype", "variant_allele")))
        needed = COPIES * max([together, *sizes.values()])
        if needed > self.budget:
            raise MemoryLimitError(
                f"{self.operation}: {self.file.label}: to encode {self.layout.variants:,} variants of "
                f"{len(self.file.samples):,} samples at once takes {human_size(needed)} of memory, and "
                f"{human_size(self.budget)} are allowed beside what Python takes; give it more with --allowed-mem, or "
                "convert fewer samples at once"
            )

    def _refuse_marks(self, columns: Any) -> None:
        """Raise a `VcfError` if calls have integers that stand for something else in a VCZ."""
        for name, values in columns.fields.items():
            said = values.vcf_field
            is_number = (said.category, said.vcf_type) == ("FORMAT", "Integer") and said.name != "GT"
            if not is_number or said.summary.min_value >= 0:
                continue
            for i, found in enumerate(values.iter_values()):
                if found is not None and np.isin(found, MARKS).any():
                    number = found[np.isin(found, MARKS)][0]
                    where = [next(columns.fields[one].iter_values(i, i + 1))[0] for one in ("CHROM", "POS")]
                    raise VcfError(
                        f"{self.operation}: {self.file.label} has {number} for {name} at {':'.join(map(str, where))}, "
                        "which in VCF Zarr is a missing value (-1) or the end of a vector (-2), so that it would be "
                        f"lost; correct the value, or leave out the field with bcftools annotate -x {name}"
                    )

    def refuse_lost(self, told: str) -> None:
        """
        Raise a `VcfError` if HTSlib has told of values that it does not read.

        That is of an undeclared field, if it is of use; and of an integer that is too large in any field, since HTSlib
        tells of the first one alone.
        """
        for category, name, where in _EXTREME.findall(told):
            raise VcfError(
                f"{self.operation}: {self.file.label} has a value of {category} {name} at {where} that takes more than "
                "32 bits, so that it would be lost; correct the value, or leave out the field with "
                f"bcftools annotate -x {category}/{name}"
            )
        for category, name, where in _UNDECLARED.findall(told):
            if self.layout.wants(category, name):
                raise VcfError(
                    f"{self.operation}: {self.file.label} has {category} {name}{f' at {where}' * bool(where)}, which "
                    f"its header does not declare, so that its values would be lost; add a line ##{category}=<ID={name}"
                    ",...> with bcftools annotate --header-lines"
                )

    def error(self, error: Exception, told: str) -> VczstoreError:
        """What to tell the user about an error of bio2zarr, HTSlib or storage."""
        if isinstance(error, OSError) and error.errno is not None:
            return VcfError(
                f"{self.operation}: {self.file.label} cannot be converted in {self.folder.parent.parent} "
                f"({error.strerror or error}); name another folder with --work-dir"
            )
        why = error_in(told) or error_in(str(error)) or self._first_broken() or first_line(error)
        why = f"{why.rstrip('.')}{self._where(why)}"
        way_out = "correct it, or copy it again"
        if re.search("Unsorted|not continuous", why):
            way_out = "sort it with bcftools sort"
        return VcfError(f"{self.operation}: {self.file.label} cannot be converted ({why}); {way_out}")

    def _first_broken(self) -> str:
        """Which record HTSlib cannot parse, or bio2zarr does not read; empty if there is none."""
        n, last = 0, ""
        try:
            for record in self._records():
                n, last = n + 1, f" after {record.chrom}:{record.pos}"
                if record.pos < 1:
                    return f"record {n:,} is at {record.chrom}:0, a telomere, which bio2zarr does not read"
        except Exception:
            return f"record {n + 1:,}{last} cannot be parsed"
        return ""

    def _where(self, why: str) -> str:
        """At which record that is first, which bio2zarr does not say of all that it finds; empty if it is not known."""
        if (found := _OF_A_RECORD.search(why)) is not None:
            with suppress(Exception):
                return next(f" at {one.chrom}:{one.pos}" for one in self._records() if _is_about(one, found))
        return ""

    def _records(self) -> Iterator[Any]:
        """The records as HTSlib reads them."""
        import pysam

        (path,) = (one for one in self.folder.glob("source.*") if one.suffix in (".gz", ".bcf"))
        with quiet(), pysam.VariantFile(os.fspath(path)) as records:
            yield from records


def _is_about(record: Any, found: re.Match[str]) -> bool:
    """Whether a record has the filter, or so many values of the field, that bio2zarr tells of."""
    if found["filter"]:
        return found["filter"] in record.filter
    of = [record.info] if found["category"] == "INFO" else record.samples.values()
    return max(np.size(one.get(found["name"], ())) for one in of) == int(found["n"])


def do(conversion: Conversion, step: str, *arguments: int) -> int | None:
    """
    Do one step of a conversion; what HTSlib tells of it meanwhile goes into the error, or is not told.

    Raises
    ------
    VczstoreError
        If it fails, in one line.
    """
    with captured() as told, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's and bio2zarr's own affair
        try:
            result: int | None = getattr(conversion, step)(*arguments)
        except VczstoreError:
            raise
        except Exception as error:
            raise conversion.error(error, told()) from error
        finally:
            if EXTREME in told():
                WARNED.set()
        conversion.refuse_lost(told())
        return result
