"""Rhea as a model of VLMEvalKit, whose own ``run.py`` is started through this module:

    RHEA_CHECKPOINT=FOLDER python -m rhea.evaluation.adapters.vlmevalkit VLMEvalKit/run.py --data MME --model rhea

VLMEvalKit knows models by the dictionary ``vlmeval.config.supported_VLM`` and asks them by ``generate(message,
dataset)`` of its ``BaseModel``, which calls ``generate_inner`` with a list of {"type", "value"}, pictures as paths
(its vlmeval/vlm/base.py and vlmeval/inference.py).
"""

import os
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from rhea.errors import InputError
from rhea.evaluation.adapters.answering import Question, answer_all
from rhea.generation.loading import load_model


class RheaModel(BaseModel):
    """A checkpoint that answers VLMEvalKit's questions."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self, checkpoint: str | None = None, *, max_new_tokens: int | None = None, **loading: Any) -> None:
        """``loading``: see ``load_model``."""
        super().__init__()
        self.model, self.max_new_tokens = load_model(checkpoint, **loading), max_new_tokens

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answer the texts of a message about its picture or film."""
        question = Question(
            text="\n".join(each["value"] for each in message if each["type"] == "text"),
            sources=[each["value"] for each in message if each["type"] != "text"],
            max_new_tokens=self.max_new_tokens,
        )
        return answer_all(self.model, [question])[0]


def register(name: str = "rhea", checkpoint: str | None = None, **settings: Any) -> None:
    """Make VLMEvalKit know a checkpoint by a name."""
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(RheaModel, checkpoint, **settings)


def main(arguments: list[str]) -> None:
    """Run VLMEvalKit's script, the first argument, with the others."""
    if not arguments or not Path(arguments[0]).is_file():
        raise InputError("the first argument is the path of VLMEvalKit's run.py")
    register(checkpoint=os.environ.get("RHEA_CHECKPOINT"))
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
