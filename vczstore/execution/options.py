"""How an operation finds its stores and runs: options that are the same for all operations."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import executors
from vczstore.choices import BACKENDS, IMPLS
from vczstore.declarations import documented, option
from vczstore.errors import OptionError

if TYPE_CHECKING:
    from plans.core.memory import Memory
    from vczstore.execution.conversions import Conversions
    from vczstore.execution.progress import Progress
    from vczstore.stores.base import Location, Store

MAX_RETRIES = 3
"""How often an operation is retried after a concurrent commit, by default."""

EXECUTOR_FILES = (".yaml", ".yml")
"""What the names of executor files end in."""

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
"""The options that a command takes, by what it does."""


@documented
@dataclass(frozen=True)
class Options:
    """
    How an operation finds its stores and runs; the same for all operations, in Python and on the command line.

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
        "The branch of an Icechunk repository that is read, and written to, instead of main; see vczstore branch.",
        metavar="NAME",
    )
    source_storage_options: Mapping[str, Any] | None = option(
        None,
        "The same for the sources alone, which then take none of `storage_options`.",
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
        None, "What of it Python itself takes, before a task has read a byte.", default_text="300MB", command=False
    )
    work_dir: str | None = option(
        None,
        "Folder for intermediate data: of VCFs, which are converted there, and of --impl xarray.",
        metavar="DIR",
        default_text="a temporary folder",
    )
    progress: "Progress | bool | None" = option(
        None,
        "Show on standard error what is under way, how fast, and for how long, or not.",
        flags=("-P/-Q", "--progress/--no-progress"),
        default_text="on a terminal",
    )
    log_file: str | None = option(
        None, "Add a line each minute to this file: the time, and what is under way.", metavar="FILE", kind="file"
    )
    max_retries: int = option(
        MAX_RETRIES,
        "How often to retry after a concurrent commit.",
        flags=("--max-retries", "--replans"),
        bounds=(0, None),
    )
    no_resume: bool = option(
        False,
        "Keep no checkpoint of what was written, with which the same command goes on after it was killed or failed.",
    )
    no_lock: bool = option(
        False,
        "Write without the lock of the store, where storage has no locks or does not permit one. If anything else "
        "writes to the store at the same time, batches are lost or mixed without an error.",
    )
    executor_options: Mapping[str, Any] = field(default_factory=dict, init=False)
    """What the executor file says; not given by itself."""
    conversions: "Conversions | None" = field(default=None, init=False, compare=False)
    """Where VCFs are converted for an operation that runs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts or ()))
        check_choice("backend", self.backend_storage, BACKENDS)
        check_choice("implementation", self.impl, IMPLS)
        self._read_executor()
        if self.max_workers is not None and self.max_workers < 1:
            raise OptionError(f"{self.max_workers} workers are too few; give at least 1")
        if self.max_retries < 0:
            raise OptionError(f"cannot retry {self.max_retries} times; give 0 or more")

    def _read_executor(self) -> None:
        name = str(self.executor)
        if name.endswith(EXECUTOR_FILES):
            from vczstore.configuration.executor_file import load_executor

            file = load_executor(name)
            said: dict[str, Any] = {"executor": file.name, "executor_options": file.options}
            for key in ("allowed_mem", "reserved_mem", "work_dir"):
                if getattr(self, key) is None:
                    said[key] = getattr(file, key)
            for key, value in said.items():
                object.__setattr__(self, key, value)  # still being made
        elif name not in executors.NAMES and name not in executors.names():
            raise OptionError(
                f"no executor {name!r}; choose one of {', '.join(executors.names())}, or name an executor file "
                "that ends in .yaml"
            )

    def but(self, **changes: Any) -> "Options":
        """The same with other values; what an executor file says stays, which `dataclasses.replace` would lose."""
        result = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(result, name, value)  # still being made
        return result

    @property
    def memory(self) -> "Memory":
        """What a task may use, and how long it should be on this executor."""
        from plans.core.memory import Memory
        from vczstore.execution.executor import task_bytes
        from vczstore.sizes import parse_size

        default = Memory()
        allowed = default.allowed if self.allowed_mem is None else parse_size(self.allowed_mem)
        reserved = default.reserved if self.reserved_mem is None else parse_size(self.reserved_mem)
        if allowed <= reserved:
            raise OptionError(
                f"{allowed:,} bytes of allowed memory leave nothing beside the {reserved:,} that Python itself "
                f"takes; allow at least {2 * reserved:,}"
            )
        return Memory(allowed, reserved, self.work_dir, task_bytes(self.executor, self.executor_options))

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
        """The options without those that are for the sources alone, since the store is on this machine."""
        from vczstore.stores.locations import scheme

        mine = scheme(location) or self.source_storage_options or not any(map(scheme, sources))
        return self if mine else self.but(storage_options=None)

    def options_of(self, source: "Location", location: "Location") -> Mapping[str, Any]:
        """The storage options that reach a source."""
        from vczstore.stores.locations import scheme

        if self.source_storage_options and scheme(source) not in (None, "http"):
            return self.source_storage_options
        return self.shared(source, location)

    def shared(self, other: "Location", location: "Location") -> Mapping[str, Any]:
        """The store's options where they reach another place too. fsspec's are no others'."""
        from vczstore.stores.locations import scheme

        mine, theirs = scheme(location), scheme(other)
        reach = theirs not in (None, "http") and mine in (None, theirs) and self.backend_storage != "fsspec"
        return (self.storage_options or {}) if reach else {}

    def place_of_copy(
        self, operation: str, copy: "str | os.PathLike[str]", location: "Location", sources: "Sequence[Location]" = ()
    ) -> "Store":
        """
        Find the place free where a copy on plain Zarr is going to be, of a store and of what else comes into it.

        Raises
        ------
        OptionError
            If its name is that of an Icechunk repository.
        UnsuitableError
            If something is there, or it is in one of these.
        """
        from vczstore.stores.resolve import backend_of_new, new_store

        url = os.fspath(copy)
        if backend_of_new(url, None) == "icechunk":
            raise OptionError(
                f"{operation}: {url} would be on plain Zarr, and its name ends in .icechunk; give another name, or "
                "leave the output out, and copy the store with copy-store-to-icechunk"
            )
        reach, reads = self.shared(url, location), (location, *sources)
        return new_store(url, operation, storage_options=reach, samples_chunks=1, reads=reads)

    def find(self, source: str, location: str) -> list[str] | None:
        """The source that a path or URL names, or those that a glob in a URL finds; None if nothing lies there."""
        from vczstore.stores import object_store
        from vczstore.stores.locations import is_url
        from vczstore.vcf.files import SUFFIXES

        reach = self.options_of(source, location)
        return object_store.find(source, reach, SUFFIXES) if is_url(source) else [source]


def check_choice(what: str, value: str | None, choices: Sequence[str]) -> None:
    """Raise an `OptionError` for a value that is none of the choices; None is one."""
    if value is not None and value not in choices:
        raise OptionError(f"no {what} {value!r}; choose one of {', '.join(choices)}")
