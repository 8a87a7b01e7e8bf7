"""Rhea as a model of lmms-eval: ``lmms-eval --model rhea --model_args checkpoint=FOLDER --tasks mme --batch_size 8``.

lmms-eval (0.7) finds it by the entry point "rhea" of the group "lmms_eval.models", which pyproject.toml declares: the
entry point is ``manifest``, and that names ``RheaModel`` (its lmms_eval/models/registry_v2.py). Requests of a simple
model are (context, settings, function from a document to its pictures, document id, task, split). Under torchrun
lmms-eval hands each process its part.
"""

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms

from rhea.errors import InputError
from rhea.evaluation.adapters.answering import Question, answer_all
from rhea.generation.loading import load_model
from rhea.models.device import choose_device

_PLACES = ("<image>", "<video>")
"""Where other models' prompts have the picture; ours comes before the question."""


def manifest() -> Any:
    """Return what lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="rhea", simple_class_path=f"{__name__}.RheaModel")


class RheaModel(lmms):
    """A checkpoint that answers lmms-eval's questions."""

    is_simple = True

    def __init__(
        self,
        checkpoint: str | None = None,
        vision_tokenizer: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        seed: int = 0,
        max_batch_size: int | None = None,
    ) -> None:
        """``checkpoint``: folder or hub id, by default the default model. ``max_batch_size`` is not used."""
        super().__init__()
        if device in (None, "cuda") and "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}" if device else None
        self.device = choose_device(device)
        self.model = load_model(checkpoint, device=self.device, dtype=dtype, vision_tokenizer=vision_tokenizer)
        self.batch_size, self.seed = max(1, int(batch_size)), int(seed)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request, ``batch_size`` at a time."""
        answers: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            batch = [request.args for request in requests[start : start + self.batch_size]]
            found = answer_all(self.model, [self._question(*arguments) for arguments in batch], seed=self.seed)
            for (context, settings, *_), answer in zip(batch, found, strict=True):
                self.cache_hook.add_partial("generate_until", (context, settings), answer)
            answers += found
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise InputError("lmms-eval's tasks of several rounds are not supported: leave them out")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse tasks that compare likelihoods."""
        raise InputError("lmms-eval's tasks that compare likelihoods are not supported: choose those that generate")

    def _question(
        self, context: str, settings: dict[str, Any], to_visuals: Any, document: Any, task: str, split: str
    ) -> Question:
        visuals = to_visuals(self.task_dict[task][split][document]) or []
        for place in _PLACES:
            context = context.replace(place, "")
        until = settings.get("until") or ()
        return Question(
            text=context,
            sources=visuals,
            temperature=float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0,
            top_p=settings.get("top_p"),
            max_new_tokens=settings.get("max_new_tokens"),
            until=(until,) if isinstance(until, str) else tuple(until),
        )
