"""A local fake of Modal's servers.

The client is the real one, with its protocol, its pickling and its upload of sources, and so is the container
entry point: a process with the uploaded sources and the variables of its secrets, and nothing else of the test's
environment. The fake replaces the servers: scheduling, timeouts, and images, whose Dockerfiles are kept for the
test to inspect, or turned into a virtual environment by `environment_of`. Unlike in the cloud, containers share the
files of this machine.

It implements the private protocol of modal 1.6.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import hashlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import grpclib.const
import grpclib.server
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

TOKEN = ("ak-the-test-token", "as-the-test-secret")
BUILDER = "2025.06"
SERVICE = api.DESCRIPTOR.services_by_name["ModalClient"]
Result = api.GenericResult


@dataclass(eq=False)
class Call:
    """One call of a function, with its inputs and outputs."""

    id: str
    function: str
    kind: Any
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Input:
    """One input of a function call."""

    id: str
    item: Any
    call: Call
    retries: int = 0


class Answers:
    """Request handlers: one method per request, with the request's name. grpclib rejects other requests."""

    token: tuple[str, str] | None = None

    def __init__(self, modal: FakeModal) -> None:
        self.modal = modal

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {f"/{SERVICE.full_name}/{m.name}": self._handler(m) for m in SERVICE.methods if hasattr(self, m.name)}

    def _handler(self, method: Any) -> grpclib.const.Handler:
        answer = getattr(self, method.name)

        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            self.modal.requests[method.name] += 1
            token = tuple(stream.metadata.get(f"x-modal-token-{part}") for part in ("id", "secret"))
            if self.token is not None and token != self.token:
                raise GRPCError(Status.UNAUTHENTICATED, f"no such token: {token[0]}")
            await stream.send_message(await answer(request))

        types = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        return grpclib.const.Handler(handle, grpclib.const.Cardinality.UNARY_UNARY, *types)

    async def ClientHello(self, request: Any) -> Message:
        return api.ClientHelloResponse()


