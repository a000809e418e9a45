"""Convert a VCF to a VCZ in the layout of a store, by bio2zarr, in steps that can run in other processes.

1. `Conversion.begin`: index the file, and split it into parts of about the same size;
2. `Conversion.explode`, for each part: write the fields of its records by column (bio2zarr's intermediate format);
3. `Conversion.lay_out`: define the arrays, and split them into ranges of chunks;
4. `Conversion.encode`, for each range: write its chunks;
5. `Conversion.end`: finalise the VCZ.

No step holds more than `Conversion.budget` bytes of the file: bio2zarr's buffers of all fields, or one row of chunks of
a field.
"""

import json
import math
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
from vczstore.vcz import arrays, metadata
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz

_MIB = 2**20

MAX_BUFFER = 16
"""The maximum buffer of bio2zarr per field, in MiB, which is its own default; smaller if memory does not allow it."""

COPIES = 2
"""The number of copies of a row of chunks in memory while it is encoded: bio2zarr's buffer, and zarr's chunks."""

MAX_CHUNK = 2**31 - 1
"""The maximum size of a chunk in bytes, as codecs take it."""

_NUMBERS = ("A", "R", "G", ".")
"""The Numbers of fields that bio2zarr knows, in addition to integers."""
_LOCAL_NUMBERS = ("LA", "LR", "LG")
_OTHER_NUMBERS = (*_LOCAL_NUMBERS, "P", "M")
"""The Numbers that VCF 4.5 defines in addition."""

_UNDECLARED = re.compile(rf"(INFO|FORMAT) '(\w+)'(?: at (\S+))? {UNDECLARED}")
"""HTSlib's warning about an undeclared field, which bio2zarr does not read."""

_EXTREME = re.compile(rf"Extreme (INFO|FORMAT)/(\S+) {EXTREME} at (\S+)")
"""HTSlib's warning about an integer that does not fit into 32 bits."""

_OF_A_RECORD = re.compile(
    r"Filter '(?P<filter>\S+)' was not|Max number of values (?P<n>\d+) .* for (?P<category>INFO|FORMAT)/(?P<name>\w+)"
)
"""bio2zarr's errors about a record, which lack its position."""

WARNED = threading.Event()
"""Set once HTSlib has warned of an extreme integer: it warns once per process, so later files need other processes."""

SENTINELS = (-1, -2)
"""Sentinels for a missing integer and for end-of-vector (VCF Zarr specification)."""

EXTENT = ("END", "SVLEN")
"""The INFO fields that define the length of a variant."""

GENOTYPE, PHASED = "call_genotype", "call_genotype_phased"

LEN = "LEN"
"""The FORMAT field that defines the length of a reference block (VCF 4.5)."""


