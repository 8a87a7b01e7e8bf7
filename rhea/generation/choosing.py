"""Best of n: of several pictures drawn for one text, which does the model itself find nearest to it?

One transformer knows both directions, so a picture is worth log p(picture | text) + log p(text | picture). The first
alone prefers what is likely whatever was asked, the second overlooks what the text does not name; together they choose
better than either (LOG.md). No other network judges.

Shapes: R rows, T tokens, D channels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from rhea.documents import formats
from rhea.documents.document import Document, Image
from rhea.documents.grammar import FINE_TUNING, Grammar
from rhea.models.transformer import Transformer

_TOKENS_AT_ONCE = 8192
_ROWS_OF_LOGITS = 1024


def agreements(
    transformer: Transformer, grammar: Grammar, texts: Sequence[str], grids: Sequence[np.ndarray]
) -> list[float]:
    """Return how well each picture, codes [h, w], goes with its text, in nats; compare those of one text only."""
    documents = [formats.text_to_image(text, Image(codes=codes)) for text, codes in zip(texts, grids, strict=True)]
    documents += [formats.captioning(Image(codes=codes), text) for text, codes in zip(texts, grids, strict=True)]
    drawn, read = np.array(log_likelihoods(transformer, grammar, documents)).reshape(2, -1)
    return (drawn + read).tolist()


@torch.inference_mode()
def log_likelihoods(transformer: Transformer, grammar: Grammar, documents: Sequence[Document]) -> list[float]:
    """Return log p(targets | prompt) of documents that hold codes; each token among its kind, told by the grammar."""
    rendered = [grammar.render(document, FINE_TUNING) for document in documents]
    longest = max((len(each.token_ids) for each in rendered), default=1)
    rows, found = max(1, _TOKENS_AT_ONCE // longest), list[float]()
    for start in range(0, len(rendered), rows):
        part = rendered[start : start + rows]
        ids_RT = np.full((len(part), longest), grammar.vocabulary.pad)
        targets_RT = np.zeros(ids_RT.shape, dtype=bool)
        for row, each in enumerate(part):
            ids_RT[row, : len(each.token_ids)] = each.token_ids
            targets_RT[row, : len(each.token_ids)] = each.loss_weights > 0
        found += _sums(transformer, grammar.vocabulary.vision.start, ids_RT, targets_RT)
    return found


def _sums(transformer: Transformer, first_code: int, ids_RT: np.ndarray, targets_RT: np.ndarray) -> list[float]:
    device = next(transformer.parameters()).device
    hidden_RTD = transformer.hidden(torch.from_numpy(ids_RT).to(device))
    sums, codes_RT = np.zeros(len(ids_RT)), ids_RT >= first_code
    for of_kind_RT, low, high in ((codes_RT, first_code, None), (~codes_RT, 0, first_code)):
        rows, places = np.nonzero(targets_RT & of_kind_RT)
        for start in range(0, len(rows), _ROWS_OF_LOGITS):
            row, place = rows[start : start + _ROWS_OF_LOGITS], places[start : start + _ROWS_OF_LOGITS]
            log_probs = transformer.logits(hidden_RTD[row, place - 1], low, high).log_softmax(-1)
            labels = torch.from_numpy(ids_RT[row, place] - low).to(device)
            np.add.at(sums, row, log_probs.gather(1, labels[:, None])[:, 0].cpu().numpy())
    return sums.tolist()
