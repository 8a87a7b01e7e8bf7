"""Questions as evaluation suites ask them, answered in batches: what all adapters share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rhea.errors import InputError
from rhea.generation.model import Rhea
from rhea.generation.results import Visual


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A question about a picture, a film or nothing."""

    text: str
    sources: Sequence[Visual] = ()
    temperature: float | None = 0.0
    top_p: float | None = None
    max_new_tokens: int | None = None
    until: Sequence[str] = field(default=())
    """The answer ends before any of these."""


def answer_all(model: Rhea, questions: Sequence[Question], *, seed: int = 0) -> list[str]:
    """Answer questions together; each answer is what it would be alone. InputError for several pictures in one."""
    prompts = []
    for each in questions:
        if len(each.sources) > 1:
            raise InputError(
                f"{each.text!r} is about {len(each.sources)} pictures; Rhea answers about one: leave it out"
            )
        prompts.append(
            model.prompts.answer(
                each.sources[0] if each.sources else None,
                [(each.text, None)],
                temperature=each.temperature,
                top_p=each.top_p,
                max_new_tokens=each.max_new_tokens,
                seed=seed,
            )
        )
    answers = [completion.text for completion in model.completer.complete(prompts)]
    return [_until(answer, each.until) for answer, each in zip(answers, questions, strict=True)]


def _until(answer: str, ends: Sequence[str]) -> str:
    for end in ends:
        answer = answer.partition(end)[0] if end else answer
    return answer.strip()