@dataclass(frozen=True)
class Layout:
    """
    The layout of a converted VCZ.

    Attributes
    ----------
    variants, samples
        The chunk lengths.
    zarr_format
        2 or 3.
    encodings
        The dtype and numcodecs' Blosc configuration of arrays, by name; the latter is None for other compressors.
    info
        The INFO fields to convert in addition to `EXTENT`; None for all.
    sites_only
        Whether to convert no FORMAT field but `LEN`, which a reference block's length needs.
    is_narrow
        Whether chunks are at most as wide as the file's number of samples: then they can be columns of a flexible grid
        unchanged, and have no padding if they are decoded.
    begin
        The number of samples in the last, partial chunk column of the store; 0 if it is full.
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
        """Return the layout with which chunks can be copied to a store verbatim."""
        lengths = vcz.chunk_lengths
        encodings = {
            name: (array.dtype.str, metadata.blosc(array))
            for name, array in vcz.samples_arrays.items()
            if array.dtype.kind in "biuf"
        }
        info = [name.removeprefix("variant_") for name in vcz.arrays if name.startswith("variant_")]
        # in a flexible grid, new columns may be wider than existing ones, which may be of a single sample
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
        Yield the layouts of files with these numbers of samples, which are appended one after the other.

        A file, except the first, that begins within a chunk column is decoded anyway, so it gets narrow chunks: for
        hundreds of files of one sample, chunks as wide as the store's would be almost all padding.
        """
        begin = self.begin
        for i, n in enumerate(n_samples):
            # without `begin`, so that the cached conversion of a file is valid even if the store has grown
            yield replace(self, is_narrow=self.is_narrow or bool(i and begin % self.samples), begin=0)
            begin += n

    def samples_chunk(self, n_samples: int) -> int:
        """The chunk length along the samples axis for a file with `n_samples` samples."""
        return min(self.samples, max(1, n_samples)) if self.is_narrow else self.samples

    def wants(self, category: str, name: str) -> bool:
        """Whether to convert a field of the VCF."""
        match category:
            case "INFO":
                return name in EXTENT or self.info is None or name in self.info
            case "FORMAT":
                return not self.sites_only or name == LEN
            case _:
                return True

    @property
    def has_index(self) -> bool:
        """Whether ``region_index`` is made: only if all fields are converted, since it is not read from sources."""
        return self.info is None

    def applied_to(self, schema: Any) -> None:
        """
        Set the store's compressors in bio2zarr's schema, in place, and its dtypes where they can hold the values.

        If ``region_index`` is made, positions and lengths get 32 bits: bio2zarr adds them in their own dtype.
        """
        for array in schema.fields:
            if self.has_index and array.name in ("variant_position", "variant_length"):
                array.dtype = np.promote_types(array.dtype, "i4").name
            if (encoding := self.encodings.get(array.name)) is None:
                continue
            dtype, compressor = encoding
            # in a dtype of another kind, missing values would become actual numbers
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
    folder
        The folder of the result and of intermediate files; created by `begin`.
    layout
        The layout of the result.
    budget
        The maximum number of bytes of the file that a step may hold in memory.
    n_parts
        The maximum number of parts to split the file into.
    """

    operation: str
    file: VcfFile
    folder: Path
    layout: Layout
    budget: int
    n_parts: int

    @property
    def result(self) -> Path:
        """The path of the converted VCZ."""
        return self.folder / "source.vcz"

    @property
    def _columns(self) -> Path:
        return self.folder / "columns"

    def begin(self) -> int:
        """Index and split the file, and return the number of parts."""
        import numcodecs
        import pysam.bcftools
        from bio2zarr import vcf

        self.folder.mkdir()
        path = link(self.file, self.folder)
        # a new index: an existing one alongside the file may be stale, and hide records
        pysam.bcftools.index("--csi", "--output", f"{path}.csi", os.fspath(path), catch_stdout=False)
        n_columns = self.file.n_fields + 8
        buffer = max(1, min(MAX_BUFFER, self.budget // (2 * n_columns * _MIB)))
        summary = vcf.explode_init(
            self._columns,
            [path],
            column_chunk_size=buffer,
            target_num_partitions=self.n_parts,
            worker_processes=0,
            # fast compression, as these files are soon deleted
            compressor=numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.NOSHUFFLE),
        )
        self._adapt_fields()
        return int(summary.num_partitions)

    def explode(self, part: int) -> None:
        """Write the records of a part by column."""
        from bio2zarr import vcf

        vcf.explode_partition(self._columns, part)

    def lay_out(self) -> int:
        """Define the arrays, and return the number of ranges of chunks."""
        from bio2zarr import vcf

        self._require_all_records()
        vcf.explode_finalise(self._columns)
        columns = vcf.IntermediateColumnarFormat(self._columns)
        self._refuse_sentinels(columns)
        schema = columns.generate_schema(
            variants_chunk_size=self.layout.variants,
            samples_chunk_size=self.layout.samples_chunk(len(self.file.samples)),
        )
        self.layout.applied_to(schema)
        self._require_memory(schema)
        schema_path = self.folder / "schema.json"
        schema_path.write_text(schema.asjson())
        summary = vcf.encode_init(
            self._columns, self.result, self.n_parts, schema_path=schema_path, zarr_format=self.layout.zarr_format
        )
        return int(summary.num_partitions)

    def encode(self, part: int) -> None:
        """Write the chunks of a range."""
        from bio2zarr import vcf

        vcf.encode_partition(self.result, part)

    def end(self) -> None:
        """Finalise the VCZ."""
        from bio2zarr import vcf, vcz

        writer = vcz.VcfZarrWriter(vcf.IntermediateColumnarFormat, self.result, zarr_format=self.layout.zarr_format)
        writer.finalise()
        self._phase_haploid_calls()
        if self.layout.has_index and zarr.open_array(self.result, path="variant_position", mode="r").size:
            vcz.VcfZarrIndexer(self.result).create_index()
        self.file.require_unchanged(self.operation)
        shutil.rmtree(self._columns)

    def whole(self) -> None:
        """Run all steps, one after the other."""
        for part in range(self.begin()):
            self.explode(part)
        for part in range(self.lay_out()):
            self.encode(part)
        self.end()

    def _phase_haploid_calls(self) -> None:
        """Set `call_genotype_phased` of calls of one allele to True, chunk by chunk."""
        if not (self.result / GENOTYPE).exists():
            return
        genotype, phased = (zarr.open_array(self.result / name, mode="r+") for name in (GENOTYPE, PHASED))
        if genotype.shape[2] == 1:
            return
        rows, columns = phased.chunks
        for i in range(0, phased.shape[0], rows):
            for j in range(0, phased.shape[1], columns):
                chunk = (slice(i, i + rows), slice(j, j + columns))
                is_haploid = arrays.read(genotype, (*chunk, slice(1, 2)))[..., 0] == SENTINELS[1]
                # cyvcf2 sets this for haploid calls next to diploid ones; without any it reads beyond the genotypes
                if is_haploid.any() and not (values := arrays.read(phased, chunk))[is_haploid].all():
                    arrays.assign(phased, chunk, values | is_haploid)

    @property
    def _unfinished(self) -> Path:
        return self._columns / "wip"

    def _adapt_fields(self) -> None:
        """
        Adapt bio2zarr's metadata: remove fields that the layout does not want, which are then not read.

        The Numbers of VCF 4.4 and 4.5 that bio2zarr does not know become ``.``, a vector of any length; the header in
        the VCZ keeps them.
        """
        path = self._unfinished / "metadata.json"
        columns = json.loads(path.read_text())
        columns["fields"] = [f for f in columns["fields"] if self.layout.wants(f["category"], f["name"])]
        has_alleles = any(f["name"] == "LAA" for f in columns["fields"])
        for declared in columns["fields"]:
            number, name = str(declared["vcf_number"]), f"{declared['category']}/{declared['name']}"
            if number in _OTHER_NUMBERS:
                declared["vcf_number"] = "."
            elif number not in _NUMBERS and not re.fullmatch("[0-9]+", number):
                raise self._refused_field(name, f"with Number={number}, which VCF does not define")
            if number in _LOCAL_NUMBERS and not has_alleles:
                raise self._refused_field(
                    name, f"with Number={number}, and no FORMAT/LAA, which would say what its local alleles are"
                )
        path.write_text(json.dumps(columns))

    def _refused_field(self, name: str, what: str) -> VcfError:
        return VcfError(
            f"{self.operation}: {self.file.label} declares {name} {what}; correct its header, or leave out the field "
            f"with bcftools annotate -x {name}"
        )

    def _require_all_records(self) -> None:
        """Raise a `VcfError` unless as many records were read as the index counts: splitting may miss some."""
        columns = json.loads((self._unfinished / "metadata.json").read_text())
        parts = [self._unfinished / f"p{i}.json" for i in range(len(columns["partitions"]))]
        n = sum(json.loads(part.read_text())["num_records"] for part in parts)
        if n != columns["num_records"]:
            why = self._first_broken() or f"bio2zarr reads {n:,} of {columns['num_records']:,} records"
            raise VcfError(f"{self.operation}: {self.file.label} cannot be converted ({why}); correct it")

    def _require_memory(self, schema: Any) -> None:
        """Raise a `MemoryLimitError` if a row of chunks does not fit into the budget, or a chunk into a codec."""
        sizes = {array.name: array.variant_chunk_nbytes(schema) for array in schema.fields}
        chunks = {a.name: math.prod(a.get_chunks(schema)) * np.dtype(a.dtype).itemsize for a in schema.fields}
        largest = max(chunks, key=chunks.__getitem__)
        if chunks[largest] > MAX_CHUNK:
            shape = " x ".join(map(str, next(a for a in schema.fields if a.name == largest).get_chunks(schema)))
            raise MemoryLimitError(
                f"{self.operation}: {self.file.label}: a chunk of {largest} has {shape} values "
                f"({human_size(chunks[largest])}), and codecs take at most {human_size(MAX_CHUNK)}; make the store "
                "with smaller chunks (vczstore create --variants-chunk N --samples-chunk N), or leave the field out of "
                "the VCF with bcftools annotate -x"
            )
        together = sum(n for name, n in sizes.items() if name.startswith(("call_genotype", "variant_allele")))
        # a chunk wider than the file is padded as it is encoded
        needed = max(COPIES * max([together, *sizes.values()]), *(2 * n + chunks[name] for name, n in sizes.items()))
        if needed > self.budget:
            raise MemoryLimitError(
                f"{self.operation}: {self.file.label}: to encode {self.layout.variants:,} variants of "
                f"{len(self.file.samples):,} samples at once takes {human_size(needed)} of memory, and "
                f"{human_size(self.budget)} are allowed in addition to what Python takes; give it more with "
                "--allowed-mem, convert fewer samples at once, or make the store with smaller chunks (vczstore create "
                "--variants-chunk N --samples-chunk N)"
            )

    def _refuse_sentinels(self, columns: Any) -> None:
        """Raise a `VcfError` if calls have integers that are sentinels in a VCZ."""
        for name, column in columns.fields.items():
            declared = column.vcf_field
            is_number = (declared.category, declared.vcf_type) == ("FORMAT", "Integer") and declared.name != "GT"
            if not is_number or declared.summary.min_value >= 0:
                continue
            for i, values in enumerate(column.iter_values()):
                if values is not None and np.isin(values, SENTINELS).any():
                    number = values[np.isin(values, SENTINELS)][0]
                    where = [next(columns.fields[key].iter_values(i, i + 1))[0] for key in ("CHROM", "POS")]
                    raise VcfError(
                        f"{self.operation}: {self.file.label} has {number} for {name} at {':'.join(map(str, where))}, "
                        "which in VCF Zarr is a missing value (-1) or the end of a vector (-2), so that it would be "
                        f"lost; correct the value, or leave out the field with bcftools annotate -x {name}"
                    )

    def refuse_lost(self, stderr_text: str) -> None:
        """
        Raise a `VcfError` if HTSlib has warned of values that it does not read.

        They are values of undeclared fields that the layout wants; and too large integers in any field, since HTSlib
        warns of the first one only.
        """
        for category, name, where in _EXTREME.findall(stderr_text):
            raise VcfError(
                f"{self.operation}: {self.file.label} has a value of {category} {name} at {where} that takes more than "
                "32 bits, so that it would be lost; correct the value, or leave out the field with "
                f"bcftools annotate -x {category}/{name}"
            )
        for category, name, where in _UNDECLARED.findall(stderr_text):
            if self.layout.wants(category, name):
                raise VcfError(
                    f"{self.operation}: {self.file.label} has {category} {name}{f' at {where}' * bool(where)}, which "
                    f"its header does not declare, so that its values would be lost; add a line ##{category}=<ID={name}"
                    ",...> with bcftools annotate --header-lines"
                )

    def error(self, error: Exception, stderr_text: str) -> VczstoreError:
        """Return the error to raise for one of bio2zarr, HTSlib or storage."""
        if isinstance(error, OSError) and error.errno is not None:
            return VcfError(
                f"{self.operation}: {self.file.label} cannot be converted in {self.folder.parent.parent} "
                f"({error.strerror or error}); name another folder with --work-dir"
            )
        why = error_in(stderr_text) or error_in(str(error)) or self._first_broken() or first_line(error)
        why = f"{why.rstrip('.')}{self._where(why)}"
        remedy = "correct it, or copy it again"
        if re.search("Unsorted|not continuous", why):
            remedy = "sort it with bcftools sort"
        return VcfError(f"{self.operation}: {self.file.label} cannot be converted ({why}); {remedy}")

    def _first_broken(self) -> str:
        """Describe the first record that HTSlib cannot parse or bio2zarr does not read; empty if there is none."""
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
        """The position of the first record with an error that bio2zarr reports without it; empty if unknown."""
        if (match := _OF_A_RECORD.search(why)) is not None:
            with suppress(Exception):
                return next(f" at {r.chrom}:{r.pos}" for r in self._records() if _is_about(r, match))
        return ""

    def _records(self) -> Iterator[Any]:
        """Read the file's records with HTSlib."""
        import pysam

        (path,) = (p for p in self.folder.glob("source.*") if p.suffix in (".gz", ".bcf"))
        with quiet(), pysam.VariantFile(os.fspath(path)) as records:
            yield from records


def _is_about(record: Any, match: re.Match[str]) -> bool:
    """Whether a record has the filter, or the number of values of the field, in bio2zarr's message."""
    if match["filter"]:
        return match["filter"] in record.filter
    fields = [record.info] if match["category"] == "INFO" else record.samples.values()
    return max(np.size(values.get(match["name"], ())) for values in fields) == int(match["n"])


def do(conversion: Conversion, step: str, *arguments: int) -> int | None:
    """
    Run the method `step` of a conversion, and return its result. HTSlib's messages are captured, for errors.

    Raises
    ------
    VczstoreError
        If it fails, with a message of one line.
    """
    with captured() as stderr_text, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr and bio2zarr
        try:
            result: int | None = getattr(conversion, step)(*arguments)
        except VczstoreError:
            raise
        except Exception as error:
            raise conversion.error(error, stderr_text()) from error
        finally:
            if EXTREME in stderr_text():
                WARNED.set()
        conversion.refuse_lost(stderr_text())
        return result
