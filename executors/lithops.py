"""Run tasks with Lithops: as cloud functions, or as processes on this machine that take the same path.

This replaces Cubed's executor, which sets Lithops up again for each plan, leaves the cleaning of storage to a process
that outlives the driver, and lets other tasks run on after one has failed. One job of Lithops is one generation of a
plan; the retries of failed tasks are another. Lithops may run a task twice. The result of one of them reaches the
driver, so the writes of the other are never committed, or are the same bytes.
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
from cubed.runtime.types import Callback
from cubed.runtime.utils import execute_with_stats, handle_callbacks

from executors.errors import ExecutorOptionError, MissingEngineError, first_line
from executors.local import GenerationExecutor

LOCAL_POLL, REMOTE_POLL = 0.05, 1.0
"""Seconds between two polls for finished tasks: in a folder, and in an object store, which charges for requests."""

SILENCE = 60.0
"""Seconds beyond the timeout of a task in which no task has begun or ended, after which the plan fails."""


class LostTaskError(RuntimeError):
    """The worker of a task has ended, or failed to start, without a report."""


@dataclass(frozen=True)
class _Attempt:
    """An attempt of a task: index of its operation in the generation, coordinates, number from 0, and Unix time."""

    operation: int
    coords: Any
    attempt: int
    created: float


@dataclass(frozen=True)
class _Failure:
    """Result of a task that has failed: its error."""

    error: Exception


class LithopsExecutor(GenerationExecutor):
    """
    Run tasks with Lithops.

    Running a plan raises the error of the first task that has exhausted its `retries`. No further tasks are started.
    Running ones are killed on this machine; in a cloud they run to their end, and their results are ignored. It raises
    an `ExecutorOptionError` if tasks may use more memory than a worker has, or remote workers would need local files,
    and a `LostTaskError` if no task begins or ends for too long; see `SILENCE`.

    Parameters
    ----------
    backend, storage
        Backends of Lithops, such as ``aws_lambda`` and ``aws_s3``; by default those of its configuration, else
        ``localhost``.
    config
        The configuration of Lithops. Credentials belong in the environment.
    config_file
        Path of a configuration file; without this and `config`, Lithops searches its default locations.
    runtime, runtime_memory
        Runtime of the workers, and its memory in MB; by default this Python on ``localhost``.
    max_workers
        Maximum number of concurrent tasks.
    retries
        Number of retries of a failed task.
    timeout
        Seconds that a task may take; by default that of the configuration. The loss of a whole machine is noticed
        `SILENCE` seconds after the timeout.

    Raises
    ------
    ExecutorOptionError
        If Lithops refuses the options.
    MissingEngineError
        If Lithops, or a dependency of its backend, is not installed.
    """

    name = "lithops"

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
        self._config = configure(backend, storage, config, config_file)
        self._backend = self._config["lithops"]["backend"]
        self._machine = {"runtime": runtime, "runtime_memory": runtime_memory, "max_workers": max_workers}
        self._functions = self._begin()

    @property
    def remote(self) -> bool:
        """Whether tasks run on other machines, which cannot access local files."""
        return bool(self._backend != "localhost")

    def _begin(self) -> Any:
        config = copy.deepcopy(self._config)
        machine = {key: value for key, value in self._machine.items() if value is not None}
        with _plain_errors(self._backend):
            import lithops

            # without a handler, its warnings would be printed in addition to the one error of ours
            logging.getLogger("lithops").addHandler(logging.NullHandler())
            if self._backend == "localhost":
                # the first "python" on the path may be another one, with which tasks would never report
                machine = {"runtime": sys.executable, **config.get("localhost", {}), **machine}
                machine["version"] = 2  # `_lost` inspects the processes of this version
                if "max_workers" in machine:
                    machine["worker_processes"] = machine.pop("max_workers")
                config["lithops"]["mode"] = "localhost"
            config[self._backend] = {**config.get(self._backend, {}), **machine}
            # use a new session: Lithops passes its session on to child processes, and then two executors share a name
            # and mistake each other's results for their own
            os.environ["__LITHOPS_SESSION_ID"] = secrets.token_hex(6)
            os.environ.pop("__LITHOPS_TOTAL_EXECUTORS", None)
            return lithops.FunctionExecutor(config=config, log_level=None)

    def begin(self, dag: nx.MultiDiGraph) -> None:
        """Start Lithops unless it is running; refuse a plan whose tasks may use more memory than a worker has."""
        memory = self._functions and self._functions.config[self._backend].get("runtime_memory")
        allowed = max([op.allowed_mem for _, op in dag.nodes(data="primitive_op") if op is not None], default=0)
        if self.remote and memory and allowed > memory * 10**6:
            raise ExecutorOptionError(
                f"a task may use {allowed:,} bytes, and a worker of {self._backend} has {memory * 10**6:,}; "
                "raise runtime-memory, or lower allowed-mem"
            )
        self._functions = self._functions or self._begin()

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        """End running tasks on this machine, and delete this executor's objects in storage and in Lithops' folders."""
        functions, self._functions = self._functions, None
        if functions is None:
            return
        from lithops.constants import JOBS_DIR, JOBS_PREFIX, LOGS_DIR
        from lithops.storage.utils import clean_bucket

        try:
            functions.__exit__(None, None, None)
        finally:
            storage = functions.internal_storage.storage
            for suffix in ("/", "-"):  # functions, and jobs
                clean_bucket(storage, storage.bucket, f"{JOBS_PREFIX}/{functions.executor_id}{suffix}", sleep=0)
            folders = [Path(JOBS_DIR), Path(LOGS_DIR)]
            if storage.backend == "localhost":
                folders.append(Path(JOBS_DIR).parent / storage.bucket / JOBS_PREFIX)
            for folder in folders:
                for path in [*folder.glob(f"{functions.executor_id}-*"), folder / functions.executor_id]:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def run_generation(self, generation: Any, callbacks: Sequence[Callback] | None) -> None:
        names = [name for name, _ in generation]
        operations = [self._pickle((node["pipeline"].function, node["pipeline"].config)) for _, node in generation]
        if self.remote:
            for _, node in generation:
                self._pickle(node["pipeline"].mappable)  # check the inputs of tasks for local stores, too
        now = time.time()
        todo = [
            _Attempt(i, coords, 0, now)
            for i, (_, node) in enumerate(generation)
            for coords in node["pipeline"].mappable
        ]
        # keyed by identity: Lithops returns from a wait the same futures that it was given
        running: dict[Any, _Attempt] = {}
        since, last = time.monotonic(), (0, 0)
        while todo or running:
            if todo:
                running.update(zip(self._submit(operations, todo), todo, strict=True))
                todo = []
            lost = self._lost(running)
            done, _ = self._functions.wait(
                list(running),
                throw_except=False,
                return_when=0,  # do not block: return the tasks that have ended by now
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
                        identity = {"name": names[task.operation], "task_create_tstamp": task.created}
                        handle_callbacks(callbacks, result, {**stats, **identity})
            now, state = time.monotonic(), (len(running), sum(future.running for future in running))
            if state != last:
                since, last = now, state
            elif running and now - since > SILENCE + max(future.execution_timeout for future in running):
                raise LostTaskError(f"no task has begun or ended for {now - since:.0f} s; see the logs of the workers")
            if not done:
                time.sleep(LOCAL_POLL if self._functions.storage.backend == "localhost" else REMOTE_POLL)

    def _lost(self, running: Mapping[Any, _Attempt]) -> list[Any]:
        """
        Return the tasks on this machine whose processes have ended without a report, for instance at their start.

        Lithops itself would wait for them forever.
        """
        if self.remote:
            return []
        storage, jobs = self._functions.internal_storage, self._functions.compute_handler.env.jobs
        ended = [future for future in running if jobs[future.job_key].done]
        # a task reports before its process ends
        return [f for f in ended if storage.get_call_status(f.executor_id, f.job_id, f.call_id) is None]

    def _submit(self, operations: list[bytes], tasks: list[_Attempt]) -> list[Any]:
        # Lithops uses the parameter names, and does not accept a partial
        def work(operation: int, coords: Any) -> Any:
            return _run_task(operations[operation], coords)

        return list(
            self._functions.map(
                work,
                [(task.operation, task.coords) for task in tasks],
                timeout=self.timeout,
                include_modules=None,  # workers have the same packages as the driver, so none are sent
            )
        )

    def _pickle(self, operation: Any) -> bytes:
        buffer = io.BytesIO()
        (_NoLocalStores if self.remote else cloudpickle.Pickler)(buffer).dump(operation)
        return buffer.getvalue()


def configure(
    backend: str | None, storage: str | None, config: Mapping[str, Any] | None, config_file: str | None
) -> dict[str, Any]:
    """Return the configuration of Lithops with the options merged in; ``["lithops"]["backend"]`` is always set."""
    if config is not None and config_file is not None:
        raise ExecutorOptionError("the executor lithops takes config or config-file, not both")
    with _plain_errors(backend):
        from lithops import config as lithops_config

        loaded = copy.deepcopy(dict(config)) if config else lithops_config.load_config(config_file)
        result: dict[str, Any] = {key: value or {} for key, value in loaded.items()}
        general = result.setdefault("lithops", {})
        general.update({key: value for key, value in (("backend", backend), ("storage", storage)) if value is not None})
        general["data_cleaner"] = False  # the cleaner is a process that outlives this one
        general.setdefault("backend", "localhost")
        return result


@contextmanager
def _plain_errors(backend: str | None) -> Iterator[None]:
    """Convert errors of Lithops about options to one-line errors."""
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
    """Pickler that refuses local stores: on another machine they would be empty, and all chunks read as missing."""

    def persistent_id(self, obj: Any) -> None:
        if type(obj).__name__.endswith("LocalStore"):  # of zarr, vczstore and obstore
            raise ExecutorOptionError(
                f"{obj} is on this machine, where workers on others do not find it; put it into an object store"
            )


def _run_task(operation: bytes, coords: Any) -> Any:
    """Run a task in the worker. Its error is returned, so that it reaches the driver unchanged and is not logged."""
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
    """Return the result of a task; an error of Lithops becomes a `_Failure`."""
    hook = sys.excepthook  # Lithops replaces it
    try:
        return future.result()
    except Exception as error:
        return _Failure(error)
    finally:
        sys.excepthook = hook