class ForClient(Answers):
    """Handlers of the client's requests."""

    token = TOKEN

    async def EnvironmentGetOrCreate(self, request: Any) -> Message:
        settings = api.EnvironmentSettings(image_builder_version=BUILDER)
        name = request.deployment_name or "main"
        self.modal.environments.append(name)
        metadata = api.EnvironmentMetadata(name=name, settings=settings)
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AppCreate(self, request: Any) -> Message:
        app = self.modal.new("ap")
        self.modal.apps[app] = "running"
        self.modal.app_names.append(request.description)
        return api.AppCreateResponse(app_id=app)

    async def AppHeartbeat(self, request: Any) -> Message:
        return Empty()

    async def AppPublish(self, request: Any) -> Message:
        return api.AppPublishResponse()

    async def AppClientDisconnect(self, request: Any) -> Message:
        self.modal.apps[request.app_id] = "stopped"
        await self.modal.stop(request.app_id)
        return Empty()

    async def SecretGetOrCreate(self, request: Any) -> Message:
        if request.deployment_name not in self.modal.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        return api.SecretGetOrCreateResponse(secret_id=f"st-{request.deployment_name}")

    async def MountBatchedCheckExistence(self, request: Any) -> Message:
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self.modal.files]
        return api.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: Any) -> Message:
        self.modal.files[request.sha256_hex] = request.data
        return api.MountPutFileResponse(exists=True)

    async def MountGetOrCreate(self, request: Any) -> Message:
        mount = self.modal.new("mo")
        self.modal.mounts[mount] = {f.filename: f.sha256_hex for f in request.files}
        return api.MountGetOrCreateResponse(mount_id=mount, handle_metadata=api.MountHandleMetadata())

    async def ImageGetOrCreate(self, request: Any) -> Message:
        image = self.modal.new("im")
        bases = [line for base in request.image.base_images for line in self.modal.images[base.image_id]]
        self.modal.images[image] = bases + list(request.image.dockerfile_commands)
        metadata = api.ImageMetadata(image_builder_version=BUILDER)
        result = Result(status=Result.GENERIC_STATUS_SUCCESS)
        return api.ImageGetOrCreateResponse(image_id=image, result=result, metadata=metadata)

    async def FunctionPrecreate(self, request: Any) -> Message:
        function = self.modal.new("fu")
        return api.FunctionPrecreateResponse(function_id=function, handle_metadata=_handle(request, function))

    async def FunctionCreate(self, request: Any) -> Message:
        name, definition = request.existing_function_id, request.function
        self.modal.functions[name] = Function(name, request.app_id, definition)
        ranked = api.FunctionData.RankedFunction(rank=0, function=definition)
        return api.FunctionCreateResponse(
            function_id=name,
            function=definition,
            handle_metadata=_handle(definition, name),
            function_data=api.FunctionData(function_name=definition.function_name, ranked_functions=[ranked]),
        )

    async def FunctionMap(self, request: Any) -> Message:
        call = Call(self.modal.new("fc"), request.function_id, request.function_call_invocation_type)
        self.modal.calls[call.id] = call
        responses = []
        for item in request.pipelined_inputs:
            queued = Input(self.modal.new("in"), item, call)
            call.inputs[queued.id] = queued
            self.modal.queue(queued)
            responses.append(api.FunctionPutInputsResponseItem(idx=item.idx, input_id=queued.id, input_jwt=queued.id))
        return api.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=responses,
            max_inputs_outstanding=1000,
            sync_client_retries_enabled=True,
        )

    async def FunctionRetryInputs(self, request: Any) -> Message:
        for item in request.inputs:
            retried = self.modal.calls[request.function_call_jwt].inputs[item.input_jwt]
            retried.retries += 1
            self.modal.queue(retried)
        return api.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    async def FunctionGetOutputs(self, request: Any) -> Message:
        outputs, first = self.modal.calls[request.function_call_id].outputs, int(request.last_entry_id.split("-")[0])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request.timeout):
                await self.modal.wait_for(lambda: len(outputs) > first)
        return api.FunctionGetOutputsResponse(outputs=outputs[first:], last_entry_id=f"{len(outputs)}-0")


class ForContainer(Answers):
    """Handlers of one container's requests."""

    def __init__(self, container: Container) -> None:
        super().__init__(container.modal)
        self.container = container

    async def ContainerHello(self, request: Any) -> Message:
        return Empty()

    async def ContainerHeartbeat(self, request: Any) -> Message:
        return api.ContainerHeartbeatResponse()

    async def FunctionGetInputs(self, request: Any) -> Message:
        function, container = self.container.function, self.container
        await self.modal.wait_for(lambda: function.queue and not container.killed)
        container.current = current = function.queue.popleft()
        if function.definition.timeout_secs:
            self.modal.spawn(container.end_after(function.definition.timeout_secs, current))
        item = api.FunctionGetInputsItem(
            input_id=current.id,
            input=current.item.input,
            function_call_id=current.call.id,
            retry_count=current.retries,
            function_call_invocation_type=current.call.kind,
        )
        return api.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: Any) -> Message:
        for output in request.outputs:
            current, self.container.current = self.container.current, None
            if current is not None:
                self.modal.finish(current, output.result, output.data_format)
        return Empty()

    async def TaskResult(self, request: Any) -> Message:
        """Report that the container failed to start."""
        self.modal.fail(self.container.function, request.result)
        return Empty()


def _handle(described: Any, name: str) -> Message:
    return api.FunctionHandleMetadata(
        function_name=described.function_name,
        function_type=described.function_type,
        function_schema=described.function_schema,
        supported_input_formats=described.supported_input_formats,
        supported_output_formats=described.supported_output_formats,
        definition_id=f"de-{name}",
    )


@dataclass(eq=False)
class Function:
    """A function of an app, its containers, and its pending inputs."""

    id: str
    app: str
    definition: Any
    queue: deque[Input] = field(default_factory=deque)
    containers: set[Container] = field(default_factory=set)


