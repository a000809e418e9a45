"""VCF and BCF files: recognised by name, validated by content, and identified by their samples and bytes."""

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
"""Suffixes of the names of VCF and BCF files."""

EXTRA = "vcf"
"""The extra of this project that installs the packages to read them."""

UNDECLARED = "is not defined in the header"
"""Part of HTSlib's warning about a field that the header lacks."""

EXTREME = "value encountered and set to missing"
"""Part of HTSlib's warning about an integer that takes more than 32 bits."""

_MAX_LINES = 1000
"""The maximum number of HTSlib's lines to return."""

_CAPTURING = threading.Lock()
"""Held while standard error is redirected."""

_END_OF_BGZF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block at the end of a BGZF file (SAM specification, section 4.1.2)."""

_ERROR = re.compile(r"^\[E::(?!get_intv)\w+\] (.+)", re.MULTILINE)
"""HTSlib's error lines, except those of its index, which do not name the cause."""


def is_vcf(location: "Location") -> bool:
    """Whether a path or URL names a VCF or BCF file, by its suffix; a local folder with such a name is a store."""
    if not isinstance(location, str | os.PathLike):
        return False
    address = parse(location)
    return address.key.lower().endswith(SUFFIXES) and not (address.path is not None and address.path.is_dir())


@dataclass(frozen=True)
class VcfFile:
    """
    A VCF or BCF file and the contents of its header.

    Attributes
    ----------
    label
        Name in messages: the path or URL that the user typed.
    path
        Local path of the file, or of its downloaded copy.
    samples
        The sample IDs.
    n_fields
        The number of INFO and FORMAT fields that the header declares.
    size, changed
        Its size in bytes, and its modification time in nanoseconds since the epoch.
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
            If the packages that read VCFs are not installed.
        """
        require_installed(operation, label)
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise NotAStoreError(f"{operation}: {label}: no such file or directory") from error
        if not stat.S_ISREG(status.st_mode):
            raise VcfError(f"{operation}: {label}: is no regular file; write its content to a file, and name that")
        _require_whole(operation, label, path)
        samples, n_fields = _header(operation, label, path)
        return cls(label, path, samples, n_fields, status.st_size, status.st_mtime_ns)

    @property
    def identity(self) -> str:
        """Identifier of the batch, independent of its location: a digest of the sample IDs, in order."""
        text = "\n".join(["VCF", *self.samples])
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()

    @cached_property
    def stamp(self) -> str:
        """Identifier of the state of the batch: a digest of the file's bytes."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def require_unchanged(self, operation: str) -> None:
        """Raise a `VcfError` if the file was modified since its header was read."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            raise VcfError(f"{operation}: {self.label} was changed while it was read; run the same command again")


def require_installed(operation: str, label: str) -> None:
    """Raise a `MissingDependencyError` unless the packages that convert VCFs are installed; none is imported."""
    for package in ("bio2zarr", "cyvcf2", "pysam"):
        if find_spec(package) is None:
            problem = f"{operation}: {label} is a VCF, and {package} is not installed, which is needed to convert it"
            raise missing_extra(problem, EXTRA)


def _require_whole(operation: str, label: str, path: Path) -> None:
    """Raise a `VcfError` if the file does not begin like a VCF or BCF, or is truncated."""
    with open(path, "rb") as file:
        begin = file.read(18)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END_OF_BGZF)))
        end = file.read()
    if not begin:
        raise VcfError(f"{operation}: {label} is empty; copy it again")
    if is_bgzf(begin):
        if end != _END_OF_BGZF:
            raise VcfError(f"{operation}: {label} is truncated: the final block of its BGZF is missing; copy it again")
    elif begin.startswith(b"#"):
        if not end.endswith(b"\n"):
            raise VcfError(
                f"{operation}: {label} has no line break at its end, and may be truncated; copy it again, or append one"
            )
    elif not begin.startswith((b"\x1f\x8b", b"BCF")):
        raise VcfError(f"{operation}: {label} is no VCF or BCF, despite its name; name another file")


def is_bgzf(begin: bytes) -> bool:
    """Whether a file is BGZF, by its first 18 bytes (SAM specification, section 4.1)."""
    return begin[:4] == b"\x1f\x8b\x08\x04" and begin[12:14] == b"BC"


def _header(operation: str, label: str, path: Path) -> tuple[tuple[str, ...], int]:
    """Read the sample IDs, and the number of INFO and FORMAT fields."""
    import cyvcf2

    with captured() as stderr_text:
        try:
            with closing(cyvcf2.VCF(path)) as file:
                n_fields = sum(line["HeaderType"] in ("INFO", "FORMAT") for line in file.header_iter())
                return tuple(file.samples), n_fields
        except Exception as error:  # cyvcf2 has no exception class of its own
            why = error_in(stderr_text()) or first_line(error)
            raise VcfError(
                f"{operation}: {label} has no valid VCF header ({why}); correct it, or copy it again"
            ) from error


@contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """
    Redirect standard error in this process, and yield a function that returns the lines of HTSlib in it.

    They are its errors, and its warnings of lost values: HTSlib may warn of every record.
    """
    with _CAPTURING, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        original = os.dup(2)
        os.dup2(file.fileno(), 2)

        def stderr_text() -> str:
            file.seek(0)
            lines = (line.decode(errors="replace") for line in file)
            kept = (line for line in lines if line.startswith("[E::") or UNDECLARED in line or EXTREME in line)
            return "".join(islice(kept, _MAX_LINES))

        try:
            yield stderr_text
        finally:
            os.dup2(original, 2)
            os.close(original)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context HTSlib writes nothing to standard error."""
    import pysam

    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)


def error_in(text: str) -> str:
    """The first error message of HTSlib in a text, without the name of the C function; empty if there is none."""
    match = _ERROR.search(text)
    return "" if match is None else first_line(ValueError(match[1]))


def link(file: VcfFile, folder: Path) -> Path:
    """
    Make a file available in a folder as BGZF: link a BGZF file, or compress any other file; return the new path.

    Raises
    ------
    EOFError, OSError
        If it cannot be decompressed.
    """
    import pysam

    with open(file.path, "rb") as source:
        begin = source.read(18)
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
