"""Run tasks with Modal: in containers in a cloud, with an image that has the packages of the driver.

This replaces Cubed's executor, which creates its app at import, with an image that has neither Icechunk nor this
package, and which restarts a whole plan when a task has timed out. This one is created on demand, and retries tasks.
"""

import asyncio
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

import cloudpickle
import networkx as nx
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from executors.errors import ExecutorOptionError, MissingEngineError, first_line
from executors.local import LocalExecutor, PickledTask

if TYPE_CHECKING:
    from cubed.runtime.types import Callback, CubedPipeline

PACKAGE = "vczstore"
SOURCE = ("vczstore", "plans", "executors")
EXTRAS = ("obstore", "fsspec", "xarray")
"""Extras of this package that tasks need, too."""

CLOUDS = ("aws", "gcp", "oci", "auto")
CONTAINERS = 100
"""Default maximum number of containers, which is the limit of Modal for a new workspace."""

STARTING = 300
"""Timeout for the start of a container, in seconds."""

LONGEST = 86400
"""Maximum timeout of a task on Modal, in seconds."""

HERE_ONLY = (b"LocalStore", b"MemoryStore", b"LocalFileSystem", b"local_file_system_object", b"in_memory_object")
"""Substrings of pickled tasks that use a local store of Zarr, obstore, fsspec or Icechunk. In a container it would be
empty and read as fill values, and writes to it would be lost."""


class ModalError(RuntimeError):
    """Modal cannot run the tasks, or a task has timed out."""


class ModalExecutor(LocalExecutor):
    """
    Run tasks in containers of one Modal app, which runs from the first plan until `close`, or until a plan fails.

    Parameters
    ----------
    max_workers
        Maximum number of containers. Each runs one task at a time.
    retries
        Number of retries of a task that has failed or timed out.
    timeout
        Seconds that one attempt may take.
    cpu
        Cores of a container; Modal's own default is an eighth of one.
    memory
        Memory of a container in MiB; by default what the first plan allows a task. Plans that allow more are refused.
    cloud
        One of `CLOUDS`.
    region
        One or several regions of Modal; the region of the store costs least.
    variables_from
        Names of Modal secrets, never values; tasks have their variables in the environment. The option is
        not called ``secrets``, a key that job files refuse.
    image_packages
        Requirements to install in addition to the packages of the driver.
    environment_name
        Environment of Modal, if there are several.
    app_name
        Name of the app in Modal's lists.

    Raises
    ------
    ExecutorOptionError
        If an option is invalid, or there is no token. Nothing was sent to Modal then.
    MissingEngineError
        If modal is not installed.

    Notes
    -----
    A plan that fails or is interrupted stops the app and its containers. Modal does not report when the last of them
    has ended, so a task that was running may still write some chunks.
    """

    name = "modal"

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        retries: int = 2,
        timeout: int = 600,
        cpu: float = 1.0,
        memory: int | None = None,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        variables_from: str | Sequence[str] = (),
        image_packages: str | Sequence[str] = (),
        environment_name: str | None = None,
        app_name: str = PACKAGE,
    ) -> None:
        _check_number("max_workers", CONTAINERS if max_workers is None else max_workers, 1)
        _check_number("retries", retries, 0)
        _check_number("timeout", timeout, 1, LONGEST)
        _check_number("cpu", cpu, 0.125, integer=False)
        if memory is not None:
            _check_number("memory", memory, 128)
        if cloud is not None and cloud not in CLOUDS:
            raise ExecutorOptionError(f"modal: cloud is {cloud!r}; choose one of {', '.join(CLOUDS)}")
        for option, text in (("environment_name", environment_name), ("app_name", app_name)):
            if text is not None and (not isinstance(text, str) or not text):
                raise ExecutorOptionError(f"modal: {option} is {text!r}; give a name")
        super().__init__(max_workers=CONTAINERS if max_workers is None else max_workers, retries=retries)
        self.timeout, self.cpu, self.memory, self.cloud = timeout, cpu, memory, cloud
        self.region = None if region is None else _texts("region", region)
        self.variables_from = _secret_names(variables_from)
        self.image_packages = _texts("image_packages", image_packages)
        self.environment_name, self.app_name = environment_name, app_name
        _requirements(self.image_packages)
        _check_token()

    def execute_dag(
        self,
        dag: nx.MultiDiGraph,
        callbacks: "Sequence[Callback] | None" = None,
        **options: Any,
    ) -> None:
        """
        Run all tasks.

        Raises
        ------
        ModalError
            If a store or the folder for intermediate data is on this machine only, containers are too small for the
            plan, Modal reports an error, or a task has timed out and exhausted its `retries`.
        Exception
            The error of the first task that has exhausted its `retries`.
        """
        import modal

        nodes = [node for _, node in dag.nodes(data=True)]
        for node in nodes:
            if "pipeline" in node and _is_here_only(node["pipeline"]):
                raise ModalError(
                    "a store is on this machine, which Modal's containers cannot reach; "
                    "keep the store and its sources where a URL such as s3:// leads"
                )
            intermediate = getattr(node.get("target"), "store", None)
            if isinstance(intermediate, str) and "://" not in intermediate:
                raise ModalError(
                    "the folder for intermediate data is on this machine, which Modal's containers cannot reach; "
                    "let work_dir be a URL such as s3://"
                )
        allowed = max((node["primitive_op"].allowed_mem for node in nodes if "primitive_op" in node), default=0)
        needed = max(128, math.ceil(allowed / 2**20))
        self.memory = self.memory or needed
        if self.memory < needed:
            raise ModalError(
                f"containers have {self.memory:,} MiB, a task is allowed {needed:,} MiB; "
                "raise memory, or lower what a task is allowed"
            )
        try:
            super().execute_dag(dag, callbacks=callbacks, **options)
        except modal.exception.FunctionTimeoutError as error:
            times = "once" if not self.retries else f"{self.retries + 1} times"
            raise ModalError(
                f"a task has not ended within the timeout of {self.timeout:,} s, tried {times}; raise timeout"
            ) from error
        except modal.exception.AuthError as error:
            raise ModalError("Modal does not accept the token; get another with: modal token new") from error
        except modal.Error as error:
            raise ModalError(f"modal: {first_line(error)}") from error

    def pool(self) -> Executor:
        """Define the image, start the app, and return its containers as a pool."""
        import modal

        image = (
            modal.Image.debian_slim(python_version=f"{sys.version_info.major}.{sys.version_info.minor}")
            .uv_pip_install(*pins(), *self.image_packages)
            .add_local_python_source(*SOURCE)
        )
        app = modal.App(self.app_name, include_source=False)
        function = app.function(
            image=image,
            secrets=[
                modal.Secret.from_name(name, environment_name=self.environment_name) for name in self.variables_from
            ],
            cpu=self.cpu,
            memory=self.memory,
            timeout=self.timeout,
            startup_timeout=STARTING,
            max_containers=self.max_workers,
            cloud=self.cloud,
            region=self.region,
        )(run_task)
        return _Containers(app.run(environment_name=self.environment_name), function.remote.aio)

    def tasks(self, pipeline: "CubedPipeline") -> Iterator[Callable[..., Any]]:
        """Yield the tasks of an operation, which is pickled once."""
        operation = _pickle(pipeline)
        for coords in pipeline.mappable:
            yield PickledTask(operation, coords)


