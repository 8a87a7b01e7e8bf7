"""What commands say while they work, and when they are done: lines and a progress bar on standard error."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rhea.generation.request import Progress


def say(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr)


@contextlib.contextmanager
def token_progress(task: str) -> Iterator["Callable[[Progress], None]"]:
    """Show a bar with tokens per second while the block runs."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from rhea.logging import console

    rate = TextColumn("{task.fields[rate]:,.0f} tokens/s")
    columns = (TextColumn(task), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        shown = bar.add_task(task, total=None, rate=0.0)
        yield lambda told: bar.update(shown, total=told.max_tokens, completed=told.tokens, rate=told.tokens_per_second)


@contextlib.contextmanager
def item_progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of how many items are done, out of how many, while the block runs."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rhea.logging import console

    columns = (TextColumn(task), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        shown = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(shown, total=total, completed=done)
