"""
Imported by every Python process of a run to be killed, because this folder is in PYTHONPATH; see
`tests.system.survival.kills`.

It traces executed lines of vczstore and written files. Without a trigger it records all of them with their times; with
one it sends a signal at that point. The process sends the signal itself, so that it arrives exactly there.
"""

import atexit
import itertools
import json
import os
import sys
import threading
import time

FUNCTION = 1
"""Flag of the code objects of functions (CO_OPTIMIZED); module-level code does not have it."""
CHANGES = frozenset({"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"})
WRITE = "write"
"""The place of every change of a file, whichever line makes it."""


def begin(config):
    """Record all points of this process, or wait for the trigger's point."""
    role = "worker" if "--multiprocessing-fork" in sys.orig_argv else "driver"
    if any("resource_tracker" in argument for argument in sys.orig_argv):
        return
    trigger = config.get("trigger")
    if trigger is None:
        _watch(config, None, _Recorder(config["folder"], role))
    elif trigger["role"] == role:
        n = itertools.count(1)

        def count(place):
            if next(n) == trigger["nth"]:
                _fire(config["folder"], role, place, trigger)

        _watch(config, trigger["place"], count)


class _Recorder:
    """Record all points of a process, and save them to a file at exit."""

    def __init__(self, folder, role):
        self.path, self.events = os.path.join(folder, f"{role}-{os.getpid()}.json"), []
        if role == "driver":
            atexit.register(self.save)
        else:
            from multiprocessing.util import Finalize  # pool workers do not run atexit functions

            Finalize(None, self.save, exitpriority=100)

    def __call__(self, place):
        self.events.append((time.time(), place))

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self.events[:], file)


def _watch(config, place, callback):
    """Call `callback` with every place that is reached, or only with `place`."""
    if place in (None, WRITE):

        def on_event(event, args):
            if event == "open":
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                changes = writes and not isinstance(args[0], int)
            else:
                changes = event in CHANGES
            if changes and os.path.abspath(os.fsdecode(args[0])).startswith(config["watched"]):
                callback(WRITE)

        sys.addaudithook(on_event)
    if place != WRITE:
        monitoring, roots = sys.monitoring, tuple(config["roots"])

        def on_line(code, number):
            file = code.co_filename
            if not code.co_flags & FUNCTION or not file.startswith(roots):
                return monitoring.DISABLE
            base = next(os.path.dirname(root.rstrip(os.sep)) for root in roots if file.startswith(root))
            location = f"{file[len(base) + 1 :]}:{number}:{code.co_qualname}"
            if place in (None, location):
                return callback(location)
            return monitoring.DISABLE

        monitoring.use_tool_id(monitoring.PROFILER_ID, "survival")
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.LINE, on_line)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.LINE)


def _fire(folder, role, place, trigger):
    """Send the signal, unless another process of the run has already sent it."""
    try:
        hit = os.open(os.path.join(folder, "hit.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(hit, json.dumps({"pid": os.getpid(), "role": role, "place": place}).encode())
    os.close(hit)

    def send():
        time.sleep(trigger["delay"])
        if trigger["to_group"]:
            os.killpg(os.getpgrp(), trigger["signal"])
        else:
            os.kill(os.getpid(), trigger["signal"])

    if trigger["delay"]:
        threading.Thread(target=send, daemon=True).start()
    else:
        send()


if "VCZSTORE_TRAP" in os.environ:
    begin(json.loads(os.environ["VCZSTORE_TRAP"]))
