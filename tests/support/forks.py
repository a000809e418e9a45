"""
Commands that run as forks of a server process with preloaded imports: 0.1 s per run instead of 1 s.

Tests of imports, of Python's start and exit, of output encoding and of interrupts use separate processes instead. The
server must be single-threaded when it forks, so it does not preload Icechunk, whose import starts threads.
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
"""Preloaded modules, none of which imports icechunk."""
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
"""The available commands; Python only as ``python -c CODE ...``."""


def program(name: str) -> str:
    """Path of an executable for one of `PROGRAMS`."""
    return str(folder() / name)


@cache
def folder() -> Path:
    """Start the server, which runs as long as this process; return a folder with `PROGRAMS`, for ``PATH``."""
    bin_folder = Path(tempfile.mkdtemp(prefix="forks-"))
    bin_folder.chmod(0o755)  # for programs without root privileges
    address = str(bin_folder / "socket")
    for name in PROGRAMS:
        (bin_folder / name).write_text(CLIENT.format(python=sys.executable, address=address, program=name))
        (bin_folder / name).chmod(0o755)
    # with "-c", because spawned worker processes would import any other main module
    command = [sys.executable, "-c", "from tests.support.forks import serve; serve()", address]
    environment = {name: value for name, value in os.environ.items() if name != "ICECHUNK_LOG"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # OpenBLAS would start threads
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe)
    atexit.register(_stop, server, bin_folder)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return bin_folder


def _stop(server: subprocess.Popen[bytes], bin_folder: Path) -> None:
    server.communicate()
    shutil.rmtree(bin_folder, ignore_errors=True)


def serve() -> None:
    """Fork for every client that connects, until standard input ends; each fork runs the requested program."""
    for name in IMPORTED:
        import_module(name)
    listener, selector = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(sys.argv[1])
    Path(sys.argv[1]).chmod(0o777)  # for programs without root privileges
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
                    _run_program(request, files)
                    return
                for file in files:
                    os.close(file)
                connection.sendall(pid.to_bytes(8))
                pidfd = os.pidfd_open(pid)
                selector.register(pidfd, selectors.EVENT_READ, (pid, connection))
                selector.register(connection, selectors.EVENT_READ, pid)
            elif key.data is None:
                return
            elif isinstance(key.data, int):  # the client was killed
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                _send_status(*key.data, selector)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(length):
        content += connection.recv(int.from_bytes(length) - len(content))
    return json.loads(content), files


def _send_status(pid: int, connection: socket.socket, selector: selectors.BaseSelector) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(KeyError):
        selector.unregister(connection)
    with suppress(OSError):  # the other end is closed
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, signed=True))
    connection.close()


def _run_program(request: dict[str, Any], files: list[int]) -> None:
    """Run the program with the client's working directory, environment and standard streams."""
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

            # in this process, because spawned workers take two seconds each for imports
            vcf2zarr_main([*arguments, "--worker-processes", "0"], prog_name=program)
