"""One request on its way through the engine: what it has written, what it guesses next, and which guesses hold.

Exact parallel decoding (Jacobi iteration with fixed noise; compare arXiv:2410.01699 and arXiv:2510.24211): the draw at
a position is a pure function of the tokens before it, for its noise depends on seed and position alone. So several
positions are drawn at once behind guessed tokens, and a draw is kept as long as all guesses before it were what would
have been drawn anyway. The result is, token for token, that of drawing one after the other; draws behind a wrong guess
become the next guesses. With maximal coupling (``coupling.py``) noise is fresh in every step, and only the law of the
result is the same.
"""

from dataclasses import dataclass, field

from rhea.documents.constraint import Legal
from rhea.generation.coupling import Guess
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
    guess: Guess | None = None
    """What is guessed to be drawn here."""


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
        self.steps = 0
        """Windows committed so far."""
        self._guesses: dict[int, Guess] = {}

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt of each cache slot: conditional, then, if guided, unconditional."""
        second = [list(self.request.negative_prompt or ())] if self.request.guided else []
        return [list(self.request.prompt), *second]

    @property
    def can_wait(self) -> bool:
        """Whether it may be sent back to the queue: a text, outside of grids."""
        return not self.request.guided and not self.constraint.in_grid

    def window(self, size: int) -> Window:
        """Return up to ``size`` places to draw; more than one only inside a grid, where guesses are worth a try."""
        window, ahead, legal = Window(), self.constraint.copy(), self.legal
        fed, places = window.guesses, window.places
        while True:
            index = len(self.tokens) + len(fed)
            if places and (not ahead.in_grid or index >= self.request.max_new_tokens):
                break
            guess = self._guesses.get(index)
            if guess is None and ahead.in_grid:
                guess = Guess(self._neighbour(fed, ahead.position, ahead.size))
            places.append(Place(ahead=len(fed), index=index, legal=legal, guess=guess))
            if guess is None or len(places) == size:
                break
            fed.append(guess.token)
            ahead.advance(fed[-1])
            legal = ahead.legal()
            while legal.forced is not None and not ahead.done:
                fed.append(legal.forced)
                ahead.advance(legal.forced)
                legal = ahead.legal()
        del fed[places[-1].ahead :]  # what follows the last place would be fed for nothing
        return window

    def commit(self, window: Window, drawn: list[Guess]) -> int:
        """Add the draws that hold, at least the first; return how many of the window's guesses were right."""
        self.steps += 1
        self._guesses = {place.index: draw for place, draw in zip(window.places, drawn, strict=True)}
        for place, draw in zip(window.places, drawn, strict=True):
            right = place.ahead
            self.append(draw.token)
            if self.finished or right == len(window.guesses) or window.guesses[right] != draw.token:
                break
        return right

    def _neighbour(
        self, fed: list[int], position: tuple[int, int, int] | None, size: tuple[int, int, int] | None
    ) -> int:
        """Guess the next token to be a neighbour's code.

        In films the neighbour is the same place of the latent frame before, in pictures the place above, in the first
        row the one to the left.
        """
        assert position is not None
        assert size is not None
        (frame, row, column), (_, height, width) = position, size
        back = height * (width + 1) + 1 if frame else width + 1 if row else 1 if column else 0
        if not back:
            return self.legal.ranges[0].start
        for known in (fed, self.tokens, self.request.prompt):  # from the end backwards
            if back <= len(known):
                return known[-back]
            back -= len(known)
        raise AssertionError("a grid begins before the prompt")
