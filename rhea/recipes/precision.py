"""The precision of a recipe, made affordable: many laptops compute bfloat16 slower than float32."""

from dataclasses import replace
from typing import TypeVar

import torch

from rhea.logging import console
from rhea.models.device import fast_bfloat16
from rhea.training.next_token import NextTokenTaskConfig
from rhea.training.vision_tokenizer import VisionTokenizerTaskConfig

C = TypeVar("C", NextTokenTaskConfig, VisionTokenizerTaskConfig)


def affordable(task: C, device: torch.device) -> C:
    """Return the same task, in float32 where bfloat16 would only cost time: more exact, at twice the activations."""
    if task.precision == "float32" or fast_bfloat16(device):
        return task
    console().print("note: this CPU has no instructions for bfloat16; training in float32, which is faster here")
    return replace(task, precision="float32")
