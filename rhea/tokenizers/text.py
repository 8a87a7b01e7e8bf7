"""Text to ids and back: Qwen's ranks file as in Emu3, a byte-level BPE trained here, or a Hugging Face tokenizer.json.

A text tokenizer knows no special tokens at all, so whatever a user spells stays text; the ids of BOS, visual tokens and
so on belong to ``Vocabulary``. Every digit is a token of its own, because the size of an image is written in text.
Any text comes back exactly (the Qwen one: up to its NFC normalization); a lone surrogate, which is no Unicode text and
has no UTF-8, is first replaced by U+FFFD.
"""

import base64
import binascii
import json
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rhea.errors import InputError
from rhea.io import atomic_file, read_json

# Qwen's: English contractions | a word with at most one leading sign | one digit | signs | newlines | spaces
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer(Protocol):
    """Ids run from 0 to ``vocab_size`` - 1."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``; nothing in it is special."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of any ids below ``vocab_size``; bytes that are no UTF-8 become U+FFFD."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's one file into ``folder``."""
        ...


def load_text_tokenizer(path: str | Path) -> TextTokenizer:
    """Load a ``*.tiktoken`` or ``tokenizer.json`` file, or the one that a folder holds (the ranks file goes first)."""
    path = Path(path)
    if path.is_dir():
        found = [*sorted(path.glob("*.tiktoken")), *path.glob("tokenizer.json")]
        if not found:
            raise InputError(f"no text tokenizer in {path}: expected a *.tiktoken file or a tokenizer.json")
        path = found[0]
    if not path.is_file():
        raise InputError(f"no such text tokenizer: {path}")
    return TiktokenTokenizer(path) if path.suffix == ".tiktoken" else ByteLevelTokenizer.from_file(path)


def _well_formed(text: str) -> str:
    """Return ``text`` with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class TiktokenTokenizer:
    """The tokenizer of a ranks file (lines of base64 bytes and rank), with Qwen's split pattern and NFC."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        ranks = _read_ranks(self.path)
        self.vocab_size = len(ranks)
        self._encoding = tiktoken.Encoding("ranks", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(unicodedata.normalize("NFC", _well_formed(text)))

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._encoding.decode([int(token_id) for token_id in token_ids], errors="replace")

    def save(self, folder: str | Path) -> None:
        with atomic_file(Path(folder) / "text.tiktoken") as temporary:
            shutil.copyfile(self.path, temporary)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except FileNotFoundError:
        raise InputError(f"no such text tokenizer: {path}") from None
    except (ValueError, binascii.Error):
        raise InputError(f"{path} is not a ranks file: bad line {len(ranks) + 1}") from None
    missing_bytes = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing_bytes or set(ranks.values()) != set(range(len(ranks))):
        raise InputError(f"{path} is cut off or damaged: its ranks must be 0 to n-1 and hold all 256 single bytes")
    return ranks


class ByteLevelTokenizer:
    """A BPE over bytes in the ``tokenizers`` library; build one with ``train_text_tokenizer`` or ``from_file``."""

    def __init__(self, specification: dict[str, Any]) -> None:
        """Take the content of a tokenizer.json; its added tokens, templates, truncation and padding are left out."""
        self._specification = _without_added_tokens(specification)
        self._tokenizer = Tokenizer.from_str(json.dumps(self._specification))
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=False).values())

    @classmethod
    def from_file(cls, path: str | Path) -> "ByteLevelTokenizer":
        """Load a tokenizer.json; raise InputError if it is not one."""
        specification = read_json(path)
        try:
            return cls(specification)
        except Exception as error:  # the library raises bare Exception for every fault in the file
            raise InputError(f"{path} is not a usable tokenizer.json: {error}") from None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(_well_formed(text), add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(token_id) for token_id in token_ids], skip_special_tokens=False)

    def pieces(self) -> list[str]:
        """Return every token in the byte-level alphabet (a letter for each byte), by id; "" for an id that is free."""
        pieces = [""] * self.vocab_size
        for piece, token_id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            pieces[token_id] = piece
        return pieces

    def spell(self, piece: str) -> list[int]:
        """Return the ids of a piece of text in the byte-level alphabet."""
        return [token.id for token in self._tokenizer.model.tokenize(piece)]

    def save(self, folder: str | Path) -> None:
        with atomic_file(Path(folder) / "tokenizer.json") as temporary:
            temporary.write_text(json.dumps(self._specification, ensure_ascii=False), encoding="utf-8")


def _without_added_tokens(specification: dict[str, Any]) -> dict[str, Any]:
    """Return a specification whose added tokens are gone from its list, from the vocabulary and from the merges."""
    if not isinstance(specification, dict) or not isinstance(specification.get("model"), dict):
        raise InputError("it has no model")
    added = {token["content"] for token in specification.get("added_tokens") or ()}
    model = dict(specification["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in added}
        if not model["vocab"]:
            raise InputError("its vocabulary is empty")
    if added and model.get("merges"):
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [list(pair) for pair in pairs if not added & {*pair, "".join(pair)}]
    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return {**specification, **plain, "model": model}


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> ByteLevelTokenizer:
    """Train a byte-level BPE of 256 to ``vocab_size`` tokens; the same texts give the same ids."""
    if vocab_size < 256:
        raise InputError(f"a byte-level vocabulary needs at least 256 tokens, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((_well_formed(text) for text in texts), trainer)
    return ByteLevelTokenizer(json.loads(tokenizer.to_str()))
