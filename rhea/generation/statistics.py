"""What an engine has done so far, for people and for a metrics endpoint."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(kw_only=True)
class Statistics:
    """Counters that only grow, times in seconds, and the most that was in use."""

    forwards: int = 0
    tokens_fed: int = 0
    tokens_written: int = 0
    """New tokens of all requests, forced ones included."""
    tokens_guessed: int = 0
    """Tokens fed on trial, with the forced ones between them."""
    guesses_right: int = 0
    prefix_tokens_reused: int = 0
    grids: int = 0
    """Pictures and films finished."""
    grid_forwards: int = 0
    """Forwards in which these were fed, summed over them."""
    suspensions: int = 0
    """Texts sent back to wait."""
    prefill_seconds: float = 0.0
    """Forwards are shared out between this and the next by the tokens of prompts among all that were fed."""
    decode_seconds: float = 0.0
    sampling_seconds: float = 0.0
    vision_seconds: float = 0.0
    """Codes to pixels."""
    most_slots: int = 0
    most_cached_tokens: int = 0

    @contextlib.contextmanager
    def decoding_pixels(self) -> Iterator[None]:
        """Count the time of what is done in this context as that of codes to pixels."""
        start = time.perf_counter()
        yield
        self.vision_seconds += time.perf_counter() - start

    def summary(self) -> str:
        """Return a few lines for people."""
        held = f", {self.guesses_right} of {self.tokens_guessed} guesses held" if self.tokens_guessed else ""
        lines = [
            f"{self.tokens_written} tokens in {self.forwards} forwards "
            f"({self.tokens_written / max(self.forwards, 1):.1f} per forward){held}, "
            f"{self.prefix_tokens_reused} prompt tokens shared",
            f"prompts {self.prefill_seconds:.2f} s, tokens {self.decode_seconds:.2f} s, "
            f"sampling {self.sampling_seconds:.2f} s, codes to pixels {self.vision_seconds:.2f} s",
            f"at most {self.most_slots} cache rows in use, {self.most_cached_tokens} tokens in them",
        ]
        if self.grids:
            lines.insert(
                1, f"{self.grid_forwards / self.grids:.1f} forwards for each of {self.grids} pictures or films"
            )
        return "\n".join(lines)
