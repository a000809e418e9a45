"""Export to VCF and BCF, through vcztools."""

import io
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
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
from vczstore.errors import StorageError, UnsuitableError, VczstoreError, first_line, missing_extra
from vczstore.execution.engine import planning
from vczstore.stores.locations import local_path
from vczstore.vcz import vcf_headers
from vczstore.vcz.model import REMOVED, SAMPLES, VARIANTS, Vcz, dimensions, has_grid, listing

if TYPE_CHECKING:
    from vcztools import VczReader

OPERATION, GENOTYPE = "export", "call_genotype"


@dataclass(frozen=True)
class Exported:
    """
    What was exported.

    Attributes
    ----------
    store, snapshot
        From where, and its snapshot; None on plain Zarr.
    out
        The file.
    samples
        How many samples it has.
    notes
        What was left out.
    written
        False after a dry run.
    seconds
        What it took.
    """

    store: str
    snapshot: str | None
    out: str
    samples: int
    notes: Sequence[str]
    written: bool
    seconds: float = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def lines(self) -> list[str]:
        """What the command prints."""
        how = f"in {self.seconds:.2f} s" if self.written else "(dry run, nothing was written)"
        head = f"{OPERATION} {self.out}: {self.samples:,} samples of {self.store} {how}"
        return [head, *(f"  {AFTERWARDS:<7} {note}" for note in self.notes)]


def export_vcf(vcz: Vcz, chosen: Chosen, regions: Sequence[Region], out: str, *, dry_run: bool) -> Exported:
    """
    Write samples of a VCZ to a VCF or BCF file, which is there when all is written.

    Parameters
    ----------
    vcz, chosen
        What is written, and which samples.
    regions
        Where; everywhere if there are none.
    out
        The file.
    dry_run
        Whether to check alone whether it can be written.
    """
    started = time.perf_counter()
    path = check_vcf(vcz, out)
    if os.path.lexists(path):
        raise UnsuitableError(f"{OPERATION}: {out} exists; choose another path")
    left_out = _stale(vcz, chosen)
    notes = [*chosen.notes]
    if left_out:
        fields = listing([f"INFO/{name}" for name in sorted(left_out)])
        notes.append(f"left out, since they count samples that are gone: {fields}; vczstore recompute renews them")
    with planning(OPERATION):
        with _explained(vcz, path):
            content = _Content(vcz, chosen.positions, _rows(vcz, chosen.positions, regions), left_out)
        if content.rows == []:
            notes.append(NO_VARIANTS)
        if not dry_run:
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
                _publish(_write(content, path, Path(folder)), path)
    n = len(chosen.positions)
    return Exported(vcz.label, vcz.snapshot, out, n, notes, not dry_run, time.perf_counter() - started)


_RECOUNTED = frozenset({"AC", "AN"})
"""The INFO fields that vcztools makes from the genotypes."""


def _stale(vcz: Vcz, chosen: Chosen) -> frozenset[str]:
    """The INFO fields that count samples which are gone, and are not made from the genotypes."""
    fields = {*stale(vcz)} | (
        {name for name in FIELDS if array_name(name) in vcz.arrays} if chosen.n_withdrawn else set()
    )
    return frozenset(fields) - (_RECOUNTED if GENOTYPE in vcz.arrays else frozenset())


def check_vcf(vcz: Vcz, out: str) -> Path:
    """
    Check that a VCZ can be written to a file, whether there is one or not; returns its path.

    Raises
    ------
    UnsuitableError
        If it is nowhere on this machine, its folder is not there, or vcztools does not read the VCZ.
    MissingDependencyError
        If vcztools is not installed.
    """
    path = local_path(out)
    if path is None:
        raise UnsuitableError(f"{OPERATION}: {out} is no path; write VCF and BCF to a disk, and copy the file")
    if not path.parent.is_dir():
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


