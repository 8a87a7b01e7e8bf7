"""Begin with the skills of a smaller model whose tokenizers were others: what its tokens mean is said in the new ones.

A new text token is the mean of the old tokens that spell it. A new code is the mixture of the old codes that the old
vision tokenizer gives at the places where the new one gives it, counted on documents of the recipe's own mixture. So
a transformer that knows what a red circle looks like need not learn it again because pictures are coded anew.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from rhea.checkpoints.load import load_checkpoint
from rhea.documents.document import Document, Image, Video, encode_documents
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.models.growth import grow, require_growth
from rhea.models.transformer import Transformer
from rhea.tokenizers.text import ByteLevelTokenizer, TextTokenizer
from rhea.tokenizers.vision import VisionCodec
from rhea.tokenizers.vocabulary import ROLES, Vocabulary


def grow_from(
    folder: str, model: Transformer, grammar: Grammar, codec: VisionCodec, documents: Iterable[Document]
) -> None:
    """Write a checkpoint's smaller transformer into ``model``; ``documents``: with pixels, to compare codes on.

    InputError if the checkpoint is not whole or of sizes that cannot grow to the model's.
    """
    smaller = load_checkpoint(folder, dtype=torch.float32, vision_dtype=torch.float32)
    parts = smaller.transformer, smaller.vision_tokenizer, smaller.text_tokenizer, smaller.vocabulary
    transformer, vision, text, vocabulary = parts
    if transformer is None or vision is None or text is None or vocabulary is None:
        raise InputError(
            f"{folder} is not a whole model: growth needs transformer, vision tokenizer and text tokenizer"
        )
    require_growth(transformer.config, model.config)
    rows = torch.zeros(grammar.vocabulary.size, vocabulary.size)
    new = grammar.vocabulary
    rows[new.text.start : new.text.stop, : vocabulary.text.stop] = text_rows(text, grammar.text_tokenizer)
    for role in ROLES:
        rows[getattr(new, role), getattr(vocabulary, role)] = 1
    counted = counted_codes(VisionCodec(vision, codec.policy), codec, documents, vocabulary, new)
    rows[new.vision.start :, vocabulary.vision.start :] = code_rows(counted, codec.model.quantize.embedding.weight)
    grow(transformer, model, rows)


def text_rows(old: TextTokenizer, new: TextTokenizer) -> Tensor:
    """Return [new tokens, old tokens]: each row the mean of the old tokens that spell the new one, byte for byte."""
    if not isinstance(old, ByteLevelTokenizer) or not isinstance(new, ByteLevelTokenizer):
        raise InputError("a model grows from one with a tokenizer.json to one with a tokenizer.json")
    rows = torch.zeros(new.vocab_size, old.vocab_size)
    for token_id, piece in enumerate(new.pieces()):
        spelled = old.spell(piece)
        for each in spelled:
            rows[token_id, each] += 1 / len(spelled)
    return rows


def counted_codes(
    old: VisionCodec, new: VisionCodec, documents: Iterable[Document], before: Vocabulary, after: Vocabulary
) -> Tensor:
    """Return [new codes, old codes]: at how many places both were given."""
    counts = np.zeros((len(after.vision), len(before.vision)))
    for document in documents:
        (was,), (now,) = encode_documents([document], old), encode_documents([document], new)
        for first, second in zip(was.segments, now.segments, strict=True):
            if isinstance(first, Image | Video) and isinstance(second, Image | Video):
                assert first.codes is not None
                assert second.codes is not None
                np.add.at(counts, (np.asarray(second.codes).ravel(), np.asarray(first.codes).ravel()), 1)
    return torch.from_numpy(counts).float()


def code_rows(counts_KK: Tensor, codebook_KD: Tensor) -> Tensor:
    """Return the shares of the old codes in each new one; a code that was not seen takes those of the nearest seen."""
    seen_K = counts_KK.sum(1) > 0
    if not seen_K.any():
        raise InputError("no document held a picture to compare the old and the new codes on")
    nearest_K = torch.cdist(codebook_KD.float(), codebook_KD[seen_K].float()).argmin(1)
    rows_KK = counts_KK[seen_K][nearest_K]
    return rows_KK / rows_KK.sum(1, keepdim=True)
