"""Which previews of a picture or film are wanted, and in which thread each is decoded.

The engine's thread follows the tokens as they are written and wakes the event loop for wanted previews only: every
time it wakes, it takes the interpreter from the engine. Pixels are decoded beside the engine, but for one case: while
nobody else needs the engine and pictures are decoded briefly, the first preview is decoded before the next step. Beside
it, the two would take the interpreter from each other, and the first picture come a quarter later.
"""

import math
import time
from collections.abc import Callable, Sequence

from rhea.documents.document import ImageSize
from rhea.generation.completion import Completer, Prompt
from rhea.generation.preview import Follower, Preview
from rhea.generation.request import Request

_BRIEFLY = 0.05
"""Seconds that the engine may stand still for a preview; who comes meanwhile, or leaves, waits as long."""


class Decoder:
    """Decodes previews, and knows how long the last one took: until then nothing is brief."""

    def __init__(self, completer: Completer) -> None:
        self._statistics = completer.statistics
        self._seconds = math.inf

    @property
    def is_brief(self) -> bool:
        """Whether the next one may well be decoded between two steps of the engine."""
        return self._seconds < _BRIEFLY

    def __call__(self, follower: Follower) -> Preview:
        """Return what a follower can show."""
        start = time.perf_counter()
        with self._statistics.decoding_pixels():
            seen = follower.show()
        self._seconds = time.perf_counter() - start
        return seen


class Previews:
    """Those of one request: ``watch`` belongs to the engine's thread, all else to who hears of its tokens."""

    def __init__(
        self,
        completer: Completer,
        prompt: Prompt,
        request: Request,
        partials: int | None,
        decode: Decoder,
        is_alone: Callable[[], bool],
    ) -> None:
        """``partials``: so many at even distances besides the whole; 0 not even that, None whenever one is due."""
        every_rows = None if partials is None else 1
        self._scout, self._follower = (completer.follower(prompt, request, every_rows) for _ in range(2))
        self._partials, self._decode, self._is_alone = partials, decode, is_alone
        self._picture = isinstance(self._follower.size, ImageSize)
        self._wanted = 0
        self._early: Preview | None = None

    def watch(self, tokens: list[int]) -> bool:
        """Follow new tokens; tell whether they end a wanted preview (see ``BackgroundEngine.stream``)."""
        if self._partials == 0 or not self._scout.feed(tokens) or not self._is_wanted():
            return False
        self._wanted += 1
        if self._wanted == 1 and self._picture and self._decode.is_brief and self._is_alone():
            self._early = self._decode(self._scout)
        self._scout.skip()
        return True

    def _is_wanted(self) -> bool:
        partials, done, rows = self._partials, self._scout.rows_done, self._scout.rows
        if partials is None or done == rows:
            return True
        return self._wanted < partials and done * (partials + 1) >= rows * (self._wanted + 1)

    def take(self, tokens: Sequence[int]) -> bool:
        """Take the tokens that were told; tell whether they end a wanted preview."""
        return self._partials != 0 and self._follower.feed(tokens)

    def early(self) -> Preview | None:
        """Return the preview that has just been taken if it is decoded already."""
        seen, self._early = self._early, None
        if seen is not None:
            self._follower.skip()
        return seen

    def decoded(self) -> Preview:
        """Decode what has been taken."""
        return self._decode(self._follower)
