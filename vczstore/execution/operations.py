"""How an operation is declared: once, for the command line, job files, Python and the reference pages.

An operation is a frozen dataclass in a module of its own in ``plans/``, or in a package that names it as an entry
point of the group ``vczstore.operations``. Its fields are its arguments and options, made by `argument` and `option`;
what compiles it is imported when it runs, so that the command line can list operations without importing NumPy.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import Field, dataclass, fields
from functools import cache
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin, get_type_hints

from vczstore.choices import AMERICAN
from vczstore.declarations import Declared, argument, declared
from vczstore.errors import OptionError, first_line

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan, Survey
    from vczstore.execution.options import Options
    from vczstore.execution.results import Found, Result
    from vczstore.stores.base import HeldLock, Store
    from vczstore.vcz.model import Vcz

type Stages = Generator["Survey", list[list[Any]], "Plan"]
"""A plan that is compiled in stages: it yields what to look up in the data, and is sent what was found."""

ENTRY_POINTS = "vczstore.operations"
"""Entry points of this group are operations of other packages."""

GROUPS = {
    "edit": "Edit a store",
    "withdraw": "Withdraw samples",
    "release": "Release",
    "look": "Look at a store",
    "maintain": "Look after a store",
    "jobs": "Jobs",
    "other": "Other commands",
}
"""The groups that commands are listed in, and their headings, in this order."""


IN_COMMIT, OWN_COMMIT, CHECKS, PUBLISHES, NAMES, EXPORTS, CLEANS = range(7)
"""When a job does its steps: all in one commit, then those with a commit of their own, and so on, in this order."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """
    An operation with its arguments.

    Raises
    ------
    OptionError
        If an option has a value that it cannot have.
    """

    called: ClassVar[str]
    """Its name on the command line and in job files: that of its class in kebab-case."""
    group: ClassVar[str] = "other"
    """The group of commands that it is listed in: one of `GROUPS`, or one of another package's own."""
    uses: ClassVar[tuple[str, ...]] = ("store", "branch")
    """The groups of `vczstore.execution.options.GROUPS` that it takes."""
    is_step: ClassVar[bool] = False
    """Whether a job file can have it as a step."""
    phase: ClassVar[int] = IN_COMMIT
    """When a job does it: in its commit, or afterwards, in this order."""
    step_examples: ClassVar[tuple[Any, ...]] = ()
    """What stands behind its key in a job file, for the reference page."""
    dry_run: ClassVar[str] = ""
    """What ``--dry-run`` does; empty for an operation that has no such option."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Options of version 0.1.0 that have no effect."""
    is_of_history: ClassVar[bool] = False
    """Whether it is done once to a repository, for any number of its groups that are parts of a set."""
    is_handed_out: ClassVar[bool] = False
    """Whether others get what it makes or lists, so that a set that is out of step is refused, as by what writes."""
    makes_store: ClassVar[bool] = False
    """Whether the store itself is made, so that the parts of a set are those of what comes in."""
    order: ClassVar[tuple[str, ...]] = ("store",)
    """The arguments that come first, in this order."""

    store: Any = argument(
        "The store: a path, a URL, a Zarr store or an Icechunk repository.", kind="location", job=False
    )

    def __init_subclass__(cls) -> None:
        cls.called = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if get_origin(one.type) is tuple or _is_tuple_or_none(one.type):
                value = (value,) if isinstance(value, str | os.PathLike) else value
                value = None if value is None else tuple(value)
            if declared(one).kind in ("location", "sources"):
                value = tuple(map(_zarr_store, value)) if declared(one).kind == "sources" else _zarr_store(value)
            object.__setattr__(self, one.name, value)  # still being made
            _check(f"{self.called}: {one.name}", declared(one), value)

    @property
    def writes(self) -> bool:
        """Whether it writes to the store, so that a store that can only be read is refused."""
        return False

    @property
    def completes(self) -> bool:
        """Whether on a set it looks after what was stopped halfway itself, since it may complete it."""
        return False

    @property
    def to_confirm(self) -> "Operation | None":
        """What deletes for good, and whose dry run a user on a terminal is shown and asked about; None if nothing."""
        return None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Its arguments and options but the store, for JSON; of files that it reads, a digest of what is in them."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "store"}
        for one in fields(self):
            if declared(one).kind == "file" and (path := values[one.name]) is not None and os.path.isfile(path):
                with open(path, "rb") as file:
                    values[one.name] = hashlib.file_digest(file, "blake2b").hexdigest()
        return values

    @property
    def changed_options(self) -> dict[str, Any]:
        """Its options that are not at their defaults: what tells one step of a job from another, beside its batches."""
        return {one.name: value for one in options(type(self)) if (value := getattr(self, one.name)) != one.default}

    def perform(self, options: "Options", *, dry_run: bool) -> "Found":
        """Do it, and return what was done or found."""
        raise NotImplementedError

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Found":
        """Do it within a job, which holds the lock."""
        return self.perform(options, dry_run=False)

    def perform_set(self, group: Any, *, dry_run: bool) -> "Found":
        """Do it on a `vczstore.execution.sets.members.StoreSet`: on all its stores, one after the other."""
        from vczstore.execution.results import FoundInParts

        parts = group.perform(dry_run=dry_run)
        once = ["once, since it concerns all groups of the repository"] if len(parts) < len(group.members) else []
        return FoundInParts(self.called, group.label, parts, notes=once)


