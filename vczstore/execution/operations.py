"""Declarations of operations, shared by the command line, job files, Python and the reference pages.

An operation is a frozen dataclass in a module of its own in ``plans/``, or in a package that names it as an entry
point of the group ``vczstore.operations``. Its fields are its arguments and options, made by `argument` and `option`.
Its compiler is imported when it runs, so that the command line can list operations without importing NumPy.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import Field, dataclass, fields
from functools import cache, partial
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from vczstore.choices import AMERICAN
from vczstore.declarations import Declared, argument, declared, is_list
from vczstore.errors import OptionError, first_line

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan, Survey
    from vczstore.execution.options import Options
    from vczstore.execution.results import Found, Result
    from vczstore.stores.base import Store
    from vczstore.stores.lock import HeldLock
    from vczstore.vcz.model import Vcz

type Stages = Generator["Survey", list[list[Any]], "Plan"]
"""The stages of compiling a plan: yields surveys, is sent a list of findings for each scan, and returns the plan."""

ENTRY_POINTS = "vczstore.operations"
"""Entry point group of the operations of other packages."""

GROUPS = {
    "edit": "Edit a store",
    "withdraw": "Withdraw samples",
    "release": "Release",
    "look": "Look at a store",
    "maintain": "Look after a store",
    "jobs": "Jobs",
    "other": "Other commands",
}
"""Groups of commands with their headings, in the order of the help."""


IN_COMMIT, OWN_COMMIT, CHECKS, PUBLISHES, NAMES, EXPORTS, CLEANS = range(7)
"""Phases of a job, in order: its own commit, operations with commits of their own, checks of the result, publication,
tags and other names, exports, and cleaning of the history."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """
    An operation with its arguments.

    Raises
    ------
    OptionError
        If an option has an invalid value.
    """

    called: ClassVar[str]
    """Name on the command line and in job files: the class name in kebab-case."""
    group: ClassVar[str] = "other"
    """Group of commands in the help: a key of `GROUPS`, or a heading of another package."""
    uses: ClassVar[tuple[str, ...]] = ("store", "branch")
    """Groups of shared options that it takes, keys of `vczstore.execution.options.GROUPS`."""
    is_step: ClassVar[bool] = False
    """Whether it can be a step of a job."""
    phase: ClassVar[int] = IN_COMMIT
    """Phase of a job in which it runs."""
    needs_variants: ClassVar[bool] = False
    """Whether it is compiled against all variants, so that no step of a job before it may insert any."""
    step_examples: ClassVar[tuple[Any, ...]] = ()
    """Example values of its key in a job file, for the reference page."""
    dry_run: ClassVar[str] = ""
    """What ``--dry-run`` does; empty for an operation that has no such option."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Options of version 0.1.0 that are accepted and ignored."""
    is_of_history: ClassVar[bool] = False
    """Whether it acts on the history of a repository, once for all of its groups that are parts of a set."""
    is_handed_out: ClassVar[bool] = False
    """Whether its output is passed on to others, so that it refuses a set whose parts are out of step, as writes do."""
    makes_store: ClassVar[bool] = False
    """Whether it creates the store, so that the parts of a set are taken from its sources."""
    order: ClassVar[tuple[str, ...]] = ("store",)
    """The arguments that come first, in order."""

    store: Any = argument(
        "The store: a path, a URL, a Zarr store or an Icechunk repository.", kind="location", job=False
    )

    def __init_subclass__(cls) -> None:
        cls.called = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if is_list(field):
                value = (value,) if isinstance(value, str | os.PathLike) else value
                value = None if value is None else tuple(value)
            if declared(field).kind in ("location", "sources"):
                value = tuple(map(_zarr_store, value)) if declared(field).kind == "sources" else _zarr_store(value)
            object.__setattr__(self, field.name, value)  # frozen, but still being initialised
            _check(f"{self.called}: {field.name}", declared(field), value)

    @property
    def writes(self) -> bool:
        """Whether it writes to the store, so that a read-only store is refused."""
        return False

    @property
    def completes(self) -> bool:
        """Whether it may complete an interrupted operation on a set, so that such a set is not refused."""
        return False

    @property
    def to_confirm(self) -> "Operation | None":
        """The irreversible operation whose dry run a user on a terminal has to confirm; None if there is none."""
        return None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Its arguments and options except the store, for JSON; files that it reads are replaced by digests."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "store"}
        for field in fields(self):
            if declared(field).kind == "file" and (path := values[field.name]) is not None and os.path.isfile(path):
                with open(path, "rb") as file:
                    values[field.name] = hashlib.file_digest(file, "blake2b").hexdigest()
        return values

    @property
    def names_samples(self) -> bool:
        """Whether an option may name samples: it takes sample IDs, or a file."""
        return any(declared(field).kind in ("samples", "samples-file", "file") for field in fields(self))

    @property
    def changed_options(self) -> dict[str, Any]:
        """Its options that are not at their defaults, which together with its sources identify a step of a job."""
        return {f.name: value for f in options(type(self)) if (value := getattr(self, f.name)) != f.default}

    def perform(self, options: "Options", *, dry_run: bool) -> "Found":
        """Run the operation, and return its outcome."""
        raise NotImplementedError

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Found":
        """Run the operation within a job that holds `lock`, the lock of the store."""
        return self.perform(options, dry_run=False)

    def perform_set(self, group: Any, *, dry_run: bool) -> "Found":
        """Run the operation on the stores of a `vczstore.execution.sets.members.StoreSet`, one after the other."""
        from vczstore.execution.results import FoundInParts

        parts = group.perform(dry_run=dry_run)
        once = ["once, since it concerns all groups of the repository"] if len(parts) < len(group.members) else []
        return FoundInParts(self.called, group.label, parts, notes=once)


