"""Tensor names in every layout, as rules: prefixes that are exchanged, in one table per part, read in both directions.

A checkpoint has up to two parts, the transformer and the vision tokenizer. Our vision tokenizer keeps the official
names; transformers' port renames a few modules and stores the 1 x 1 convolutions of attention as matrices. Its names on
disk (the convert script's) and in memory (transformers >= 4.52) differ by prefixes only; both are read, and the ones on
disk are written, because every version of transformers understands them.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Part = Literal["transformer", "vision_tokenizer"]
PARTS: tuple[Part, ...] = ("transformer", "vision_tokenizer")

Rules = tuple[tuple[str, str], ...]

_TRANSFORMER: Rules = (
    ("layers.{i}.attention_norm.", "layers.{i}.input_layernorm."),
    ("layers.{i}.mlp_norm.", "layers.{i}.post_attention_layernorm."),
    ("layers.{i}.attention.", "layers.{i}.self_attn."),
    ("layers.{i}.mlp.", "layers.{i}.mlp."),
    ("embed_tokens.", "embed_tokens."),
    ("norm.", "norm."),
)


def _attention(ours: str, theirs: str) -> Rules:
    projections = (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("proj_out", "out_proj"))
    return tuple((f"{ours}.{a}.", f"{theirs}.{b}.") for a, b in projections)


def _vision_side(side: str, stack: str) -> Rules:
    """Return the rules of the encoder (stack ``down``) or the decoder (``up``); the first that fits is used."""
    ours, theirs = f"{side}.{stack}.{{i}}.attn", f"{side}.{stack}_block.{stack}.{{i}}.attn"
    return (
        (f"{ours}.{{j}}.norm.", f"{theirs}_norms.{{j}}."),
        *_attention(f"{ours}.{{j}}", f"{theirs}.{{j}}"),
        (f"{side}.{stack}.", f"{side}.{stack}_block.{stack}."),
        (f"{side}.mid.attn_1.norm.", f"{side}.middle_block.attn_norm."),
        *_attention(f"{side}.mid.attn_1", f"{side}.middle_block.attn_1"),
        (f"{side}.mid.", f"{side}.middle_block."),
    )


_VISION: Rules = (*_vision_side("encoder", "down"), *_vision_side("decoder", "up"), ("", ""))
_IDENTITY: Rules = (("", ""),)


@dataclass(frozen=True)
class Renaming:
    """One part's names, ours to theirs and back."""

    rules: Rules
    """(our prefix, their prefix); {i} and {j} stand for a number, kept. The first that fits decides."""
    body: str = ""
    """Their prefix of everything but the head."""
    head: str | None = None
    """Their prefix of the transformer's head; None where there is none."""
    matrices: bool = False
    """Whether they store attention's 1 x 1 convolutions as matrices."""

    def theirs(self, name: str) -> str:
        """Return the stored name of one of our tensors."""
        found = _exchange(name, self._table, to_theirs=True)
        assert found is not None, name
        return found

    def ours(self, name: str) -> str | None:
        """Return our name of a stored tensor, or None if it is not of this part."""
        return _exchange(name, self._table, to_theirs=False)

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in which our tensor ``name`` is stored."""
        return shape[:2] if self.matrices and _POINTWISE.search(name) else shape

    @cached_property
    def _table(self) -> tuple[tuple[str, str], ...]:
        head = () if self.head is None else (("lm_head.", self.head),)
        return (*head, *((ours, self.body + theirs) for ours, theirs in self.rules))


_POINTWISE = re.compile(r"\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight$")


def _exchange(name: str, table: Rules, to_theirs: bool) -> str | None:
    for ours, theirs in table:
        source, target = (ours, theirs) if to_theirs else (theirs, ours)
        pattern = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
        match = re.match(pattern, name)
        if match:
            return target.format(**match.groupdict()) + name[match.end() :]
    return None


@dataclass(frozen=True)
class Layout:
    """How one kind of folder names the tensors of its parts; the first renaming is the one that is written."""

    name: str
    title: str
    transformer: tuple[Renaming, ...] = ()
    vision_tokenizer: tuple[Renaming, ...] = ()

    def renamings(self, part: Part) -> tuple[Renaming, ...]:
        """Return the ways in which this layout may name the tensors of ``part``."""
        return self.transformer if part == "transformer" else self.vision_tokenizer

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts that such a folder may hold."""
        return tuple(part for part in PARTS if self.renamings(part))

    def ours(self, name: str) -> tuple[Part, str, Renaming] | None:
        """Return the part, our name and the renaming that fits a stored name; None if nothing does."""
        for part in self.parts:
            for renaming in self.renamings(part):
                found = renaming.ours(name)
                if found is not None:
                    return part, found, renaming
        return None


OFFICIAL_TRANSFORMER = Layout(
    name="emu3-transformer",
    title="released Emu3 language model",
    transformer=(Renaming(_TRANSFORMER, "model.", "lm_head."),),
)
OFFICIAL_VISION = Layout(
    name="emu3-vision-tokenizer",
    title="released Emu3 vision tokenizer",
    vision_tokenizer=(Renaming(_IDENTITY),),
)
HF = Layout(
    name="hf",
    title="transformers' Emu3, both parts",
    transformer=(
        Renaming(_TRANSFORMER, "text_model.model.", "text_model.lm_head."),
        Renaming(_TRANSFORMER, "model.text_model.", "lm_head."),
    ),
    vision_tokenizer=(
        Renaming(_VISION, "vqmodel.", matrices=True),
        Renaming(_VISION, "model.vqmodel.", matrices=True),
    ),
)
HF_TRANSFORMER = Layout(
    name="hf-transformer",
    title="transformers' Emu3, language model only",
    transformer=(Renaming(_TRANSFORMER, "model.", "lm_head."),),
)
HF_VISION = Layout(
    name="hf-vision-tokenizer",
    title="transformers' Emu3, vision tokenizer only",
    vision_tokenizer=(Renaming(_VISION, matrices=True),),
)
RHEA = Layout(
    name="rhea",
    title="Rhea",
    transformer=(Renaming(_IDENTITY, "transformer."),),
    vision_tokenizer=(Renaming(_IDENTITY, "vision_tokenizer."),),
)
"""Ours keeps each part in a file of its own; a tensor is called by its file's name and its own."""

LAYOUTS = (RHEA, HF, HF_TRANSFORMER, HF_VISION, OFFICIAL_TRANSFORMER, OFFICIAL_VISION)
