"""The command ``vczstore``, and ``python -m vczstore``."""

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def run(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command, and end the process once threads have ended and all that is registered for its end is done.

    Python would clear all modules away then. A thread of Icechunk that has just answered still lets go of Python's
    objects meanwhile, and one run in about a thousand ended with a segmentation fault, after any work.
    """
    from vczstore.cli.main import main
    from vczstore.cli.render import OWN_PROCESS

    try:
        main(arguments, prog_name="vczstore", obj=OWN_PROCESS)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        # what Python does at its end before it clears modules away, and in that order
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":  # a process that is spawned imports this again
    run()