def _zarr_store(location: Any) -> Any:
    """
    Return the Zarr store of a root group, or a Zarr store over an obstore store; any other location unchanged.

    Raises
    ------
    OptionError
        If a group is not the root group of its store.
    """
    package, kind = type(location).__module__.partition(".")[0], type(location).__name__
    if package == "obstore":
        from zarr.storage import ObjectStore

        return ObjectStore(location, read_only=False)
    if package == "zarr" and kind == "Group":
        if location.path:
            raise OptionError(f"a group at {location.path!r} of a Zarr store is no store; open the store at this path")
        return location.store
    return location


def _check(label: str, declaration: Declared, value: Any) -> None:
    """Raise an `OptionError` for a value that is none of the choices, or out of bounds."""
    if declaration.choices and isinstance(value, str) and value not in declaration.choices:
        raise OptionError(f"{label} is {value!r}; choose one of {', '.join(declaration.choices)}")
    low, high = declaration.bounds or (None, None)
    if isinstance(value, int) and not isinstance(value, bool):
        if high is not None and not (low or 0) <= value <= high:
            raise OptionError(f"{label} is {value:,}; give a number from {low or 0:,} to {high:,}")
        if low is not None and value < low:
            raise OptionError(f"{label} is {value:,}; give {low:,} or more")


@dataclass(frozen=True, kw_only=True)
class Edit(Operation):
    """An operation that is compiled into a plan, which runs on any executor and is one commit."""

    uses: ClassVar[tuple[str, ...]] = (
        *("store", "branch", "lock", "impl", "work_dir", "workers", "progress", "retries"),
    )
    dry_run: ClassVar[str] = "Check everything and print what would be done; write nothing."
    is_seen_early: ClassVar[bool] = True
    """Whether readers of plain Zarr may see some of its writes before it is complete."""
    changes_samples: ClassVar[bool] = True
    """Whether it changes sample IDs, by which parts of a set that it was not applied to can be identified."""

    @property
    def writes(self) -> bool:
        """Whether it writes to the store."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.then  # checks the options of the follow-up, too

    @property
    def then(self) -> "Edit | None":
        """The operation that follows in the same commit; None if there is none."""
        return None

    @property
    def beyond_plan(self) -> str | None:
        """The option that asks for a follow-up, in the same commit or after it, which a single plan cannot hold."""
        return None if self.then is None else self.then.called

    @property
    def is_exclusive(self) -> bool:
        """Whether it takes the exclusive lock, which keeps out jobs and other long or deleting operations."""
        return False

    @property
    def purges(self) -> str:
        """How a purge that follows the commit treats tags, one of `vczstore.choices.TAGS`; empty without a purge."""
        return ""

    def check(self, options: "Options") -> None:
        """Check arguments and options before anything is locked."""

    def store_to_lock(self, options: "Options") -> "Store | None":
        """Open the store that has to be locked while it runs; None if it writes to no existing store."""
        if not self.writes:
            return None
        return options.for_store(self.store, getattr(self, "sources", ())).open(self.store)

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the store, unless it was opened as `written` for locking, and the sources."""
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.vcf.conversion import Layout

        sources = getattr(self, "sources", ())
        store = options.for_store(self.store, sources).open(self.store) if written is None else written
        vcz = store.open()
        check = partial(self.check_samples, store, vcz)
        opened = open_sources(self.called, options, self.store, sources, layout=lambda: Layout.of(vcz), check=check)
        return Compiling(store, vcz, opened, options.memory, options.impl)

    def check_samples(self, store: "Store", vcz: "Vcz", sources: "Sequence[Vcz]") -> None:
        """Check the sample IDs of sources before VCFs are converted; these have only `sample_id`."""

    def compile(self, compiling: "Compiling") -> "Plan | Stages":
        """Compile the operation against the opened store and sources, in stages if it reads data; it writes nothing."""
        raise NotImplementedError

    def again(self, vcz: "Vcz", ahead: "Sequence[Operation]") -> "Edit | None":
        """
        Return the rest of a job's step, for a store to which an earlier job has applied it; None if nothing is left.

        `ahead` are the operations of the later steps.
        """
        return None

    def purge_history(self, options: "Options", lock: "HeldLock") -> "Found":
        """Purge the history of the store; `purges` is the option ``tags`` of the purge."""
        raise NotImplementedError

    def afterwards(self, result: "Result", options: "Options", lock: "HeldLock") -> "Result":
        """Run the follow-up after the commit, under the same lock; return the result with its outcome."""
        return result


