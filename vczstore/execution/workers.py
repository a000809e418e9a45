"""What runs tasks: Cubed on an executor, whose workers have to reach the store that the driver sees."""

import secrets
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import executors
from vczstore.errors import OptionError, UnsuitableError
from vczstore.execution.executor import create_executor
from vczstore.execution.options import Options
from vczstore.execution.progress import Display
from vczstore.execution.results import Run
from vczstore.stores.base import Store
from vczstore.stores.locations import local_path
from vczstore.stores.plain import is_same_everywhere, put
from vczstore.vcz.model import SAMPLE_ID
from vczstore.vcz.zarr_objects import NONCE, names

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan
    from cubed.runtime.types import DagExecutor
    from zarr.abc.store import Store as ZarrStore

    from plans.core.task_report import TaskReport

_KNOWN = ("zarr.json", ".zgroup", ".zattrs", f"{SAMPLE_ID}/zarr.json", f"{SAMPLE_ID}/.zarray")
"""What tells one store from another, and every store has some of."""


def _pickled(operation: str, label: str, zarr_store: "ZarrStore") -> bytes:
    from plans.core import reach

    try:
        return reach.pickled(zarr_store)
    except Exception as error:  # a store of the user's may raise any exception there
        raise UnsuitableError(
            f"{operation}: {label} cannot be sent to other processes ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); use the executor threads, or name it by a path or URL"
        ) from error


class Workers:
    """
    Cubed on an executor, which is created when there is a first task, and whose workers end with the context.

    Parameters
    ----------
    options
        Which executor, with how many workers; and who is told of progress.
    """

    def __init__(self, options: Options) -> None:
        given = {} if options.max_workers is None else {"max_workers": options.max_workers}
        self.name = options.executor
        self.progress = options.progress if callable(options.progress) else None
        self.options = {**options.executor_options, **given}

    @cached_property
    def executor(self) -> "DagExecutor":
        """The executor."""
        return create_executor(self.name, self.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End workers that wait for more."""
        if "executor" in self.__dict__ and hasattr(self.executor, "close"):
            self.executor.close()

    def check_store(self, operation: str, store: Store) -> None:
        """Refuse a store in memory that other processes cannot reach; nothing is started for that."""
        if self.name not in executors.IN_PROCESS and not store.pickles:
            raise OptionError(
                f"{operation}: {store.label} is in this process's memory, which other processes cannot reach; "
                "use the executor threads"
            )

    def check_location(self, operation: str, store: Store) -> None:
        """Refuse a store that the workers do not find: what they wrote would be silently lost."""
        label = store.label
        if getattr(self.executor, "remote", False) and local_path(label) is not None:
            # an object that was handed in has no URL to tell by
            where = "is not named by a URL" if label.startswith("<") else "is on this machine"
            raise OptionError(
                f"{operation}: {label} {where}, so that the workers of {self.executor.name} may not find it; "
                "use the URL of an object store, or the executor processes"
            )
        if store.zarr_store is not None:
            self.check_reads(operation, label, store.zarr_store)

    def check_reads(self, operation: str, label: str, zarr_store: "ZarrStore") -> None:
        """Refuse a store, or a source, of which a first task does not read what the driver does."""
        if self.name in executors.IN_PROCESS or is_same_everywhere(zarr_store):
            return
        from plans.core import reach

        self._compare(operation, label, _pickled(operation, label, zarr_store), reach.read(zarr_store, _KNOWN), _KNOWN)

    def check_writes(self, operation: str, store: Store) -> None:
        """Refuse a store of which tasks have a copy: what is written once it is pickled a first task has to see."""
        if self.name in executors.IN_PROCESS or store.zarr_store is None or is_same_everywhere(store.zarr_store):
            return
        key, value = f"{SAMPLE_ID}/{NONCE}{secrets.token_hex(8)}", secrets.token_bytes(16)
        sent, there = _pickled(operation, store.label, store.zarr_store), store.zarr_store.with_read_only(False)
        for name in names(there, SAMPLE_ID):  # the lock of the store is held, so no other run needs them
            if name.startswith(NONCE):
                put(there, f"{SAMPLE_ID}/{name}", None)
        try:
            put(there, key, value)
            self._compare(operation, store.label, sent, [value], (key,))
        finally:
            put(there, key, None)

    def _compare(
        self, operation: str, label: str, sent: bytes, expected: list[bytes | None], keys: tuple[str, ...]
    ) -> None:
        from plans.core import cubed_backend as chunks
        from plans.core import reach

        found: list[Any] = []
        looking = reach.looking(sent, keys)
        assert looking is not None
        chunks.execute(looking, self.executor, lambda report: found.extend(value for _, value in report.found))
        if found != [expected]:
            why = f" ({found[0].splitlines()[0]})" if found and isinstance(found[0], str) else ""
            raise UnsuitableError(
                f"{operation}: {label}: the tasks of the executor {self.name} reach another store or a copy, not this "
                f"one{why}; nothing was written; use the executor threads, or name it by a path or URL"
            )

    def execute(
        self,
        what: str,
        plan: "FinalizedPlan | None",
        run: Run,
        on_report: Callable[["TaskReport"], None],
        *,
        done: Mapping[str, Collection[tuple[int, ...]]] | None = None,
    ) -> None:
        """Run one Cubed plan, if there is anything to do, without the tasks that are done."""
        if plan is None:
            return
        from plans.core import cubed_backend as chunks

        left = chunks.without(plan, done) if done else plan
        if left is None:
            return
        before, n_done = run.totals["tasks"], plan.num_tasks - left.num_tasks

        display, phase = self.progress if isinstance(self.progress, Display) else None, f"{what}{run.which}"
        if display is not None:
            display(phase, n_done, plan.num_tasks)

        def on_task(report: "TaskReport") -> None:
            on_report(report)
            run.add(what, report)
            if display is not None:
                display.n_bytes += report.encoded_bytes + report.decoded_bytes
            if self.progress is not None:
                self.progress(phase, n_done + run.totals["tasks"] - before, plan.num_tasks)

        chunks.execute(left, self.executor, on_task)
