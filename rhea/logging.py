"""One logger for the package and one console for people."""

import logging
from functools import cache

from rich.console import Console

logger = logging.getLogger("rhea")


@cache
def console() -> Console:
    """Return the console on which progress bars and tables are drawn (standard error, so that output stays clean)."""
    return Console(stderr=True)
