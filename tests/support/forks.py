"""
Programs that are forks of one process, which has imported what they need: a run takes a tenth of a second, not one.

What a fork does not show has a test with a process of its own: what is imported, the start and the end of Python, the
encoding of its output, interrupts. The server has begun no thread when it forks; so Icechunk, whose import begins some,
is left to each program.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

IMPORTED = (
    *("executors.local", "plans.core.cubed_backend", "plans.core.ledger", "plans.maintenance.verify"),
    *("vczstore.api", "vczstore.cli.main", "vczstore.execution.engine", "vczstore.jobs.run", "vczstore.jobs.model"),
    *(f"plans.compilers.{name}" for name in ("append", "compact", "copy", "create", "recompute", "remove", "update")),
)
"""None of them imports icechunk."""
CLIENT = """\
#!{python} -SI
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = {{"program": {program!r}, "arguments": sys.argv[1:]}}
    request |= {{"folder": os.getcwd(), "variables": {{**os.environ}}}}
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8)], [0, 1, 2])
    server.sendall(content)
    pid = int.from_bytes(server.recv(8))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    status = int.from_bytes(server.recv(8), signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
PROGRAMS = ("vczstore", "python", "vcf2zarr")
"""Of Python, ``python -c CODE ...``."""


def program(name: str) -> str:
    """The path of one of `PROGRAMS`, to be called as any other program is."""
    return str(folder() / name)


@cache
def folder() -> Path:
    """A folder with `PROGRAMS`, for the head of ``PATH``; and what forks, as long as this process lives."""
    made = Path(tempfile.mkdtemp(prefix="forks-"))
    made.chmod(0o755)  # for programs without root's rights
    address = str(made / "socket")
    for name in PROGRAMS:
        (made / name).write_text(CLIENT.format(python=sys.executable, address=address, program=name))
        (made / name).chmod(0o755)
    # "-c": processes that workers are spawned in would import any other main module
    command = [sys.executable, "-c", "from tests.support.forks import serve; serve()", address]
    environment = {name: value for name, value in os.environ.items() if name != "ICECHUNK_LOG"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # it would begin threads
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe)
    atexit.register(_end, server, made)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return made


def _end(server: subprocess.Popen[bytes], made: Path) -> None:
    server.communicate()
    shutil.rmtree(made, ignore_errors=True)


def serve() -> None:
    """Fork for whoever connects, until standard input ends; a fork goes on as the program that it is asked to be."""
    for name in IMPORTED:
        import_module(name)
    listener, selector = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(sys.argv[1])
    Path(sys.argv[1]).chmod(0o777)  # for programs without root's rights
    listener.listen()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, files = _receive(connection)
                if request["program"] == "vcf2zarr":
                    import_module("bio2zarr.cli")
                assert len(os.listdir("/proc/self/task")) == 1
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    listener.close()
                    connection.close()
                    _become(request, files)
                    return
                for file in files:
                    os.close(file)
                connection.sendall(pid.to_bytes(8))
                end = os.pidfd_open(pid)
                selector.register(end, selectors.EVENT_READ, (pid, connection))
                selector.register(connection, selectors.EVENT_READ, pid)
            elif key.data is None:
                return
            elif isinstance(key.data, int):  # whoever asked was killed
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                _tell_the_end(*key.data, selector)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(length):
        content += connection.recv(int.from_bytes(length) - len(content))
    return json.loads(content), files


def _tell_the_end(pid: int, connection: socket.socket, selector: selectors.BaseSelector) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(KeyError):
        selector.unregister(connection)
    with suppress(OSError):  # the other end is closed
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, signed=True))
    connection.close()


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Be the program, in the folder, with the environment and the files of whoever asked."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8:strict").partition(":")
    sys.stdout.reconfigure(encoding=encoding, errors=errors)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program, arguments = request["program"], request["arguments"]
    match program:
        case "vczstore":
            from vczstore.__main__ import run

            sys.argv = [program, *arguments]
            run(arguments)
        case "python":
            flag, code, *arguments = arguments
            assert flag == "-c"
            sys.argv = [flag, *arguments]
            exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
        case "vcf2zarr":
            from bio2zarr.cli import vcf2zarr_main

            # in this process: others are spawned, and import for two seconds each
            vcf2zarr_main([*arguments, "--worker-processes", "0"], prog_name=program)