def _zarr_store(location: Any) -> Any:
    """
    Return the Zarr store of a group at its top, and one over a store of obstore; any other location as it is.

    Raises
    ------
    OptionError
        If a group is inside of a store.
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


def _is_tuple_or_none(kind: Any) -> bool:
    return any(get_origin(one) is tuple for one in get_args(kind))


def _check(what: str, known: Declared, value: Any) -> None:
    """Raise an `OptionError` for a value that is none of the choices, or out of bounds."""
    if known.choices and isinstance(value, str) and value not in known.choices:
        raise OptionError(f"{what} is {value!r}; choose one of {', '.join(known.choices)}")
    low, high = known.bounds or (None, None)
    if isinstance(value, int) and not isinstance(value, bool):
        if high is not None and not (low or 0) <= value <= high:
            raise OptionError(f"{what} is {value:,}; give a number from {low or 0:,} to {high:,}")
        if low is not None and value < low:
            raise OptionError(f"{what} is {value:,}; give {low:,} or more")


@dataclass(frozen=True, kw_only=True)
class Edit(Operation):
    """An operation that is compiled into a plan, which runs on any executor and is committed at once."""

    uses: ClassVar[tuple[str, ...]] = (
        *("store", "branch", "lock", "impl", "work_dir", "workers", "progress", "retries"),
    )
    dry_run: ClassVar[str] = "Check everything and print what would be done; write nothing."
    is_seen_early: ClassVar[bool] = True
    """Whether readers of plain Zarr may notice some of what is written before all of it is there."""
    changes_samples: ClassVar[bool] = True
    """Whether parts of a set that it was not done to can be told by their samples."""

    @property
    def writes(self) -> bool:
        """Whether it writes to the store."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.then  # which checks its options, too

    @property
    def then(self) -> "Edit | None":
        """What follows in the same commit."""
        return None

    @property
    def beyond_plan(self) -> str | None:
        """The option that says what follows in the same commit, or after it, which a plan alone does not hold."""
        return None if self.then is None else self.then.called

    @property
    def is_exclusive(self) -> bool:
        """Whether it keeps jobs, and others that take long or delete, from the store, and not just other writers."""
        return False

    @property
    def purges(self) -> str:
        """What a purge that follows the commit does with tags; empty where none follows."""
        return ""

    def check(self, options: "Options") -> None:
        """Check what is known before anything is locked."""

    def store_to_lock(self, options: "Options") -> "Store | None":
        """Open the store whose writers are kept away while it runs; None if it writes to none that is there."""
        return options.for_store(self.store, getattr(self, "sources", ())).open(self.store)

    def open(self, options: "Options", written: "Store | None", *, dry_run: bool) -> "Compiling":
        """Open the store, unless it is open because it was locked, and what comes into it."""
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.vcf.conversion import Layout

        sources = getattr(self, "sources", ())
        store = options.for_store(self.store, sources).open(self.store) if written is None else written
        vcz = store.open()
        opened = open_sources(self.called, options, self.store, sources, layout=lambda: Layout.of(vcz))
        return Compiling(store, vcz, opened, options.memory, options.impl, dry_run)

    def compile(self, compiling: "Compiling") -> Stages:
        """Compile it against what was opened; nothing is written."""
        raise NotImplementedError

    def again(self, vcz: "Vcz", ahead: "Sequence[Operation]") -> "Edit | None":
        """What is left to do of a step that jobs have done before, of which others are `ahead`; None if nothing is."""
        return None

    def purge_history(self, options: "Options", lock: "HeldLock") -> "Found":
        """Purge the store, where `purges` says how."""
        raise NotImplementedError

    def afterwards(self, result: "Result", options: "Options", lock: "HeldLock") -> "Result":
        """Do what follows the commit, under the same lock."""
        return result


