"""Export to VCF and BCF with vcztools."""

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

import numpy as np
from zarr.types import AnyArray

from plans.compilers.export import NO_VARIANTS, Chosen
from plans.core.model import AFTERWARDS
from plans.variants.info_fields import FIELDS
from plans.variants.regions import Region
from plans.variants.stale import array_name, stale
from vczstore.choices import STANDARD_OUTPUT
from vczstore.errors import StorageError, UnsuitableError, VczstoreError, first_line, missing_extra
from vczstore.execution.engine import planning
from vczstore.execution.results import AsDict
from vczstore.stores.locations import local_path
from vczstore.vcz import vcf_headers
from vczstore.vcz.model import REMOVED, SAMPLES, VARIANTS, Vcz, dimensions, has_grid, listing

if TYPE_CHECKING:
    from vcztools import VczReader

OPERATION, GENOTYPE = "export", "call_genotype"


@dataclass(frozen=True)
class Exported(AsDict):
    """
    The result of an export to VCF or BCF.

    Attributes
    ----------
    store, snapshot
        Label of the exported store, and its snapshot; the latter None on plain Zarr.
    out
        Path of the file, or `STANDARD_OUTPUT`.
    samples
        Number of exported samples.
    notes
        Messages for the user, such as about INFO fields that were left out.
    written
        False after a dry run.
    seconds
        Elapsed time.
    """

    store: str
    snapshot: str | None
    out: str
    samples: int
    notes: Sequence[str]
    written: bool
    seconds: float = field(compare=False)

    @property
    def is_printed(self) -> bool:
        """Whether standard output has the VCF, so that messages must not be printed there."""
        return self.out == STANDARD_OUTPUT

    def lines(self) -> list[str]:
        if self.is_printed and self.written:
            return [f"{OPERATION}: {note}" for note in self.notes]
        outcome = f"in {self.seconds:.2f} s" if self.written else "(dry run, nothing was written)"
        head = f"{OPERATION} {self.out}: {self.samples:,} samples of {self.store} {outcome}"
        return [head, *(f"  {AFTERWARDS:<7} {note}" for note in self.notes)]


def export_vcf(vcz: Vcz, chosen: Chosen, regions: Sequence[Region], out: str, *, dry_run: bool) -> Exported:
    """
    Write samples of a VCZ to standard output, or to a VCF or BCF file that gets its final name when it is complete.

    Parameters
    ----------
    vcz, chosen
        The VCZ, and the samples to write.
    regions
        Regions to write; all variants if empty.
    out
        Path of the file, or `STANDARD_OUTPUT`.
    dry_run
        Whether to check only that it can be written.
    """
    started = time.perf_counter()
    path = check_vcf(vcz, out)
    if path is not None and os.path.lexists(path):
        raise UnsuitableError(f"{OPERATION}: {out} exists; choose another path")
    left_out = _stale(vcz, chosen)
    notes = [*chosen.notes]
    if left_out:
        fields = listing([f"INFO/{name}" for name in sorted(left_out)])
        notes.append(
            f"left out, since samples were added, changed or removed after they were computed: {fields}; vczstore "
            "recompute updates them"
        )
    with planning(OPERATION):
        with _explained(vcz, path):
            content = _Content(vcz, chosen.positions, _rows(vcz, chosen.positions, regions), left_out)
        if content.rows == []:
            notes.append(NO_VARIANTS)
        if dry_run:
            pass
        elif path is None:
            _print(content)
        else:
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
                _publish(_write(content, path, Path(folder)), path)
    n = len(chosen.positions)
    return Exported(vcz.label, vcz.snapshot, out, n, notes, not dry_run, time.perf_counter() - started)


_RECOUNTED = frozenset({"AC", "AN"})
"""INFO fields that vcztools computes from the genotypes."""


def _stale(vcz: Vcz, chosen: Chosen) -> frozenset[str]:
    """Return the stale INFO fields, except those that vcztools recomputes; samples removed since make all stale."""
    fields = {*stale(vcz)} | (
        {name for name in FIELDS if array_name(name) in vcz.arrays} if chosen.n_withdrawn else set()
    )
    return frozenset(fields) - (_RECOUNTED if GENOTYPE in vcz.arrays else frozenset())


def check_vcf(vcz: Vcz, out: str) -> Path | None:
    """
    Check that a VCZ can be written to a file, and return its path, at which a file may exist; None for standard output.

    Raises
    ------
    UnsuitableError
        If the file is not local, its folder does not exist, or vcztools cannot read the grid or shards of the VCZ.
    MissingDependencyError
        If vcztools is not installed.
    """
    path = None if out == STANDARD_OUTPUT else local_path(out)
    if path is None and out != STANDARD_OUTPUT:
        raise UnsuitableError(f"{OPERATION}: {out} is no path; write VCF and BCF to a disk, and copy the file")
    if path is not None and not path.parent.is_dir():
        raise UnsuitableError(f"{OPERATION}: there is no folder {path.parent}; make it first")
    try:
        for package in ("pysam.bcftools", "vcztools"):
            import_module(package)
    except ImportError as error:
        raise missing_extra(f"{OPERATION}: {out} is written with vcztools and pysam ({error})", "export") from error
    if vcz.is_flexible:
        raise UnsuitableError(
            f"{OPERATION}: {vcz.label} has a flexible sample grid, which vcztools does not read; export it to a VCZ, "
            "whose grid is regular, and that to VCF"
        )
    sharded = [name for name, array in vcz.arrays.items() if has_grid(array) and array.shards]
    if sharded:
        raise UnsuitableError(
            f"{OPERATION}: {sharded[0]} of {vcz.label} has shards, which vcztools does not read; export the store to a "
            "VCZ, take the shards from that, and export it to VCF: vczstore regrid NEW_VCZ --samples-shard 0"
        )
    return path


