"""The command ``vczstore``, and ``python -m vczstore``."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def run(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command, and exit the process after joining threads and running exit handlers, but without finalisation.

    Python would finalise all modules next, while a thread of Icechunk may still release Python objects. That made about
    one run in a thousand end with a segmentation fault, after all work was done.

    An interrupt before the command begins ends the process silently, as it ends most programs.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command handles it, see vczstore.cli.render
    from vczstore.cli.main import main
    from vczstore.cli.render import OWN_PROCESS

    try:
        main(arguments, prog_name="vczstore", obj=OWN_PROCESS)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        # what Python does before finalisation, in the same order
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":  # spawned processes import this module again
    run()
