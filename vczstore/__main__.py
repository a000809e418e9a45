"""``python -m vczstore``."""

from vczstore.cli import main

main()
