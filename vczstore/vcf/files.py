"""What a VCF or BCF file is: known by its name, checked by what is in it, told from others by its bytes."""

import gzip
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vczstore.errors import NotAStoreError, VcfError, first_line, missing_extra
from vczstore.stores.locations import parse

if TYPE_CHECKING:
    from vczstore.stores.base import Location

SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
"""How the names of VCF and BCF files end."""

EXTRA = "vcf"
"""The extra of this project that installs what reads them."""

UNDECLARED = "is not defined in the header"
"""What HTSlib says of a field that the header lacks."""

EXTREME = "value encountered and set to missing"
"""What HTSlib says of an integer that takes more than 32 bits."""

_MOST = 1000
"""Lines of HTSlib's that are kept."""

_CAPTURING = threading.Lock()
"""Held while standard error leads elsewhere."""

_END_OF_BGZF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a file (SAM specification, section 4.1.2)."""

_ERROR = re.compile(r"^\[E::(?!get_intv)\w+\] (.+)", re.MULTILINE)
"""How HTSlib tells of an error, but for that of its index, which does not say what is wrong."""


def is_vcf(location: "Location") -> bool:
    """Whether a path or URL is that of a VCF or BCF file, by its name; a folder of such a name is a store."""
    if not isinstance(location, str | os.PathLike):
        return False
    address = parse(location)
    return address.key.lower().endswith(SUFFIXES) and not (address.path is not None and address.path.is_dir())


@dataclass(frozen=True)
class VcfFile:
    """
    A VCF or BCF file whose header was read.

    Attributes
    ----------
    label
        How messages call it: the path or URL that the user has typed.
    path
        Where it lies on this machine.
    samples
        The sample IDs.
    n_fields
        How many INFO and FORMAT fields the header declares.
    size, changed
        In bytes, and when it was changed, in nanoseconds since the epoch.
    """

    label: str
    path: Path
    samples: tuple[str, ...]
    n_fields: int
    size: int
    changed: int

    @classmethod
    def open(cls, operation: str, label: str, path: Path) -> "VcfFile":
        """
        Read the header of a file.

        Raises
        ------
        NotAStoreError
            If there is no such file.
        VcfError
            If it is no VCF or BCF, is truncated, or has a broken header.
        MissingDependencyError
            If what reads VCFs is not installed.
        """
        require_installed(operation, label)
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise NotAStoreError(f"{operation}: {label}: no such file or directory") from error
        if not stat.S_ISREG(found.st_mode):
            raise VcfError(f"{operation}: {label}: is no regular file; write what it gives to a file, and name that")
        _require_whole(operation, label, path)
        samples, n_fields = _header(operation, label, path)
        return cls(label, path, samples, n_fields, found.st_size, found.st_mtime_ns)

    @property
    def identity(self) -> str:
        """Which batch of samples it is, under any name: a digest of its sample IDs."""
        text = "\n".join(["VCF", *self.samples])
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()

    @cached_property
    def stamp(self) -> str:
        """What tells two states of a batch apart: a digest of the bytes of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def require_unchanged(self, operation: str) -> None:
        """Raise a `VcfError` if something has written to the file since its header was read."""
        found = self.path.stat()
        if (found.st_size, found.st_mtime_ns) != (self.size, self.changed):
            raise VcfError(f"{operation}: {self.label} has changed while it was read; run the same command again")


def require_installed(operation: str, label: str) -> None:
    """Raise a `MissingDependencyError` unless all packages are installed that convert VCFs; none is imported."""
    for package in ("bio2zarr", "cyvcf2", "pysam"):
        if find_spec(package) is None:
            problem = f"{operation}: {label} is a VCF, and {package} is not installed, which converts it"
            raise missing_extra(problem, EXTRA)


def _require_whole(operation: str, label: str, path: Path) -> None:
    """Raise a `VcfError` if the bytes at the beginning are no VCF's, or those at the end are missing."""
    with open(path, "rb") as file:
        begin = file.read(18)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END_OF_BGZF)))
        end = file.read()
    if not begin:
        raise VcfError(f"{operation}: {label} is empty; copy it again")
    if is_bgzf(begin):
        if end != _END_OF_BGZF:
            raise VcfError(f"{operation}: {label} is truncated: the block is missing that ends a BGZF; copy it again")
    elif begin.startswith(b"#"):
        if not end.endswith(b"\n"):
            raise VcfError(
                f"{operation}: {label} has no line break at its end, and may be truncated; copy it again, or append one"
            )
    elif not begin.startswith((b"\x1f\x8b", b"BCF")):
        raise VcfError(f"{operation}: {label} is no VCF or BCF, though it is called like one; name another file")


def is_bgzf(begin: bytes) -> bool:
    """Whether a file begins like one that is compressed in blocks (SAM specification, section 4.1)."""
    return begin[:4] == b"\x1f\x8b\x08\x04" and begin[12:14] == b"BC"


def _header(operation: str, label: str, path: Path) -> tuple[tuple[str, ...], int]:
    """The sample IDs, and how many INFO and FORMAT fields there are."""
    import cyvcf2

    with captured() as told:
        try:
            with closing(cyvcf2.VCF(path)) as file:
                n_fields = sum(line["HeaderType"] in ("INFO", "FORMAT") for line in file.header_iter())
                return tuple(file.samples), n_fields
        except Exception as error:  # cyvcf2 has no class for it
            why = error_in(told()) or first_line(error)
            raise VcfError(
                f"{operation}: {label} has no valid VCF header ({why}); correct it, or copy it again"
            ) from error


@contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """
    Gather what HTSlib writes to standard error meanwhile: errors, and of which fields it loses values.

    It may warn of every record, so the rest is not kept.
    """
    with _CAPTURING, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)

        def told() -> str:
            file.seek(0)
            lines = (line.decode(errors="replace") for line in file)
            kept = (line for line in lines if line.startswith("[E::") or UNDECLARED in line or EXTREME in line)
            return "".join(islice(kept, _MOST))

        try:
            yield told
        finally:
            os.dup2(before, 2)
            os.close(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Have HTSlib write nothing to standard error."""
    import pysam

    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)


def error_in(text: str) -> str:
    """The first error that HTSlib has told, without the name of its function; empty if there is none."""
    found = _ERROR.search(text)
    return "" if found is None else first_line(ValueError(found[1]))


def link(file: VcfFile, folder: Path) -> Path:
    """
    Give a file a name in a folder; one that is not compressed in blocks is compressed there.

    Raises
    ------
    EOFError, OSError
        If it cannot be decompressed.
    """
    import pysam

    with open(file.path, "rb") as opened:
        begin = opened.read(18)
    is_gzip = begin.startswith(b"\x1f\x8b")
    with gzip.open(file.path) if is_gzip else open(file.path, "rb") as content:
        is_bcf = content.read(3) == b"BCF"
        target = folder / ("source.bcf" if is_bcf else "source.vcf.gz")
        if is_bgzf(begin):
            target.symlink_to(file.path.absolute())
            return target
        content.seek(0)
        with pysam.BGZFile(os.fspath(target), "wb") as out:
            shutil.copyfileobj(content, out, 2**20)
    return target
