"""Lithops: tasks as functions of a cloud, or as processes of this machine that go through all that a cloud does.

Our own rather than Cubed's, which begins all tasks again with each plan, leaves what it has put into storage to a
process that outlives the driver, and lets other tasks go on when one has failed. One job of Lithops is one generation
of a plan; tasks that failed are another. Lithops may run a task twice: what only one of the two says reaches the
driver, so the other's writes are never committed, or are the same bytes.
"""

import copy
import io
import logging
import os
import pickle
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import networkx as nx
from cubed.runtime.pipeline import visit_node_generations
from cubed.runtime.types import Callback, DagExecutor
from cubed.runtime.utils import (
    execute_with_stats,
    handle_callbacks,
    handle_operation_end_callbacks,
    handle_operation_start_callbacks,
)

from executors.errors import ExecutorOptionError, MissingEngineError, first_line

LOCAL_POLL, REMOTE_POLL = 0.05, 1.0
"""Seconds between two looks at which tasks have ended: in a folder, and in an object store, which counts requests."""

SILENCE = 60.0
"""Seconds beyond the time that a task may take, after which those of which nothing was heard are given up."""


class LostTaskError(RuntimeError):
    """A task whose worker has ended, or never begun, without a word."""


@dataclass(frozen=True)
class _Attempt:
    """Of which operation of its generation, and where."""

    operation: int
    coords: Any
    attempt: int
    created: float


@dataclass(frozen=True)
class _Failure:
    """A task's own error, as distinct from Lithops'."""

    error: Exception


