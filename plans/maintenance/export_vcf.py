"""Export to VCF and BCF, through vcztools."""

import io
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import zarr

from vczstore.errors import StorageError, UnsuitableError, VczstoreError, first_line, missing_extra
from vczstore.execution.engine import planning
from vczstore.stores.locations import local_path
from vczstore.vcz.model import REMOVED, Vcz

OPERATION = "export"


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
    written
        False after a dry run.
    seconds
        What it took.
    """

    store: str
    snapshot: str | None
    out: str
    samples: int
    written: bool
    seconds: float = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def lines(self) -> list[str]:
        """What the command prints."""
        how = f"in {self.seconds:.2f} s" if self.written else "(dry run, nothing was written)"
        return [f"{OPERATION} {self.out}: {self.samples:,} samples of {self.store} {how}"]


def export_vcf(vcz: Vcz, chosen: np.ndarray, regions: Sequence[str], out: str, *, dry_run: bool) -> Exported:
    """
    Write samples of a VCZ to a VCF or BCF file, which is there when all is written.

    Parameters
    ----------
    vcz, chosen
        What is written, and the positions of the samples.
    regions
        Where; everywhere if there are none.
    out
        The file.
    dry_run
        Whether to check alone whether it can be written.
    """
    started = time.perf_counter()
    path = _place_of(out)
    try:
        import pysam  # noqa: F401
        import vcztools  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"{OPERATION}: {out} is written with vcztools and pysam ({error})", "export") from error
    if vcz.is_flexible:
        raise UnsuitableError(
            f"{OPERATION}: {vcz.label} has a flexible sample grid, which vcztools does not read; export it to a VCZ, "
            "whose grid is regular, and that to VCF"
        )
    if not dry_run:
        with planning(OPERATION), tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            _publish(_write(vcz, chosen, regions, path, Path(folder)), path)
    return Exported(vcz.label, vcz.snapshot, out, len(chosen), not dry_run, time.perf_counter() - started)


def _place_of(out: str) -> Path:
    path = local_path(out)
    if path is None:
        raise UnsuitableError(f"{OPERATION}: {out} is no path; write VCF and BCF to a disk, and copy the file")
    if os.path.lexists(path):
        raise UnsuitableError(f"{OPERATION}: {out} exists; choose another path")
    if not path.parent.is_dir():
        raise UnsuitableError(f"{OPERATION}: there is no folder {path.parent}; make it first")
    return path


def _publish(made: Path, path: Path) -> None:
    """Give a file its name, unless there is something by now."""
    try:
        os.link(made, path)
    except FileExistsError as error:
        raise UnsuitableError(f"{OPERATION}: {path} exists by now; choose another path") from error
    except OSError:  # a file system without links
        made.rename(path)


def _write(vcz: Vcz, chosen: np.ndarray, regions: Sequence[str], path: Path, folder: Path) -> Path:
    """Write the file into a folder; returns where it is."""
    import pysam

    suffix = path.suffix.lower()
    made = folder / ("all.vcf" if suffix == ".vcf" else "all.vcf.gz")
    try:
        if suffix == ".vcf":
            with made.open("w") as file:
                _write_text(vcz, chosen, regions, file)
        else:
            with io.TextIOWrapper(cast("Any", pysam.BGZFile(str(made), "w"))) as file:
                _write_text(vcz, chosen, regions, file)
        if suffix == ".bcf":
            pysam.bcftools.view("--no-version", "-Ob", "-o", str(folder / "all.bcf"), str(made), catch_stdout=False)
            made = folder / "all.bcf"
    except VczstoreError:
        raise
    except OSError as error:
        raise StorageError(f"{OPERATION}: {path} cannot be written ({first_line(error)}); nothing is there") from error
    except Exception as error:  # whatever vcztools raises
        raise UnsuitableError(
            f"{OPERATION}: vcztools cannot write {vcz.label} to {path} ({first_line(error)}); nothing is there"
        ) from error
    return made


def _write_text(vcz: Vcz, chosen: np.ndarray, regions: Sequence[str], file: TextIO) -> None:
    from vcztools import VczReader, write_vcf
    from vcztools.regions import build_chunk_plan

    group = zarr.open_group(vcz.store, mode="r", use_consolidated=False)
    is_all = np.array_equal(chosen, np.flatnonzero(vcz.sample_ids != REMOVED))
    with VczReader(group) as reader:
        if not is_all:
            reader.set_sample_indexes(chosen)
        if regions:
            reader.set_variants(build_chunk_plan(reader, regions=list(regions)))
        tags = None if is_all or "call_genotype" not in vcz.arrays else frozenset({"AC", "AN"})
        # the command line would tell which samples were left out
        write_vcf(reader, file, no_version=True, fill_tags=tags)
