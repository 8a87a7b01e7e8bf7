"""Rows of the engine's cache that pictures and films may hold at once; who comes when all are taken waits in line.

A picture holds its rows until it is whole, a text for a few steps only. Where pictures may take every row, the shortest
answer waits for one of them to end; where some are kept from them, it begins at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Rows:
    """So many rows, handed out in the order of asking. For one event loop."""

    def __init__(self, rows: int) -> None:
        self._rows = self._free = rows
        self._next, self._freed = asyncio.Lock(), asyncio.Event()
        self.waiting = 0
        """How many wait."""

    @contextlib.asynccontextmanager
    async def taken(self, rows: int) -> AsyncIterator[None]:
        """Hold some rows while the block runs; who wants more than there are takes all."""
        rows = min(rows, self._rows)
        self.waiting += 1
        try:
            async with self._next:  # a fair lock: the first in line alone looks for room
                while self._free < rows:
                    self._freed.clear()
                    await self._freed.wait()
                self._free -= rows
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free += rows
            self._freed.set()
