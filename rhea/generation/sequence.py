"""One request on its way through the engine: what it has written, what it guesses next, and which guesses hold.

Exact parallel decoding (Jacobi iteration with fixed noise; compare arXiv:2410.01699 and arXiv:2510.24211): the draw at
a position is a pure function of the tokens before it, for its noise depends on seed and position alone. So several
positions are drawn at once behind guessed tokens, and a draw is kept as long as all guesses before it were what would
have been drawn anyway. The result is, token for token, that of drawing one after the other; draws behind a wrong guess
become the next guesses.
"""

from dataclasses import dataclass, field

from rhea.documents.constraint import Legal
from rhea.generation.request import Request
from rhea.generation.sampling import noise_key


@dataclass(frozen=True, kw_only=True)
class Place:
    """A position to be drawn in the coming forward."""

    ahead: int
    """How many guessed tokens are fed before it."""
    index: int
    """Which new token of its request it is."""
    legal: Legal


@dataclass(kw_only=True)
class Window:
    """The places to be drawn together and the guesses fed between them."""

    guesses: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


class Written:
    """The tokens of a request so far. Forced tokens are added as soon as they are known."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.constraint = request.constraint.copy()
        self.tokens: list[int] = []
        self.legal = self.constraint.legal()
        self._follow_forced()

    @property
    def finished(self) -> bool:
        """Whether the constraint or the request's limit ends here."""
        return self.constraint.done or len(self.tokens) >= self.request.max_new_tokens

    def append(self, token_id: int) -> None:
        """Add a drawn token and all that the grammar forces after it."""
        self._add(token_id)
        self._follow_forced()

    def noise_key(self, index: int) -> int:
        """Return the key of the draw of new token ``index``."""
        request = self.request
        return noise_key(request.seed, request.sample_index, len(request.prompt) + index)

    def _add(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.constraint.advance(token_id)
        self.legal = self.constraint.legal()

    def _follow_forced(self) -> None:
        while self.legal.forced is not None and not self.finished:
            self._add(self.legal.forced)


class Sequence(Written):
    """A request in the engine: its guesses besides."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._guesses: dict[int, int] = {}

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt of each cache slot: conditional, then, if guided, unconditional."""
        second = [list(self.request.negative_prompt or ())] if self.request.guided else []
        return [list(self.request.prompt), *second]

    def window(self, size: int) -> Window:
        """Return up to ``size`` places to draw; more than one only inside a grid, where guesses are worth a try."""
        window = Window(places=[Place(ahead=0, index=len(self.tokens), legal=self.legal)])
        ahead, legal = self.constraint.copy(), self.legal
        fed = window.guesses
        while len(window.places) < size and ahead.in_grid:
            fed.append(self._guess(fed, ahead.position, ahead.size))
            ahead.advance(fed[-1])
            legal = ahead.legal()
            while legal.forced is not None and not ahead.done:
                fed.append(legal.forced)
                ahead.advance(legal.forced)
                legal = ahead.legal()
            index = len(self.tokens) + len(fed)
            if not ahead.in_grid or index >= self.request.max_new_tokens:
                break
            window.places.append(Place(ahead=len(fed), index=index, legal=legal))
        del fed[window.places[-1].ahead :]  # what follows the last place would be fed for nothing
        return window

    def commit(self, window: Window, drawn: list[int]) -> int:
        """Add the draws that hold, at least the first; return how many of the window's guesses were right."""
        self._guesses = {place.index: token for place, token in zip(window.places, drawn, strict=True)}
        for place, token in zip(window.places, drawn, strict=True):
            right = place.ahead
            self.append(token)
            if self.finished or right == len(window.guesses) or window.guesses[right] != token:
                break
        return right

    def _guess(self, fed: list[int], position: tuple[int, int, int] | None, size: tuple[int, int, int] | None) -> int:
        """Guess the next token: the last draw at this place, or else a neighbour's code.

        In films the neighbour is the same place of the latent frame before, in pictures the place above, in the first
        row the one to the left.
        """
        assert position is not None
        assert size is not None
        index = len(self.tokens) + len(fed)
        if index in self._guesses:
            return self._guesses[index]
        (frame, row, column), (_, height, width) = position, size
        back = height * (width + 1) + 1 if frame else width + 1 if row else 1 if column else 0
        if not back:
            return self.legal.ranges[0].start
        for known in (fed, self.tokens, self.request.prompt):  # from the end backwards
            if back <= len(known):
                return known[-back]
            back -= len(known)
        raise AssertionError("a grid begins before the prompt")
