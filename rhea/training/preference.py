"""The task of preferring: make the chosen of two documents likelier than the rejected one, not far from where it began.

Direct preference optimization (arXiv 2305.18290, equation 7) on top of next-token prediction of the chosen document,
as Emu3 does for pictures (arXiv 2409.18869). For a pair with log-likelihoods of what follows the prompt under the model
and under the frozen reference,

    margin = beta * ((chosen - reference chosen) - (rejected - reference rejected))
    loss = -log sigmoid(margin) - next_token * chosen / tokens of the chosen

The slope of the first term by a document's log-likelihood is one number, known once the likelihoods are. So the loss
head's weights, one a token, give the exact gradient and no second loss kernel is needed.

Shapes: B rows, T tokens of a row, N = B * T, D channels, M most documents of a row (even), P pairs.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rhea.documents.packing import Packed
from rhea.errors import InputError
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import Vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig
from rhea.training.task import Mean


@dataclass(frozen=True, kw_only=True)
class PreferenceTaskConfig:
    base: NextTokenTaskConfig = field(default_factory=NextTokenTaskConfig)
    beta: float = 0.1
    """How much the margin counts per nat: the larger, the nearer the model stays to the reference."""
    next_token: float = 1.0
    """Weight of the chosen document's mean loss per token, which keeps it likely, not only likelier than the other."""


class _Pairs(NamedTuple):
    """What a microbatch holds."""

    documents_N: Tensor
    """Which document of the microbatch each token belongs to."""
    counted_N: Tensor
    """1 for each token after a prompt."""
    lengths_P2: Tensor
    """How many there are in the chosen and the rejected document; 0 where there is no pair."""


class PreferenceTask(NextTokenTask):
    """Trains a Transformer on packed pairs (``rhea.documents.pairs``): the chosen document, then the rejected one."""

    def __init__(
        self, config: PreferenceTaskConfig, model: Transformer, reference: Transformer, vocabulary: Vocabulary
    ) -> None:
        """``reference``: a model of the same vocabulary that stays as it is, usually what ``model`` began as."""
        if config.beta <= 0 or config.next_token < 0:
            raise InputError(f"beta must be above 0 and next_token 0 or more, got {config.beta}, {config.next_token}")
        super().__init__(config.base, model, vocabulary)
        self.preference, self.reference = config, reference.eval().requires_grad_(False)

    def train_microbatch(self, microbatch: Packed) -> dict[str, Mean]:
        """Add the gradients of the sum of the pairs' losses; metrics are named as TRL names them."""
        pairs, labels_N = self._pairs(microbatch), self._to_device(microbatch.labels).flatten()
        with self._autocast():
            hidden_ND = self._hidden(self.model, microbatch).flatten(0, 1)
            with torch.no_grad():
                before_P2 = self._likelihoods(self.reference, self._hidden(self.reference, microbatch), labels_N, pairs)
                now_P2 = self._likelihoods(self.model, hidden_ND, labels_N, pairs)
                there_P = (pairs.lengths_P2 > 0).all(dim=1)
                rewards_P2 = self.preference.beta * (now_P2 - before_P2)
                margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
                mean_P = -now_P2[:, 0] / pairs.lengths_P2[:, 0].clamp(min=1)
                losses_P = F.softplus(-margins_P) + self.preference.next_token * mean_P
                slopes_P = self.preference.beta * torch.sigmoid(-margins_P)
                kept_P = slopes_P + self.preference.next_token / pairs.lengths_P2[:, 0].clamp(min=1)
                slopes_M = (torch.stack([kept_P, -slopes_P], dim=1) * there_P[:, None]).flatten()
            weighted, _ = self._loss_of(hidden_ND, labels_N, slopes_M[pairs.documents_N] * pairs.counted_N)
        weighted.backward()
        number, loss = float(there_P.sum()), (losses_P * there_P).sum()
        self._loss += loss
        self._weight += number
        rewards = (rewards_P2 * there_P[:, None]).sum(dim=0)
        return {
            "loss": Mean(loss, number),
            "rewards/chosen": Mean(rewards[0], number),
            "rewards/rejected": Mean(rewards[1], number),
            "rewards/margins": Mean((margins_P * there_P).sum(), number),
            "rewards/accuracies": Mean(((margins_P > 0) & there_P).sum().float(), number),
            "loss_chosen": Mean((mean_P * there_P).sum(), number),
        }

    def _pairs(self, microbatch: Packed) -> _Pairs:
        ids_BT = np.asarray(microbatch.document_ids)
        most = int(ids_BT.max()) // 2 * 2 + 2
        documents_BT = np.maximum(ids_BT, 0) + most * np.arange(len(ids_BT))[:, None]
        counted_BT = ((np.asarray(microbatch.loss_weights) > 0) & (ids_BT >= 0)).astype(np.float32)
        lengths = np.bincount(documents_BT.ravel(), counted_BT.ravel(), minlength=most * len(ids_BT))
        parts = documents_BT.ravel(), counted_BT.ravel(), lengths.astype(np.float32).reshape(-1, 2)
        return _Pairs(*map(self._to_device, parts))

    def _likelihoods(self, model: Transformer, hidden: Tensor, labels_N: Tensor, pairs: _Pairs) -> Tensor:
        """Return the log-likelihood of what follows the prompt, of the chosen and the rejected document [P, 2]."""
        hidden_ND = hidden.flatten(0, -2).detach()
        _, nll_N = self._loss_of(hidden_ND, labels_N, pairs.counted_N, model)
        sums = nll_N.new_zeros(pairs.lengths_P2.numel()).index_add_(0, pairs.documents_N, nll_N)
        return -sums.reshape(-1, 2)
