"""The options that all operations share: how stores are opened and tasks are run."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import executors
from vczstore.choices import BACKENDS, IMPLS, check_choice
from vczstore.declarations import documented, option
from vczstore.errors import MissingDependencyError, OptionError, missing_extra

if TYPE_CHECKING:
    from plans.core.memory import Memory
    from vczstore.execution.conversions import Conversions
    from vczstore.execution.progress import Progress
    from vczstore.stores.base import Location, Store

MAX_RETRIES = 3
"""Default number of retries after a concurrent commit."""

EXECUTOR_FILES = (".yaml", ".yml")
"""Suffixes of executor files."""

WORTH_A_SECOND = 800_000_000
"""Decoded bytes that a task should have per second of its start-up; re-encoding them takes 10 s, copying them 2 s."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "store": ("parts", "backend_storage", "storage_options"),
    "branch": ("branch",),
    "lock": ("no_lock",),
    "sources": ("source_storage_options",),
    "impl": ("impl",),
    "work_dir": ("work_dir",),
    "workers": ("executor", "max_workers", "allowed_mem"),
    "progress": ("progress", "log_file"),
    "retries": ("max_retries",),
    "resume": ("no_resume",),
}
"""Options by group; the `uses` of an operation names the groups that it takes."""


@documented
@dataclass(frozen=True)
class Options:
    """
    How stores are opened and tasks are run; the same for all operations, in Python and on the command line.

    Raises
    ------
    OptionError
        If an option does not exist, or has a value that it cannot have.
    """

    parts: tuple[str, ...] = option(
        (),
        "The parts of a set of stores, whose name has {part} in it.",
        metavar="NAME,...",
        separator=",",
        default_text="all that are there",
    )
    backend_storage: str | None = option(
        None,
        "Backend of the store; auto-detected if left out.",
        flags=("--backend-storage", "--zarr-backend-storage"),
        choices=BACKENDS,
    )
    storage_options: Mapping[str, Any] | None = option(
        None,
        "Connection option of an object store, such as region=eu-west-2 or endpoint=URL, for the store and for sources "
        "of the same kind. Never credentials. VALUE is read as JSON if it is JSON.",
        flags=("--storage-option",),
        metavar="KEY=VALUE",
    )
    branch: str | None = option(
        None,
        "The branch of an Icechunk repository to read and write, instead of main; see vczstore branch.",
        metavar="NAME",
    )
    source_storage_options: Mapping[str, Any] | None = option(
        None,
        "The same for the sources alone, in place of `storage_options`.",
        flags=("--source-storage-option",),
        metavar="KEY=VALUE",
    )
    impl: str = option("cubed", "Implementation.", choices=IMPLS)
    executor: str = option(
        "threads",
        f"What runs the tasks: {', '.join(executors.NAMES)}, or an executor file (.yaml).",
        metavar="NAME|FILE",
        kind="executor",
    )
    max_workers: int | None = option(
        None, "How many tasks run at once.", bounds=(1, None), default_text="one per core, 100 on Modal"
    )
    allowed_mem: int | str | None = option(
        None, "Memory that a task may use, such as 2GB.", metavar="SIZE", default_text="2GB"
    )
    reserved_mem: int | str | None = option(
        None, "The part of it that Python takes, before a task has read any data.", default_text="300MB", command=False
    )
    work_dir: str | None = option(
        None,
        "Folder for intermediate data: of VCFs, which are converted there, and of --impl xarray.",
        metavar="DIR",
        default_text="a temporary folder",
    )
    progress: "Progress | bool | None" = option(
        None,
        "Show progress, speed and remaining time on standard error, or not.",
        flags=("-P/-Q", "--progress/--no-progress"),
        default_text="on a terminal",
    )
    log_file: str | None = option(
        None, "Append a line to this file each minute: the time, and the progress.", metavar="FILE", kind="file"
    )
    max_retries: int = option(
        MAX_RETRIES,
        "How often to plan and write again after a concurrent commit of another writer.",
        flags=("--max-retries", "--replans"),
        bounds=(0, None),
    )
    no_resume: bool = option(
        False,
        "Keep no checkpoint, from which the same command would resume after it was killed or failed.",
    )
    no_lock: bool = option(
        False,
        "Write without the lock of the store, where storage has no locks or does not permit one. If anything else "
        "writes to the store at the same time, batches are lost or mixed without an error.",
    )
    executor_options: Mapping[str, Any] = field(default_factory=dict, init=False)
    """Options from the executor file; cannot be passed."""
    conversions: "Conversions | None" = field(default=None, init=False, compare=False)
    """The cache of converted VCFs of the running operation; None outside of one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts or ()))
        check_choice("backend", self.backend_storage, BACKENDS)
        check_choice("implementation", self.impl, IMPLS)
        name = str(self.executor)
        if name.endswith(EXECUTOR_FILES):
            self._read_executor(name)
        elif name not in executors.NAMES and name not in executors.names():
            raise OptionError(
                f"no executor {name!r}; choose one of {', '.join(executors.names())}, or name an executor file "
                "that ends in .yaml"
            )
        if self.max_workers is not None and self.max_workers < 1:
            raise OptionError(f"{self.max_workers} workers are too few; give at least 1")
        if self.max_retries < 0:
            raise OptionError(f"cannot retry {self.max_retries} times; give 0 or more")

    def _read_executor(self, path: str) -> None:
        from vczstore.configuration.executor_file import load_executor

        file = load_executor(path)
        values: dict[str, Any] = {"executor": file.name, "executor_options": file.options}
        for key in ("allowed_mem", "reserved_mem", "work_dir"):
            if getattr(self, key) is None:
                values[key] = getattr(file, key)
        for key, value in values.items():
            object.__setattr__(self, key, value)  # frozen, but still being initialised

    def but(self, **changes: Any) -> "Options":
        """Return a copy with other values; unlike `dataclasses.replace` it keeps the options of an executor file."""
        result = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(result, name, value)  # frozen, but the copy is not in use yet
        return result

    @property
    def memory(self) -> "Memory":
        """Memory limits of a task, the folder for intermediate data, and the task size that suits the executor."""
        from plans.core.memory import Memory
        from vczstore.sizes import parse_size

        default = Memory()
        allowed = default.allowed if self.allowed_mem is None else parse_size(self.allowed_mem)
        reserved = default.reserved if self.reserved_mem is None else parse_size(self.reserved_mem)
        if allowed <= reserved:
            raise OptionError(
                f"{allowed:,} bytes of allowed memory leave nothing beside the {reserved:,} that Python itself "
                f"takes; allow at least {2 * reserved:,}"
            )
        with executor_errors():
            task_bytes = round(executors.start_seconds(self.executor, **self.executor_options) * WORTH_A_SECOND)
        return Memory(allowed, reserved, self.work_dir, task_bytes)

    def open(self, location: "Location") -> "Store":
        """Open the store that is edited."""
        from vczstore.stores.resolve import open_store

        return open_store(
            location,
            backend_storage=self.backend_storage,
            storage_options=self.storage_options,
            no_lock=self.no_lock,
            branch=self.branch,
        )

    def for_store(self, location: "Location", sources: "Sequence[Location]") -> "Options":
        """Return the options to open the store: without storage options if it is local and they are for its sources."""
        from vczstore.stores.locations import scheme

        keeps = scheme(location) or self.source_storage_options or not any(map(scheme, sources))
        return self if keeps else self.but(storage_options=None)

    def options_of(self, source: "Location", location: "Location") -> Mapping[str, Any]:
        """Return the storage options for a source."""
        from vczstore.stores.locations import scheme

        if self.source_storage_options and scheme(source) not in (None, "http"):
            return self.source_storage_options
        return self.shared(source, location)

    def shared(self, other: "Location", location: "Location") -> Mapping[str, Any]:
        """Return the storage options if they apply to `other`: a URL of the same kind, or any if the store is local."""
        from vczstore.stores.locations import scheme

        kind, other_kind = scheme(location), scheme(other)
        apply = other_kind not in (None, "http") and kind in (None, other_kind) and self.backend_storage != "fsspec"
        return (self.storage_options or {}) if apply else {}

    def place_of_copy(
        self, operation: str, copy: "str | os.PathLike[str]", location: "Location", sources: "Sequence[Location]" = ()
    ) -> "Store":
        """
        Return the new store on plain Zarr for a copy of the store at `location`, into which `sources` may be appended.

        Raises
        ------
        OptionError
            If `copy` has the name of an Icechunk repository.
        UnsuitableError
            If something exists at `copy`, or it is inside a store, or contains one that is read.
        """
        from vczstore.stores.resolve import backend_of_new, new_store

        url = os.fspath(copy)
        if backend_of_new(url, None) == "icechunk":
            raise OptionError(
                f"{operation}: {url} would be on plain Zarr, and its name ends in .icechunk; give another name, or "
                "leave the output out, and copy the store with copy-store-to-icechunk"
            )
        shared, reads = self.shared(url, location), (location, *sources)
        return new_store(url, operation, storage_options=shared, samples_chunks=1, reads=reads)

    def new_store(
        self, operation: str, url: str, backend: str | None, reads: "Sequence[Location]", samples_chunks: int
    ) -> "Store":
        """Return the store to create at `url`, on `backend` or the one that its name implies; see `new_store`."""
        from vczstore.stores.resolve import backend_of_new, new_store

        return new_store(
            url,
            operation,
            backend_storage=backend_of_new(url, backend),
            storage_options=self.for_store(url, reads).storage_options,
            samples_chunks=samples_chunks,
            no_lock=self.no_lock,
            reads=reads,
        )

    def find(self, source: str, location: str) -> list[str] | None:
        """Return the source, or its matches if it is a URL with a glob; None if the glob's folder does not exist."""
        from vczstore.stores import object_store
        from vczstore.stores.locations import is_url
        from vczstore.vcf.files import SUFFIXES

        storage_options = self.options_of(source, location)
        return object_store.find(source, storage_options, SUFFIXES) if is_url(source) else [source]


@contextmanager
def executor_errors() -> Iterator[None]:
    """Convert errors in the options of an executor, or of a missing library, to an `OptionError` or its like."""
    try:
        yield
    except executors.ExecutorOptionError as error:
        raise OptionError(str(error)) from error
    except executors.MissingEngineError as error:
        raise (missing_extra(error, error.extra) if error.extra else MissingDependencyError(str(error))) from error