def run_task(task: PickledTask) -> Any:
    """Run a task in a container."""
    return task()


class _Containers(Executor):
    """A pool that submits tasks to the containers of a running app."""

    def __init__(self, running: Any, remote: Callable[..., Any]) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(running)
        self._remote = remote
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modal", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(self._remote(fn, *args, **kwargs), self._loop)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the app and its containers, busy ones included."""
        try:
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        finally:
            self._stack.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---- the image ------------------------------------------------------------------------------


def pins() -> list[str]:
    """
    Return pinned requirements for all direct and indirect dependencies of this package that the driver has installed.

    Raises
    ------
    ExecutorOptionError
        If this package is not installed, so that its requirements are unknown.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(f"{PACKAGE}[{','.join(EXTRAS)}]")]
    while todo:
        requirement = todo.pop()
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # for another platform, or for an extra that the driver does not use
        name = canonicalize_name(requirement.name)
        versions[name] = installed.version
        for extra in {"", *requirement.extras} - {extra for package, extra in seen if package == name}:
            seen.add((name, extra))
            for line in installed.requires or ():
                dependency = Requirement(line)
                if dependency.marker is None or dependency.marker.evaluate({"extra": extra}):
                    todo.append(dependency)
    if versions.pop(PACKAGE, None) is None:
        raise ExecutorOptionError(f"modal: {PACKAGE} is not installed here, so what it needs is not known; install it")
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _is_here_only(pipeline: "CubedPipeline") -> bool:
    """Whether an operation, or an input of its tasks, uses a store that is on this machine only."""
    pickles = _pickle(pipeline), bytes(cloudpickle.dumps(pipeline.mappable))
    return any(mark in pickled for mark in HERE_ONLY for pickled in pickles)


def _pickle(pipeline: "CubedPipeline") -> bytes:
    return bytes(cloudpickle.dumps((pipeline.function, pipeline.config)))


# ---- options --------------------------------------------------------------------------------


def _check_number(option: str, value: Any, least: float, most: float = math.inf, *, integer: bool = True) -> None:
    kind = int if integer else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if integer else "a number"
        limit = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ExecutorOptionError(f"modal: {option} is {value!r}; give {what} {limit}")


def _texts(option: str, values: Any) -> list[str]:
    listed = [values] if isinstance(values, str) else values
    if isinstance(listed, Mapping) or not isinstance(listed, Sequence):
        raise ExecutorOptionError(f"modal: {option} is not a list of names")
    if not all(isinstance(value, str) and value for value in listed):
        raise ExecutorOptionError(f"modal: {option} has something in it that is not a name")
    return list(listed)


def _secret_names(names: Any) -> list[str]:
    """Check the names of secrets; an invalid one is not in the message, since it may be the secret itself."""
    if isinstance(names, Mapping) or any("=" in name for name in _texts("variables_from", names)):
        raise ExecutorOptionError(
            "modal: variables_from takes names of Modal secrets, never values; "
            "make one with: modal secret create NAME KEY=VALUE"
        )
    return _texts("variables_from", names)


def _requirements(packages: Sequence[str]) -> None:
    for package in packages:
        try:
            Requirement(package)
        except InvalidRequirement as error:
            raise ExecutorOptionError(
                f"modal: image_packages: {package!r} is not a requirement; give one such as s3fs==2026.1.0"
            ) from error


def _check_token() -> None:
    try:
        from modal.config import config
    except ImportError as error:
        raise MissingEngineError("modal is not installed", extra="modal") from error
    if not (config.get("token_id") and config.get("token_secret")) and not config.get("oauth_refresh_token"):
        raise ExecutorOptionError(
            "modal: there is no token; get one with: modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        )