def arguments(operation: type[Operation]) -> "list[Field[Any]]":
    """Return the positional arguments of an operation, in order."""
    args = [field for field in fields(operation) if declared(field).is_argument]
    return sorted(args, key=lambda field: [field.name != name for name in operation.order])


def options(operation: type[Operation]) -> "list[Field[Any]]":
    """Return the options of an operation, its own before the inherited ones."""
    own = [field for field in fields(operation) if not declared(field).is_argument]
    return sorted(own, key=lambda field: field.name not in operation.__annotations__)


@cache
def _built_in() -> list[str]:
    import plans

    return [module.name.replace("_", "-") for module in iter_modules(plans.__path__) if not module.ispkg]


@cache
def _from_packages() -> dict[str, Callable[[], type[Operation]]]:
    # checked first, since importing importlib.metadata takes too long for a list of commands
    if not any(_declares(Path(folder)) for folder in sys.path if os.path.isdir(folder)):
        return {}
    from importlib.metadata import entry_points

    return {entry_point.name: entry_point.load for entry_point in entry_points(group=ENTRY_POINTS)}


def _declares(folder: Path) -> bool:
    """Whether a package in a folder of ``sys.path`` has entry points for operations."""
    return any(
        f"[{ENTRY_POINTS}]" in path.read_text(errors="replace") for path in folder.glob("*.*-info/entry_points.txt")
    )


def names() -> list[str]:
    """Return the names of all operations, those of other packages included, in alphabetical order."""
    return sorted({*_built_in(), *_from_packages()})


def _with_types(operation: type[Operation]) -> type[Operation]:
    """Replace the types of an operation's fields in place: they are strings if annotations are postponed."""
    types = get_type_hints(operation)
    for field in fields(operation):
        field.type = types[field.name]
    return operation


def listed(name: str) -> tuple[str, str]:
    """
    Return the group of an operation, and the summary of its docstring.

    The source of a module in ``plans`` is read without importing it, which takes a millisecond.
    """
    if name in _built_in():
        import plans

        source = Path(plans.__path__[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        summary = re.search(r'^class \w+\(.*\):\n    """\n    (.+)$', source, re.MULTILINE)
        group = re.search(r'^    group: ClassVar\[str\] = "(.+)"$', source, re.MULTILINE)
        if summary and group:
            return group[1], summary[1]
    try:
        operation = find(name)
        return operation.group, cleandoc(operation.__doc__ or "").partition("\n")[0]
    except OptionError as error:
        return Operation.group, f"({error})"


def find(name: str) -> type[Operation]:
    """
    Return the class of an operation by its name.

    Raises
    ------
    OptionError
        If there is no such operation, or its package cannot be loaded.
    """
    name = AMERICAN.get(name, name)
    if name in _built_in():
        module = import_module(f"plans.{name.replace('-', '_')}")
        (operation,) = (
            member
            for member in vars(module).values()
            if isinstance(member, type) and issubclass(member, Operation) and member.__module__ == module.__name__
        )
        return operation
    if name in (loaders := _from_packages()):
        try:
            return _with_types(loaders[name]())
        except Exception as error:  # a package may raise any exception when it is imported
            why = f"the package of this operation cannot be loaded ({first_line(error)})"
            raise OptionError(f"{name}: {why}") from error
    raise OptionError(f"no operation {name!r}; choose one of {', '.join(names())}")