class Container:
    """A process that runs Modal's container entry point, and sends its requests to its own socket."""

    def __init__(self, modal: FakeModal, function: Function) -> None:
        self.modal, self.function = modal, function
        self.id = modal.new("ta")
        self.folder = modal.folder / self.id
        self.current: Input | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.killed = False

    async def run(self) -> None:
        """Run the process until it exits, and report a failure unless it was killed."""
        try:
            code = await self._run()
            reason = f"the container ended with {code}: {(self.folder / 'log').read_text()[-2000:]}"
        except Exception as error:
            reason = f"no container: {error!r}"
        self.function.containers.discard(self)
        if self.killed:
            return
        if self.current is not None:
            self.modal.finish(self.current, Result(status=Result.GENERIC_STATUS_INTERNAL_FAILURE, exception=reason))
            self.modal.start(self.function)
        else:
            self.modal.fail(self.function, Result(status=Result.GENERIC_STATUS_FAILURE, exception=reason))

    async def _run(self) -> int:
        definition = self.function.definition
        root = self.modal.mounted(definition.mount_ids) / "root"
        self.folder.mkdir()
        secrets = [self.modal.secrets[secret.removeprefix("st-")] for secret in definition.secret_ids]
        python = await asyncio.to_thread(self.modal.python, self.modal.images[definition.image_id])
        handle = _handle(definition, self.function.id)
        others = [api.Object(object_id=d.object_id) for d in definition.object_dependencies]
        arguments = api.ContainerArguments(
            task_id=self.id,
            function_id=self.function.id,
            app_id=self.function.app,
            function_def=definition,
            app_layout=api.AppLayout(
                objects=[api.Object(object_id=self.function.id, function_handle_metadata=handle), *others],
                function_ids={definition.function_name: self.function.id},
            ),
        )
        (self.folder / "arguments").write_bytes(arguments.SerializeToString())
        server = grpclib.server.Server([ForContainer(self)])
        await server.start(path=str(self.folder / "socket"))
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": str(root),
            **{name: os.environ[name] for name in os.environ if name == "PYTHONPYCACHEPREFIX"},
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": f"unix://{self.folder / 'socket'}",
            "MODAL_TASK_ID": self.id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(self.folder / "arguments"),
        }
        for variables in secrets:
            environment |= variables
        if self.killed:
            server.close()
            return -signal.SIGKILL
        with (self.folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(str(python), "-m", "modal._container_entrypoint"),
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.modal.processes.append(self.process.pid)
        try:
            return await self.process.wait()
        finally:
            server.close()

    async def end_after(self, seconds: float, current: Input) -> None:
        """Kill the container, and report a timeout, if the input is still running after `seconds`."""
        retries = current.retries
        await asyncio.sleep(seconds)
        if self.current is current and current.retries == retries:
            self.kill()
            reason = f"the input has hit its timeout of {seconds}s"
            self.modal.finish(current, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=reason))
            self.modal.start(self.function)

    def kill(self) -> None:
        """Kill the process."""
        self.killed, self.current = True, None
        self.function.containers.discard(self)
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@cache
def _mounts() -> Path:
    """A folder for mounts, removed when this process exits."""
    folder = tempfile.mkdtemp(prefix="fm")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class FakeModal:
    """
    Context manager that runs the fake servers in a thread.

    Parameters
    ----------
    secrets
        The variables of each secret, by name.
    python
        Returns the interpreter for an image, given its Dockerfile.
    max_containers
        Maximum number of concurrent containers per function, also if its settings allow more.
    """

    def __init__(
        self,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        *,
        python: Callable[[list[str]], Path] = lambda _: Path(sys.executable),
        max_containers: int = 2,
    ) -> None:
        self.secrets, self.python, self.max_containers = secrets or {}, python, max_containers
        self.requests: Counter[str] = Counter()
        self.apps: dict[str, str] = {}
        self.app_names: list[str] = []
        self.environments: list[str] = []
        self.images: dict[str, list[str]] = {}
        self.files: dict[str, bytes] = {}
        self.mounts: dict[str, dict[str, str]] = {}
        self.functions: dict[str, Function] = {}
        self.calls: dict[str, Call] = {}
        self.processes: list[int] = []
        self._ids: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self._tasks: set[asyncio.Task[None]] = set()
        self._container_tasks: list[asyncio.Task[None]] = []

    def new(self, kind: str) -> str:
        """Return an unused ID."""
        return f"{kind}-{next(self._ids[kind])}"

    def mounted(self, mounts: Sequence[str]) -> Path:
        """Write the files of mounts, to the same path if they are the same, so that Python compiles them once."""
        files = sorted(item for mount in mounts for item in self.mounts[mount].items())
        folder = _mounts() / hashlib.sha256(repr(files).encode()).hexdigest()
        if not folder.exists():
            (folder / "root").mkdir(parents=True)
            for name, digest in files:
                path = folder / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.files[digest])
        return folder

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine in the background."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_for(self, condition: Callable[[], Any]) -> None:
        """Poll until the condition is true."""
        while not condition():
            await asyncio.sleep(0.01)

    def queue(self, queued: Input) -> None:
        """Queue an input for any container of its function."""
        function = self.functions[queued.call.function]
        function.queue.append(queued)
        self.start(function)

    def start(self, function: Function) -> None:
        """Start a container if inputs are pending, all containers are busy, and the maximum is not reached."""
        wanted = len(function.queue) + sum(c.current is not None for c in function.containers)
        allowed = min(
            self.max_containers, function.definition.autoscaler_settings.max_containers or self.max_containers
        )
        if len(function.containers) < min(wanted, allowed):
            container = Container(self, function)
            function.containers.add(container)
            self._container_tasks.append(asyncio.ensure_future(container.run()))

    def finish(self, done: Input, result: Any, data_format: int = 0) -> None:
        """Record the result of an input."""
        output = api.FunctionGetOutputsItem(
            result=result, idx=done.item.idx, input_id=done.id, data_format=data_format, retry_count=done.retries
        )
        done.call.outputs.append(output)

    def fail(self, function: Function, result: Any) -> None:
        """Fail all pending inputs, unless the function has another container."""
        while function.queue and not function.containers:
            self.finish(function.queue.popleft(), result)

    async def stop(self, app: str) -> None:
        """Kill all containers of an app and drop its pending inputs."""
        for function in self.functions.values():
            if function.app == app:
                function.queue.clear()
                for container in list(function.containers):
                    container.kill()

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = grpclib.server.Server([ForClient(self)])
        await server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        started.set()
        await self._end.wait()
        for app in self.apps:
            await self.stop(app)
        server.close()
        await asyncio.gather(*self._container_tasks)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):  # another test covers unclosed sockets
            await asyncio.wait_for(server.wait_closed(), 5)

    def __enter__(self) -> Self:
        # a short prefix, because the length of a socket's path is limited
        self.folder = Path(tempfile.mkdtemp(prefix="fm"))
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        with warnings.catch_warnings():
            # collect the connections of killed clients now, so that the next test gets no warnings
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        shutil.rmtree(self.folder)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that make the client connect to these servers."""
        return {"MODAL_SERVER_URL": self.url, "MODAL_TOKEN_ID": TOKEN[0], "MODAL_TOKEN_SECRET": TOKEN[1]}


def environment_of(folder: Path, dockerfile: list[str]) -> Path:
    """Create a virtual environment from an image's ``pip install`` lines and Modal's client; return its Python."""
    (base,) = [line.partition("python:")[2] for line in dockerfile if line.startswith("FROM python:")]
    packages = [
        word
        for line in dockerfile
        for word in shlex.split(line.partition(" pip install --python $(command -v python) --compile-bytecode ")[2])
    ]
    import modal

    minor = ".".join(base.split("-")[0].split(".")[:2])
    assert minor == "{}.{}".format(*sys.version_info)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [*uv, "pip", "install", "-q", "--python", python, *packages, f"modal=={modal.__version__}"], check=True
    )
    return python
