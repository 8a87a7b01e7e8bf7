"""One id space for everything: text ids, then special ids, then one id per visual code, all by arithmetic.

Nothing here parses strings: a visual or special token has a printable name, but no text ever turns into one. The Emu3
layout is 151,643 + 211 + 32,768 = 184,622 (arXiv 2409.18869); small models use ``compact_vocabulary``.
"""

from dataclasses import dataclass
from typing import Any

from rhea.errors import InputError

ROLES = ("pad", "bos", "eos", "eol", "eof", "image_token", "image_start", "image_end")
"""What the special ids that are used are for."""


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    text_size: int
    num_special: int
    vision_size: int
    pad: int
    """This and the seven below are offsets into the special range."""
    bos: int
    eos: int
    eol: int
    """Written after every row of a grid."""
    eof: int
    """Written after every latent frame; an image has one."""
    image_token: int
    """Written between the size text and the first code."""
    image_start: int
    image_end: int


EMU3_VOCABULARY = VocabularyConfig(
    text_size=151643,
    num_special=211,
    vision_size=32768,
    pad=0,
    bos=206,
    eos=207,
    eol=203,
    eof=204,
    image_token=208,
    image_start=209,
    image_end=210,
)


def compact_vocabulary(text_size: int, vision_size: int) -> VocabularyConfig:
    """Return a layout with the eight special ids that are used and no others."""
    offsets = {role: offset for offset, role in enumerate(ROLES)}
    return VocabularyConfig(text_size=text_size, num_special=len(ROLES), vision_size=vision_size, **offsets)


class Vocabulary:
    """Ranges ``text``, ``special`` and ``vision``, which meet at ``boundaries``.

    The special ids: ``pad bos eos eol eof image_token image_start image_end``.
    """

    def __init__(self, config: VocabularyConfig) -> None:
        offsets = [getattr(config, role) for role in ROLES]
        if min(config.text_size, config.vision_size) < 1:
            raise InputError(f"a vocabulary needs text and visual tokens, got {config.text_size}, {config.vision_size}")
        if len(set(offsets)) < len(offsets) or not all(0 <= offset < config.num_special for offset in offsets):
            raise InputError(f"the 8 special roles need different offsets below {config.num_special}, got {offsets}")
        self.config = config
        self.text = range(0, config.text_size)
        self.special = range(config.text_size, config.text_size + config.num_special)
        self.vision = range(self.special.stop, self.special.stop + config.vision_size)
        self.size, self.boundaries = self.vision.stop, (self.special.start, self.vision.start)
        self.pad, self.bos, self.eos, self.eol, self.eof, self.image_token, self.image_start, self.image_end = (
            config.text_size + offset for offset in offsets
        )

    def vision_id(self, code: Any) -> Any:
        """Return the token id of a code; ints and arrays of any library. The caller has checked the range."""
        return code + self.vision.start

    def code(self, token_id: Any) -> Any:
        """Return the code of a visual token id; ints and arrays of any library. The caller has checked the range."""
        return token_id - self.vision.start

    def is_text(self, token_id: Any) -> Any:
        """Tell (elementwise) whether ids are text."""
        return (token_id >= 0) & (token_id < self.text.stop)

    def is_vision(self, token_id: Any) -> Any:
        """Tell (elementwise) whether ids are visual tokens."""
        return (token_id >= self.vision.start) & (token_id < self.vision.stop)

    def token_string(self, token_id: int) -> str:
        """Return the printable name of a special or visual id, or ``<text 17>`` for a text id; for messages only."""
        if token_id in self.vision:
            return f"<|visual token {self.code(token_id):06d}|>"
        if token_id in self.special:
            return self._special_string(token_id - self.special.start)
        if token_id in self.text:
            return f"<text {token_id}>"
        raise InputError(f"token id {token_id} is outside the vocabulary of {self.size}")

    def _special_string(self, offset: int) -> str:
        if self.config.num_special == EMU3_VOCABULARY.num_special:
            named = {
                0: "endoftext",
                1: "im_start",
                2: "im_end",
                208: "image token",
                209: "image start",
                210: "image end",
            }
            return f"<|{named.get(offset, f'extra_{offset - 3}')}|>"
        roles = {getattr(self.config, role): role.replace("_", " ") for role in ROLES}
        return f"<|{roles.get(offset, f'special {offset}')}|>"