def _publish(made: Path, path: Path) -> None:
    """Give a file its name, unless there is something by now."""
    try:
        os.link(made, path)
    except FileExistsError as error:
        raise UnsuitableError(f"{OPERATION}: {path} exists by now; choose another path") from error
    except OSError:  # a file system without links: an empty file takes the name first
        try:
            path.open("x").close()
        except FileExistsError as error:
            raise UnsuitableError(f"{OPERATION}: {path} exists by now; choose another path") from error
        made.replace(path)


class _Content(NamedTuple):
    """What is written: of a VCZ samples by position, rows as from `_rows`, and all INFO fields but some."""

    vcz: Vcz
    chosen: np.ndarray
    rows: list[Any] | None
    left_out: frozenset[str]


@contextmanager
def _explained(vcz: Vcz, path: Path) -> Iterator[None]:
    """Turn what goes wrong while vcztools reads a VCZ into one line."""
    try:
        yield
    except VczstoreError:
        raise
    except OSError as error:
        raise StorageError(f"{OPERATION}: {path} cannot be written ({first_line(error)}); nothing is there") from error
    except Exception as error:  # vcztools raises any type
        raise UnsuitableError(
            f"{OPERATION}: vcztools cannot write {vcz.label} to {path} ({first_line(error)}); nothing is there"
        ) from error


def _write(content: _Content, path: Path, folder: Path) -> Path:
    """Write the file into a folder; returns where it is."""
    import pysam.bcftools

    suffix = path.suffix.lower()
    made = folder / ("all.vcf" if suffix == ".vcf" else "all.vcf.gz")
    with _explained(content.vcz, path):
        if suffix == ".vcf":
            with made.open("w") as file:
                _write_text(content, file)
        else:
            with io.TextIOWrapper(cast("Any", pysam.BGZFile(str(made), "w"))) as file:
                _write_text(content, file)
        if suffix == ".bcf":
            pysam.bcftools.view("--no-version", "-Ob", "-o", str(folder / "all.bcf"), str(made), catch_stdout=False)
            made = folder / "all.bcf"
    return made


def _reader(vcz: Vcz, chosen: np.ndarray) -> "VczReader":
    """What reads samples of a VCZ."""
    from vcztools import VczReader

    reader = VczReader(_Group(vcz))
    reader.set_bcftools_semantics()  # or AF, NS and others of chosen samples would be in records that do not have them
    if not _is_all(vcz, chosen):
        reader.set_sample_indexes(chosen)
    return reader


class _Group(dict[str, AnyArray]):
    """
    What vcztools takes for a group of zarr: its arrays refuse chunks that are cut off.

    A field that the header declares and no record has may be an array without elements, which vcztools cannot write.
    """

    def __init__(self, vcz: Vcz) -> None:
        super().__init__({name: array for name, array in vcz.arrays.items() if not _is_empty(array)})
        self.store, self.attrs = vcz.store, {**vcz.attributes, **vcf_headers.without_samples(vcz.attributes)}

    def array_keys(self) -> Iterable[str]:
        """The names of the arrays."""
        return self.keys()


def _is_empty(array: AnyArray) -> bool:
    """Whether a field has no element, however many variants and samples there are."""
    lengths = list(zip(dimensions(array), array.shape, strict=True))
    is_field = bool(lengths) and lengths[0][0] == VARIANTS
    return is_field and any(n == 0 for name, n in lengths if name not in (VARIANTS, SAMPLES))


def _is_all(vcz: Vcz, chosen: np.ndarray) -> bool:
    return np.array_equal(chosen, np.flatnonzero(vcz.sample_ids != REMOVED))


def _rows(vcz: Vcz, chosen: np.ndarray, regions: Sequence[Region]) -> list[Any] | None:
    """The rows that overlap regions, by chunk, as vcztools has them; None if there are no regions."""
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
        # the command line would tell which samples were left out
        write_vcf(reader, file, no_version=True, fill_tags=tags)
