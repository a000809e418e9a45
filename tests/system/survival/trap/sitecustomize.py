"""
Imported by every Python of a run that is to be killed, whose PYTHONPATH names this folder: see
`tests.system.survival.kills`.

It watches which lines of vczstore are executed, and which files are written. Without a trigger it notes them all, with
the time; with one it sends a signal there. Signals come from within, so that they come at that point and at no other.
"""

import atexit
import itertools
import json
import os
import sys
import threading
import time

FUNCTION = 1
"""The flag of code objects that are functions (CO_OPTIMIZED): what runs when a module is imported has it not."""
CHANGES = frozenset({"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"})
WRITE = "write"
"""The place of all changes of files, in any line."""


def begin(said):
    """Note all points of this process, or wait for one of them."""
    role = "worker" if "--multiprocessing-fork" in sys.orig_argv else "driver"
    if any("resource_tracker" in argument for argument in sys.orig_argv):
        return
    trigger = said.get("trigger")
    if trigger is None:
        _watch(said, None, _Notes(said["folder"], role))
    elif trigger["role"] == role:
        n = itertools.count(1)

        def count(place):
            if next(n) == trigger["nth"]:
                _fire(said["folder"], role, place, trigger)

        _watch(said, trigger["place"], count)


class _Notes:
    """All points of a process, kept in a file when it ends."""

    def __init__(self, folder, role):
        self.path, self.seen = os.path.join(folder, f"{role}-{os.getpid()}.json"), []
        if role == "driver":
            atexit.register(self.save)
        else:
            from multiprocessing.util import Finalize  # processes of a pool run nothing else at their end

            Finalize(None, self.save, exitpriority=100)

    def __call__(self, place):
        self.seen.append((time.time(), place))

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self.seen[:], file)


def _watch(said, place, tell):
    """Tell of one place, or of all."""
    if place in (None, WRITE):

        def on_event(event, args):
            if event == "open":
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                changes = writes and not isinstance(args[0], int)
            else:
                changes = event in CHANGES
            if changes and os.path.abspath(os.fsdecode(args[0])).startswith(said["watched"]):
                tell(WRITE)

        sys.addaudithook(on_event)
    if place != WRITE:
        monitoring, roots = sys.monitoring, tuple(said["roots"])

        def on_line(code, number):
            file = code.co_filename
            if not code.co_flags & FUNCTION or not file.startswith(roots):
                return monitoring.DISABLE
            base = next(os.path.dirname(root.rstrip(os.sep)) for root in roots if file.startswith(root))
            here = f"{file[len(base) + 1 :]}:{number}:{code.co_qualname}"
            if place in (None, here):
                return tell(here)
            return monitoring.DISABLE

        monitoring.use_tool_id(monitoring.PROFILER_ID, "survival")
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.LINE, on_line)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.LINE)


def _fire(folder, role, place, trigger):
    """Send the signal, unless another process of the run has done so."""
    try:
        hit = os.open(os.path.join(folder, "hit.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(hit, json.dumps({"pid": os.getpid(), "role": role, "place": place}).encode())
    os.close(hit)

    def send():
        time.sleep(trigger["delay"])
        if trigger["everybody"]:
            os.killpg(os.getpgrp(), trigger["signal"])
        else:
            os.kill(os.getpid(), trigger["signal"])

    if trigger["delay"]:
        threading.Thread(target=send, daemon=True).start()
    else:
        send()


if "VCZSTORE_TRAP" in os.environ:
    begin(json.loads(os.environ["VCZSTORE_TRAP"]))
