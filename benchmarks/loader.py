"""How fast the packed loader feeds documents that are already tokenized (codes ready, text not), on one core.

Three mixtures: the default model's size (8 x 8 pictures, short captions), Emu3's (64 x 64 pictures, long captions) and
plain text cut over rows. Also: making the state and resuming from it. Usage: python benchmarks/loader.py
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from record import save

from rhea.documents import formats
from rhea.documents.document import Document, Image
from rhea.documents.grammar import Grammar
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

CAPTION = "a small red circle is left of the big blue square, and a green triangle is above them"
CODEBOOK = 32768


class Ready:
    """Documents made beforehand, given again and again."""

    def __init__(self, make: Callable[[np.random.Generator], Document], count: int) -> None:
        self.documents = [make(np.random.default_rng(index)) for index in range(count)]

    def document(self, index: int) -> Document:
        return self.documents[index % len(self.documents)]


def picture(side: int, sentences: int) -> Callable[[np.random.Generator], Document]:
    def make(random: np.random.Generator) -> Document:
        caption = ". ".join([CAPTION] * int(random.integers(1, sentences + 1)))
        return formats.text_to_image(caption, Image(codes=random.integers(0, CODEBOOK, (side, side))))

    return make


def text(random: np.random.Generator) -> Document:
    return formats.language(" ".join(random.permutation(CAPTION.split() * 50)))


def measure(
    make: Callable[[np.random.Generator], Document], rows: int, seq_len: int, repeats: int = 7
) -> dict[str, Any]:
    """Return the median over ``repeats`` runs of about 400,000 tokens each."""
    tokenizer = train_text_tokenizer([CAPTION], 512)
    grammar = Grammar(Vocabulary(compact_vocabulary(tokenizer.vocab_size, CODEBOOK)), tokenizer)
    mixture = Mixture([WeightedSource(name="ready", source=Ready(make, 300))])
    loader = PackedLoader(PackedLoaderConfig(rows=rows, seq_len=seq_len, too_long="cut"), mixture, grammar)
    loader.next_batch()
    rates, filled = [], []
    for _ in range(repeats):
        tokens, start = 0, time.perf_counter()
        for _ in range(max(1, 400_000 // (rows * seq_len))):
            batch = loader.next_batch()
            tokens += int(np.count_nonzero(batch.document_ids >= 0))
            filled.append(float((batch.document_ids >= 0).mean()))
        rates.append(tokens / (time.perf_counter() - start))
    state = loader.state_dict()
    start = time.perf_counter()
    PackedLoader(loader.config, mixture, grammar).load_state_dict(state)
    return {
        "rows": rows,
        "seq_len": seq_len,
        "tokens_per_second": round(statistics.median(rates)),
        "filled": round(statistics.mean(filled), 4),
        "state_bytes": len(json.dumps(state)),
        "resume_seconds": round(time.perf_counter() - start, 4),
    }


def main() -> None:
    save(
        __file__,
        {
            "8x8 pictures": measure(picture(8, 1), rows=4, seq_len=1024),
            "64x64 pictures": measure(picture(64, 8), rows=2, seq_len=16384),
            "text": measure(text, rows=4, seq_len=1024),
        },
    )


if __name__ == "__main__":
    main()
