"""What the plain loop and the engine are asked for, and what they tell while they work."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rhea.documents.constraint import Constraint
from rhea.errors import InputError
from rhea.generation.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to be continued."""

    prompt: Sequence[int]
    constraint: Constraint
    """What may follow the prompt; it is copied, not advanced."""
    max_new_tokens: int
    negative_prompt: Sequence[int] | None = None
    """The prompt of the unconditional branch, which receives the same new tokens; None turns guidance off."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    sample_index: int = 0
    """Tells apart the samples of one prompt and seed."""
    priority: int = 0
    """Who is admitted first; a running text gives its place to a request of higher priority and goes on later."""

    @property
    def guided(self) -> bool:
        """Whether this request takes two rows."""
        return self.negative_prompt is not None and self.sampling.guidance_scale != 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress callback is told after every step."""

    tokens: int
    """New tokens so far, in all requests."""
    max_tokens: int
    """The most that there can be."""
    tokens_per_second: float


def check_fits(request: Request, context: int) -> None:
    """Raise InputError if a request does not fit that many tokens."""
    longest = max(len(request.prompt), len(request.negative_prompt or ()))
    if longest + request.max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and {request.max_new_tokens} to come do not fit the context of "
            f"{context} tokens: use a shorter prompt, a smaller size or fewer frames"
        )