def arguments(operation: type[Operation]) -> "list[Field[Any]]":
    """The positional arguments of an operation, in their order."""
    found = [one for one in fields(operation) if declared(one).is_argument]
    return sorted(found, key=lambda one: [one.name != name for name in operation.order])


def options(operation: type[Operation]) -> "list[Field[Any]]":
    """The options of an operation, its own before those that it shares."""
    found = [one for one in fields(operation) if not declared(one).is_argument]
    return sorted(found, key=lambda one: one.name not in operation.__annotations__)


@cache
def _ours() -> list[str]:
    import plans

    return [one.name.replace("_", "-") for one in iter_modules(plans.__path__) if not one.ispkg]


@cache
def _theirs() -> dict[str, Callable[[], type[Operation]]]:
    # importlib.metadata takes longer to import than a list of commands should take
    if not any(_declares(Path(folder)) for folder in sys.path if os.path.isdir(folder)):
        return {}
    from importlib.metadata import entry_points

    return {one.name: one.load for one in entry_points(group=ENTRY_POINTS)}


def _declares(folder: Path) -> bool:
    """Whether a package in a folder of ``sys.path`` has entry points for operations."""
    return any(
        f"[{ENTRY_POINTS}]" in path.read_text(errors="replace") for path in folder.glob("*.*-info/entry_points.txt")
    )


def names() -> list[str]:
    """The names of all operations: those in ``plans``, and those that other packages have, in alphabetical order."""
    return sorted({*_ours(), *_theirs()})


def _with_types(operation: type[Operation]) -> type[Operation]:
    """An operation whose fields have types, which annotations are not that are evaluated later."""
    types = get_type_hints(operation)
    for one in fields(operation):
        one.type = types[one.name]
    return operation


def listed(name: str) -> tuple[str, str]:
    """
    Return the group of an operation, and what it does, in a line.

    Its module is read, but not imported, which takes a millisecond.
    """
    if name in _ours():
        import plans

        source = Path(plans.__path__[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        summary = re.search(r'^class \w+\(.*\):\n    """\n    (.+)$', source, re.MULTILINE)
        group = re.search(r'^    group: ClassVar\[str\] = "(.+)"$', source, re.MULTILINE)
        if summary and group:
            return group[1], summary[1]
    try:
        found = find(name)
        return found.group, cleandoc(found.__doc__ or "").partition("\n")[0]
    except OptionError as error:
        return Operation.group, f"({error})"


def find(name: str) -> type[Operation]:
    """
    Find the class of an operation by its name.

    Raises
    ------
    OptionError
        If there is none.
    """
    name = AMERICAN.get(name, name)
    if name in _ours():
        module = import_module(f"plans.{name.replace('-', '_')}")
        (found,) = (
            one
            for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, Operation) and one.__module__ == module.__name__
        )
        return found
    if name in (theirs := _theirs()):
        try:
            return _with_types(theirs[name]())
        except Exception as error:  # a package may raise any exception when it is imported
            why = f"the package of this operation cannot be loaded ({first_line(error)})"
            raise OptionError(f"{name}: {why}") from error
    raise OptionError(f"no operation {name!r}; choose one of {', '.join(names())}")
