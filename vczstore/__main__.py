"""The command ``vczstore``, and ``python -m vczstore``."""

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress


def run(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command, and end the process as soon as all that was registered for its end is done.

    Python would clear all modules away then. A thread of Icechunk that has just answered still lets go of Python's
    objects meanwhile, and one run in about a thousand ended with a segmentation fault, whatever it had done before.
    """
    ended: list[int] = []
    atexit.register(_leave, ended)  # before all others, so that it is called after them
    from vczstore.cli import main

    try:
        main(arguments, prog_name="vczstore")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            ended.append(end.code or 0)
        raise


def _leave(ended: Sequence[int]) -> None:
    if ended:  # else something unforeseen has yet to be told
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(ended[0])


if __name__ == "__main__":  # a process that is spawned imports this again
    run()