class LithopsExecutor(DagExecutor):
    """
    Runs tasks with Lithops.

    Parameters
    ----------
    backend, storage
        Of Lithops, such as ``aws_lambda`` and ``aws_s3``; what its configuration says by default, else ``localhost``.
    config
        Lithops' configuration. Credentials belong into the environment.
    config_file
        The same in a file; without either, Lithops looks in its usual places.
    runtime, runtime_memory
        What runs a task, and its memory in MB; this Python on ``localhost``.
    max_workers
        How many tasks run at once.
    retries
        How often a task that failed is tried again.
    timeout
        How many seconds a task may take; what the configuration says by default. A worker that was killed is
        missed only then, where the whole machine went with it.

    Raises
    ------
    ExecutorOptionError
        If Lithops does not take the options.
    MissingEngineError
        If Lithops, or what its backend needs, is not installed.
    """

    def __init__(
        self,
        *,
        backend: str | None = None,
        storage: str | None = None,
        config: Mapping[str, Any] | None = None,
        config_file: str | None = None,
        runtime: str | None = None,
        runtime_memory: int | None = None,
        max_workers: int | None = None,
        retries: int = 2,
        timeout: int | None = None,
    ) -> None:
        super().__init__()
        self.retries = retries
        self.timeout = timeout
        self._said: dict[str, Any] = {
            "backend": backend,
            "storage": storage,
            "config": config,
            "config_file": config_file,
        }
        self._machine = {"runtime": runtime, "runtime_memory": runtime_memory, "max_workers": max_workers}
        self._functions = self._begin()

    @property
    def name(self) -> str:
        """As in ``--executor``."""
        return "lithops"

    @property
    def remote(self) -> bool:
        """Whether tasks run on other machines, which do not see this one's files."""
        return bool(self._backend != "localhost")

    def _begin(self) -> Any:
        config = configure(**self._said)
        self._backend = config["lithops"]["backend"]
        machine = {key: value for key, value in self._machine.items() if value is not None}
        with _plain_errors(self._backend):
            import lithops

            # without a handler of its own, its warnings would reach the user beside our one error
            logging.getLogger("lithops").addHandler(logging.NullHandler())
            if self._backend == "localhost":
                # the first "python" on the path may be another one, and then no task would ever answer
                machine = {"runtime": sys.executable, **config.get("localhost", {}), **machine}
                machine["version"] = 2  # whose processes `_lost` looks at
                if "max_workers" in machine:
                    machine["worker_processes"] = machine.pop("max_workers")
                config["lithops"]["mode"] = "localhost"
            config[self._backend] = {**config.get(self._backend, {}), **machine}
            # a session of its own: Lithops hands its session on to processes that are started here, and then two
            # executors have one name, and take each other's results for theirs
            os.environ["__LITHOPS_SESSION_ID"] = secrets.token_hex(6)
            os.environ.pop("__LITHOPS_TOTAL_EXECUTORS", None)
            return lithops.FunctionExecutor(config=config, log_level=None)

    def execute_dag(
        self,
        dag: nx.MultiDiGraph,
        callbacks: Sequence[Callback] | None = None,
        **_: Any,
    ) -> None:
        """
        Run all tasks.

        Raises
        ------
        Exception
            Of the first task that failed once more than `retries` times. No task is begun any more; those that run
            are killed on this machine; in a cloud they run to their end, and their results are ignored.
        ExecutorOptionError
            If tasks may use more memory than a worker has, or need files of this machine where workers are on others.
        """
        self._check_memory(dag)
        self._functions = self._functions or self._begin()
        try:
            for generation in visit_node_generations(dag):
                for name, _node in generation:
                    handle_operation_start_callbacks(callbacks, name)
                self._run(generation, callbacks)
                for name, _node in generation:
                    handle_operation_end_callbacks(callbacks, name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what runs, and delete all that was put into storage and Lithops' folders."""
        functions, self._functions = self._functions, None
        if functions is None:
            return
        from lithops.constants import JOBS_DIR, JOBS_PREFIX, LOGS_DIR
        from lithops.storage.utils import clean_bucket

        try:
            functions.__exit__(None, None, None)
        finally:
            storage = functions.internal_storage.storage
            for ending in ("/", "-"):  # its functions, and its jobs
                clean_bucket(storage, storage.bucket, f"{JOBS_PREFIX}/{functions.executor_id}{ending}", sleep=0)
            folders = [Path(JOBS_DIR), Path(LOGS_DIR)]
            if storage.backend == "localhost":
                folders.append(Path(JOBS_DIR).parent / storage.bucket / JOBS_PREFIX)
            for folder in folders:
                for path in [*folder.glob(f"{functions.executor_id}-*"), folder / functions.executor_id]:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _check_memory(self, dag: nx.MultiDiGraph) -> None:
        memory = self._functions and self._functions.config[self._backend].get("runtime_memory")
        allowed = max([op.allowed_mem for _, op in dag.nodes(data="primitive_op") if op is not None], default=0)
        if self.remote and memory and allowed > memory * 10**6:
            raise ExecutorOptionError(
                f"a task may use {allowed:,} bytes, and a worker of {self._backend} has {memory * 10**6:,}; "
                "raise runtime-memory, or lower allowed-mem"
            )

    def _run(self, generation: Any, callbacks: Sequence[Callback] | None) -> None:
        names = [name for name, _ in generation]
        operations = [self._pickle((node["pipeline"].function, node["pipeline"].config)) for _, node in generation]
        for _, node in generation:
            self._pickle(node["pipeline"].mappable)  # what tasks are sent beside is looked at, too
        now = time.time()
        todo = [
            _Attempt(i, coords, 0, now)
            for i, (_, node) in enumerate(generation)
            for coords in node["pipeline"].mappable
        ]
        # by identity: what Lithops returns from a wait are the futures it was given
        running: dict[Any, _Attempt] = {}
        heard, last = time.monotonic(), (0, 0)
        while todo or running:
            if todo:
                running.update(zip(self._submit(operations, todo), todo, strict=True))
                todo = []
            lost = self._lost(running)
            done, _ = self._functions.wait(
                list(running),
                throw_except=False,
                return_when=0,  # whichever have ended by now
                download_results=True,
                show_progressbar=False,
                clean_jobs=False,
            )
            lost = [future for future in lost if future not in done]
            for future in [*done, *lost]:
                task = running.pop(future)
                match _Failure(LostTaskError(_LOST)) if future in lost else _result(future):
                    case _Failure(error) if task.attempt >= self.retries:
                        raise error
                    case _Failure():
                        todo.append(_Attempt(task.operation, task.coords, task.attempt + 1, time.time()))
                    case (result, stats):
                        about = {"name": names[task.operation], "task_create_tstamp": task.created}
                        handle_callbacks(callbacks, result, {**stats, **about})
            now, state = time.monotonic(), (len(running), sum(future.running for future in running))
            if state != last:
                heard, last = now, state
            elif running and now - heard > SILENCE + max(future.execution_timeout for future in running):
                raise LostTaskError(f"no task has begun or ended for {now - heard:.0f} s; see the logs of the workers")
            if not done:
                time.sleep(LOCAL_POLL if self._functions.storage.backend == "localhost" else REMOTE_POLL)

    def _lost(self, running: Mapping[Any, _Attempt]) -> list[Any]:
        """
        Tasks of this machine whose processes have ended silently, such as when they could not begin.

        Lithops itself waits for them for ever.
        """
        if self.remote:
            return []
        storage, jobs = self._functions.internal_storage, self._functions.compute_handler.env.jobs
        ended = [future for future in running if jobs[future.job_key].done]
        # what a task says it says before it ends
        return [f for f in ended if storage.get_call_status(f.executor_id, f.job_id, f.call_id) is None]

    def _submit(self, operations: list[bytes], tasks: list[_Attempt]) -> list[Any]:
        # Lithops goes by the names of the parameters, and takes no partial
        def work(operation: int, coords: Any) -> Any:
            return _run_task(operations[operation], coords)

        return list(
            self._functions.map(
                work,
                [(task.operation, task.coords) for task in tasks],
                timeout=self.timeout,
                include_modules=None,  # workers have what the driver has installed; nothing is sent along
            )
        )

    def _pickle(self, operation: Any) -> bytes:
        buffer = io.BytesIO()
        (_NoLocalStores if self.remote else cloudpickle.Pickler)(buffer).dump(operation)
        return buffer.getvalue()


def configure(
    backend: str | None, storage: str | None, config: Mapping[str, Any] | None, config_file: str | None
) -> dict[str, Any]:
    """Lithops' configuration, with the options in it; ``["lithops"]["backend"]`` is always there."""
    if config is not None and config_file is not None:
        raise ExecutorOptionError("the executor lithops takes config or config-file, not both")
    with _plain_errors(backend):
        from lithops import config as lithops_config

        said = copy.deepcopy(dict(config)) if config else lithops_config.load_config(config_file)
        result: dict[str, Any] = {key: value or {} for key, value in said.items()}
        ours = result.setdefault("lithops", {})
        ours.update({key: value for key, value in (("backend", backend), ("storage", storage)) if value is not None})
        ours["data_cleaner"] = False  # it would be a process that outlives this one
        ours.setdefault("backend", "localhost")
        return result


@contextmanager
def _plain_errors(backend: str | None) -> Iterator[None]:
    """What Lithops says about options, in one line."""
    try:
        yield
    except ImportError as error:
        if error.name == "lithops":
            raise MissingEngineError("lithops is not installed", extra="lithops") from error
        raise MissingEngineError(
            f"the executor lithops needs {error.name} for {backend or 'its backend'}, which is not installed"
        ) from error
    except Exception as error:  # Lithops raises plain exceptions
        raise ExecutorOptionError(f"the executor lithops cannot be configured: {first_line(error)}") from error


_LOST = "a worker has ended silently: it could not start, or was killed; see localhost-runner.log of Lithops"


class _NoLocalStores(cloudpickle.Pickler):
    """Refuses folders of this machine: another one would find nothing there, and take all chunks for missing."""

    def persistent_id(self, obj: Any) -> None:
        if type(obj).__name__.endswith("LocalStore"):  # zarr's, ours and obstore's
            raise ExecutorOptionError(
                f"{obj} is on this machine, where workers on others do not find it; put it into an object store"
            )


def _run_task(operation: bytes, coords: Any) -> Any:
    """In the worker: one task, whose error is a result. It travels as it is, and Lithops logs none of it."""
    function, config = cloudpickle.loads(operation)
    try:
        return execute_with_stats(function, coords, config=config)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return _Failure(RuntimeError(f"{type(error).__name__}: {error}"))
        return _Failure(error)


def _result(future: Any) -> Any:
    """What a task has returned; an error of Lithops is a failure like any other."""
    hook = sys.excepthook  # Lithops puts one of its own in its place
    try:
        return future.result()
    except Exception as error:
        return _Failure(error)
    finally:
        sys.excepthook = hook
