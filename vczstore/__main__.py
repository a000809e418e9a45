"""``python -m vczstore``."""

from vczstore.cli import main

if __name__ == "__main__":  # a process that is spawned imports this again
    main()
