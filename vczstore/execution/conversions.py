"""Convert the VCF and BCF sources of an operation on this machine, into a folder that is deleted afterwards."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
"""Compressed bytes per part of a file. Converting a part takes some seconds, starting a process about one."""

PARTS_PER_WORKER = 4
"""Parts of a file per process: several, since parts take different times."""

type Step = Callable[[], int | None]
"""A step of a conversion; returns a number of parts, or None (see `vczstore.vcf.conversion.do`)."""
type Run = Callable[[Sequence[Step]], Iterator[int | None]]
"""Runs steps and yields their results as they end; see `_pool`."""


class Conversions(AbstractContextManager["Conversions"]):
    """
    A cache of converted VCFs in a folder, which is deleted when this is closed or the process ends.

    Parameters
    ----------
    work_dir
        Parent of the folder; the default for temporary files if this is None or not on this machine.
    progress
        Called with the progress if it is a function; otherwise ignored.
    """

    def __init__(self, work_dir: str | None, progress: "Progress | bool | None" = None) -> None:
        self._progress = progress if callable(progress) else None
        self._parent = None if work_dir is None else local_path(work_dir)
        self._folder: Path | None = None
        self._cached: dict[object, Path] = {}
        self._process = os.getpid()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the folder, except in a forked process."""
        if self._folder is not None and self._process == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._cached = {}
            atexit.unregister(self.close)

    @property
    def folder(self) -> Path:
        """The folder, created on first use, which only this user can read."""
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
        Read the header of a VCF, downloading the file if it is not on this machine.

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
        """Return the path of the local copy of a remote file, which is downloaded once."""
        from vczstore.stores.object_store import download

        if url not in self._cached:
            target = self.folder / f"download-{len(self._cached)}"
            download(operation, url, storage_options, target)
            self._cached[url] = target
        return self._cached[url]

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
        Convert files that are not in the cache to a layout, and return the VCZs of all files.

        At most `workers` processes convert, and each holds at most `budget` bytes of a file in memory.

        Raises
        ------
        VczstoreError
            If a file cannot be converted.
        """
        layouts = list(layout.of_each([len(file.samples) for file in files]))
        keys = [(str(f.path.absolute()), f.size, f.changed, repr(own)) for f, own in zip(files, layouts, strict=True)]
        todo: dict[object, Conversion] = {}
        for key, file, own in zip(keys, files, layouts, strict=True):
            if key not in self._cached and key not in todo:
                folder = self.folder / f"source-{len(self._cached) + len(todo)}"
                n_parts = min(1 + file.size // PART_BYTES, PARTS_PER_WORKER * workers) if workers > 1 else 1
                todo[key] = Conversion(operation, file, folder, own, budget, n_parts)
        if todo:
            _convert(list(todo.values()), workers, self._progress)
        self._cached |= {key: conversion.result for key, conversion in todo.items()}
        return [
            Vcz.read(RegularLocalStore(self._cached[key], read_only=True), file.label).converted_from(file)
            for key, file in zip(keys, files, strict=True)
        ]


def _convert(todo: Sequence[Conversion], workers: int, progress: "Progress | None") -> None:
    """Convert files: small ones concurrently, one per process, then large ones one after the other, each in parts."""
    large = [conversion for conversion in todo if conversion.n_parts > 1]
    small = [conversion for conversion in todo if conversion.n_parts == 1]
    total = 100 * len(todo)

    def report(percent: float) -> None:
        if progress is not None:
            progress("converting", min(total, round(percent)), total)

    report(0)
    n = max(len(small), *(conversion.n_parts for conversion in large), 1)
    is_little = sum(conversion.file.size for conversion in todo) < PART_BYTES
    with _pool(1 if is_little else min(workers, n), in_others=WARNED.is_set()) as run:
        for i, _ in enumerate(run([partial(do, conversion, "whole") for conversion in small]), start=1):
            report(100 * i)
        for i, conversion in enumerate(large, start=len(small)):
            _convert_in_parts(conversion, run, lambda share, i=i: report(100 * (i + share)))  # type: ignore[misc]


def _convert_in_parts(conversion: Conversion, run: Run, report: Callable[[float], None]) -> None:
    """Convert one file in parts, and report the fraction that is done, from 0 to 1."""
    for before, divide, work in ((0.0, "begin", "explode"), (0.5, "lay_out", "encode")):
        n = do(conversion, divide)  # in this process: a worker killed in these steps of bio2zarr leaks semaphores
        assert n is not None
        for i, _ in enumerate(run([partial(do, conversion, work, part) for part in range(n)]), start=1):
            report(before + 0.5 * i / n)
    do(conversion, "end")


@contextmanager
def _pool(n: int, *, in_others: bool) -> Iterator[Run]:
    """Context of a `Run`, in `n` other processes; in this process if `n` is 1, unless `in_others`."""
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