def _publish(finished: Path, path: Path) -> None:
    """Move the finished file to its final path, unless that exists by now."""
    try:
        os.link(finished, path)
    except FileExistsError as error:
        raise UnsuitableError(f"{OPERATION}: {path} exists by now; choose another path") from error
    except OSError:  # a file system without hard links: reserve the name with an empty file first
        try:
            path.open("x").close()
        except FileExistsError as error:
            raise UnsuitableError(f"{OPERATION}: {path} exists by now; choose another path") from error
        finished.replace(path)


class _Content(NamedTuple):
    """The contents to write: positions of samples, the chunk plan of `_rows`, and the INFO fields to leave out."""

    vcz: Vcz
    chosen: np.ndarray
    rows: list[Any] | None
    left_out: frozenset[str]


@contextmanager
def _explained(vcz: Vcz, path: Path | None) -> Iterator[None]:
    """Convert any exception of vcztools, except a `BrokenPipeError`, into a `VczstoreError` with a one-line message."""
    place, left = (path, "no file is left") if path is not None else ("standard output", "what was written is cut off")
    try:
        yield
    except (VczstoreError, BrokenPipeError):
        raise
    except OSError as error:
        raise StorageError(f"{OPERATION}: {place} cannot be written ({first_line(error)}); {left}") from error
    except Exception as error:  # vcztools raises any type
        raise UnsuitableError(
            f"{OPERATION}: vcztools cannot write {vcz.label} to {place} ({first_line(error)}); {left}"
        ) from error


def _print(content: _Content) -> None:
    """Write VCF to standard output; quietly end early if its reader does, as ``head`` does."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)  # standard output may have another encoding, or be a notebook's
    own = None if binary is None else io.TextIOWrapper(binary, "utf-8", newline="")
    file = own or sys.stdout
    try:
        with _explained(content.vcz, None):
            _write_text(content, file)
            file.flush()
    except BrokenPipeError:
        with suppress(OSError, io.UnsupportedOperation):  # so that flushing the buffer does not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if own is not None:
            with suppress(OSError):
                own.detach()  # else it would close standard output


def _write(content: _Content, path: Path, folder: Path) -> Path:
    """Write the file into a temporary folder, and return its path there."""
    import pysam.bcftools

    suffix = path.suffix.lower()
    output = folder / ("all.vcf" if suffix == ".vcf" else "all.vcf.gz")
    with _explained(content.vcz, path):
        if suffix == ".vcf":
            with output.open("w") as file:
                _write_text(content, file)
        else:
            with io.TextIOWrapper(cast("Any", pysam.BGZFile(str(output), "w"))) as file:
                _write_text(content, file)
        if suffix == ".bcf":
            pysam.bcftools.view("--no-version", "-Ob", "-o", str(folder / "all.bcf"), str(output), catch_stdout=False)
            output = folder / "all.bcf"
    return output


def _reader(vcz: Vcz, chosen: np.ndarray) -> "VczReader":
    """Return a vcztools reader of some samples of a VCZ."""
    from vcztools import VczReader

    reader = VczReader(_Group(vcz))
    reader.set_bcftools_semantics()  # else AF, NS and others are added to records that lack them
    if not _is_all(vcz, chosen):
        reader.set_sample_indexes(chosen)
    return reader


class _Group(dict[str, AnyArray]):
    """
    Stand-in for the Zarr group that vcztools expects, with arrays that reject truncated chunks.

    Arrays of size 0, as of fields that are declared in the header but absent from all records, are left out: vcztools
    cannot write them.
    """

    def __init__(self, vcz: Vcz) -> None:
        super().__init__({name: array for name, array in vcz.arrays.items() if not _is_empty(array)})
        self.store, self.attrs = vcz.store, {**vcz.attributes, **vcf_headers.without_samples(vcz.attributes)}

    def array_keys(self) -> Iterable[str]:
        return self.keys()


def _is_empty(array: AnyArray) -> bool:
    """Whether a field has size 0 along an axis other than variants and samples."""
    lengths = list(zip(dimensions(array), array.shape, strict=True))
    is_field = bool(lengths) and lengths[0][0] == VARIANTS
    return is_field and any(n == 0 for name, n in lengths if name not in (VARIANTS, SAMPLES))


def _is_all(vcz: Vcz, chosen: np.ndarray) -> bool:
    return np.array_equal(chosen, np.flatnonzero(vcz.sample_ids != REMOVED))


def _rows(vcz: Vcz, chosen: np.ndarray, regions: Sequence[Region]) -> list[Any] | None:
    """Return the chunk plan of vcztools for the rows that overlap regions; None if there are no regions."""
    if not regions:
        return None
    from vcztools.regions import build_chunk_plan

    texts = [f"{region.contig}:{region.start}-{region.end}" for region in regions]
    with _reader(vcz, chosen) as reader:
        return [*build_chunk_plan(reader, regions=texts)]


def _write_text(content: _Content, file: TextIO) -> None:
    from vcztools import write_vcf

    vcz, chosen, rows, left_out = content
    with _reader(vcz, chosen) as reader:
        if rows is not None:
            reader.set_variants(rows)
        if left_out:
            reader.field_names = frozenset(reader.field_names) - {array_name(field) for field in left_out}
        tags = _RECOUNTED.intersection(stale(vcz)) if _is_all(vcz, chosen) else _RECOUNTED
        tags = tags if GENOTYPE in vcz.arrays else frozenset()
        # no_version: the command line in the header would name the samples that were left out
        write_vcf(reader, file, no_version=True, fill_tags=tags)
