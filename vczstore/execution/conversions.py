"""VCF and BCF sources of an operation: converted on this machine, into a folder that is deleted afterwards."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vczstore.errors import StorageError, VcfError
from vczstore.stores.locations import local_path
from vczstore.vcf.conversion import WARNED, Conversion, Layout, do
from vczstore.vcf.files import VcfFile
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import RegularLocalStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vczstore.execution.progress import Progress
    from vczstore.stores.base import Location

PART_BYTES = 1_000_000
"""How much of a compressed file is worth a part of its own: some seconds. A process takes one to start."""

PARTS_PER_WORKER = 4
"""Parts of a file differ in what they take."""

type Step = Callable[[], int | None]
type Run = Callable[[Sequence[Step]], Iterator[int | None]]


class Conversions:
    """
    What was converted of VCFs, until it is closed, or else until the process ends.

    Parameters
    ----------
    work_dir
        Where the folder is made; where temporary files are if it is None or elsewhere.
    progress
        Told of what is done.
    """

    def __init__(self, work_dir: str | None, progress: "Progress | bool | None" = None) -> None:
        self._progress = progress if callable(progress) else None
        self._parent = None if work_dir is None else local_path(work_dir)
        self._folder: Path | None = None
        self._made: dict[object, Path] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the folder."""
        if self._folder is not None and self._process == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._made = {}
            atexit.unregister(self.close)

    @property
    def folder(self) -> Path:
        """The folder, which only this user can read."""
        if self._folder is None:
            try:
                if self._parent is not None:
                    self._parent.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix="vczstore-vcf-", dir=self._parent))
            except OSError as error:
                raise StorageError(
                    f"{self._parent or tempfile.gettempdir()}: there can be no folder for VCFs that are converted "
                    f"({error.strerror}); name another place with --work-dir"
                ) from error
            atexit.register(self.close)
        return self._folder

    def file(self, operation: str, source: "Location", storage_options: "Mapping[str, Any]") -> VcfFile:
        """
        Read the header of a VCF.

        Raises
        ------
        VczstoreError
            If there is no such file, or it is broken.
        """
        label = os.fspath(source)  # type: ignore[arg-type]
        path = local_path(label)
        if path is None:
            path = self._downloaded(operation, label, storage_options)
        return VcfFile.open(operation, label, path)

    def _downloaded(self, operation: str, url: str, storage_options: "Mapping[str, Any]") -> Path:
        """A copy of a file that is elsewhere."""
        from vczstore.stores.object_store import download

        if url not in self._made:
            target = self.folder / f"download-{len(self._made)}"
            download(operation, url, storage_options, target)
            self._made[url] = target
        return self._made[url]

    def converted(
        self,
        operation: str,
        files: Sequence[VcfFile],
        layout: Layout,
        *,
        workers: int = 1,
        budget: int,
    ) -> list[Vcz]:
        """
        Convert files, unless that was done before.

        Parameters
        ----------
        operation
            For messages.
        files
            The files.
        layout
            What their VCZs are like.
        workers, budget
            How many processes there may be, and how many bytes each may hold.

        Raises
        ------
        VczstoreError
            If a file cannot be converted.
        """
        layouts = list(layout.of_each([len(file.samples) for file in files]))
        keys = [(str(f.path.absolute()), f.size, f.changed, repr(one)) for f, one in zip(files, layouts, strict=True)]
        todo: dict[object, Conversion] = {}
        for key, file, own in zip(keys, files, layouts, strict=True):
            if key not in self._made and key not in todo:
                folder = self.folder / f"source-{len(self._made) + len(todo)}"
                n_parts = min(1 + file.size // PART_BYTES, PARTS_PER_WORKER * workers) if workers > 1 else 1
                todo[key] = Conversion(operation, file, folder, own, budget, n_parts)
        if todo:
            _convert(list(todo.values()), workers, self._progress)
        self._made |= {key: conversion.result for key, conversion in todo.items()}
        return [
            Vcz.read(RegularLocalStore(self._made[key], read_only=True), file.label).converted_from(file)
            for key, file in zip(keys, files, strict=True)
        ]


def _convert(todo: Sequence[Conversion], workers: int, progress: "Progress | None") -> None:
    """Convert files: small ones as a whole, one in each process, then large ones one after the other, in parts."""
    large = [one for one in todo if one.n_parts > 1]
    small = [one for one in todo if one.n_parts == 1]
    total = 100 * len(todo)

    def tell(percent: float) -> None:
        if progress is not None:
            progress("converting", min(total, round(percent)), total)

    tell(0)
    n = max(len(small), *(one.n_parts for one in large), 1)
    is_little = sum(one.file.size for one in todo) < PART_BYTES
    with _running(1 if is_little else min(workers, n), in_others=WARNED.is_set()) as run:
        for i, _ in enumerate(run([partial(do, one, "whole") for one in small]), start=1):
            tell(100 * i)
        for i, one in enumerate(large, start=len(small)):
            _convert_in_parts(one, run, lambda share, i=i: tell(100 * (i + share)))  # type: ignore[misc]


def _convert_in_parts(conversion: Conversion, run: Run, tell: Callable[[float], None]) -> None:
    """Convert one file, and say what share of that is done."""
    for before, divide, work in ((0.0, "begin", "explode"), (0.5, "lay_out", "encode")):
        n = do(conversion, divide)  # here: what bio2zarr begins with leaves semaphores in a process that is killed
        assert n is not None
        for i, _ in enumerate(run([partial(do, conversion, work, part) for part in range(n)]), start=1):
            tell(before + 0.5 * i / n)
    do(conversion, "end")


@contextmanager
def _running(n: int, *, in_others: bool) -> Iterator[Run]:
    """What does steps, and gives their results as they end: this process alone, or others."""
    if n == 1 and not in_others:
        yield lambda steps: (step() for step in steps)
        return
    from executors.local import ProcessesExecutor

    executor = ProcessesExecutor(max_workers=n)
    pool = executor.pool()

    def run(steps: Sequence[Step]) -> Iterator[int | None]:
        try:
            for future in as_completed([pool.submit(step) for step in steps]):
                yield future.result()
        except BrokenProcessPool as error:
            raise VcfError(
                "a process that converts a VCF was killed, perhaps because it ran out of memory; give it less to do at "
                "once with --max-workers or --allowed-mem"
            ) from error

    try:
        yield run
    finally:
        executor.stop(pool)
