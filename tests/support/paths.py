"""The checkout that the tests run in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = EXAMPLES / "guide"
