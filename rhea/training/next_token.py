"""The task of the transformer: predict the next token of packed documents, whatever its modality.

Every token's loss has a weight (0.5 for vision tokens in Emu3's pretraining, 0 for prompts in fine-tuning). A step's
loss is the weighted sum over all its microbatches divided by the sum of their weights, so neither packing nor
accumulation changes the objective. A weight below 0 makes its token less likely, as the tries of reinforcement learning
that went wrong want it; it counts by its size in the sum.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rhea.documents.packing import Packed
from rhea.models.loss_head import weighted_cross_entropy
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import Vocabulary
from rhea.training.average import WeightAverage, averaged
from rhea.training.optimizer import Optimizer, OptimizerConfig, require_finite
from rhea.training.task import Mean, NonFiniteError, TaskState, prefixed

MODALITIES = ("text", "structure", "vision")


class Sampler(Protocol):
    """Writes pictures made by the model into a folder; the recipe gives one, for generation is not this room's work."""

    def __call__(self, model: Transformer, folder: Path, step: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class NextTokenTaskConfig:
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    z_loss: float = 0.0
    """Weight of logsumexp^2, which keeps the logits from drifting; 0 in Emu3."""
    loss_chunk: int = 1024
    """Tokens whose logits exist at the same time."""
    loss_over: Literal["vocabulary", "kind"] = "vocabulary"
    """What a token is told apart from: every other one, as Emu3 does, or those of its kind, visual codes or all others.
    The grammar tells the kind when this model writes, so nothing is lost and half the head's work saved where the kinds
    are equally many; whoever writes without a grammar needs "vocabulary"."""
    ema_decay: float | None = None
    """Decay of the weight average used for samples and export; None keeps none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the model under autocast; weights, gradients and optimizer state stay float32."""
    logit_probe: int = 16
    """Tokens per microbatch whose largest |logit| is logged, an early sign of divergence; 0 logs none."""


class NextTokenTask:
    """Trains a Transformer on ``Packed`` microbatches."""

    unit = "tokens"

    def __init__(
        self,
        config: NextTokenTaskConfig,
        model: Transformer,
        vocabulary: Vocabulary,
        *,
        sampler: Sampler | None = None,
    ) -> None:
        """Train ``model`` where it lies."""
        self.config, self.model, self.vocabulary = config, model.train(), vocabulary
        self.device = next(model.parameters()).device
        self.optimizer = Optimizer(config.optimizer, model.named_parameters())
        self.average = WeightAverage(config.ema_decay, model) if config.ema_decay is not None else None
        self.updates = 0
        self._sampler = sampler
        self._weight = 0.0
        self._loss = torch.zeros((), device=self.device)

    def train_microbatch(self, microbatch: Packed) -> dict[str, Mean]:
        """Add the gradients of the weighted sum of the tokens' losses."""
        labels_N, weights_N = self._to_device(microbatch.labels).flatten(), self._to_device(microbatch.loss_weights)
        with self._autocast():
            hidden_BTD = self._hidden(self.model, microbatch)
            loss, nll_N = self._loss_of(hidden_BTD.flatten(0, 1), labels_N, weights_N.flatten().float())
        loss.backward()
        weight = float(np.abs(microbatch.loss_weights, dtype=np.float64).sum())
        self._loss += loss.detach()
        self._weight += weight
        metrics = {"loss": Mean(loss.detach(), weight)} | self._by_modality(microbatch, nll_N)
        if self.config.logit_probe:
            assert self.model.lm_head is not None
            with torch.no_grad():
                probed_ND = hidden_BTD.flatten(0, 1)[: self.config.logit_probe].detach()
                logits = torch.nn.functional.linear(probed_ND, self.model.lm_head.weight.to(probed_ND.dtype))
                metrics["largest_logit"] = Mean(logits.abs().max().float())
        return metrics

    def optimizer_step(self, learning_rate: float) -> dict[str, Mean]:
        """Update with the step's mean gradient; NonFiniteError, with the weights untouched, if it is not finite."""
        weight, loss = max(self._weight, 1e-12), self._loss
        self._weight, self._loss = 0.0, torch.zeros_like(loss)
        norm = self.optimizer.gradient_norm(weight)
        try:
            require_finite(loss, norm)
        except NonFiniteError:
            self.optimizer.clear()
            raise
        self.optimizer.update(learning_rate, weight, norm)
        if self.average is not None:
            self.average.update()
        self.updates += 1
        return {"gradient_norm": Mean(norm)}

    def count(self, microbatch: Packed) -> int:
        """Return the number of tokens that belong to documents."""
        return int((np.asarray(microbatch.document_ids) >= 0).sum())

    def describe(self, microbatch: Packed) -> str:
        """Name the documents of the microbatch."""
        return ", ".join(name for row in microbatch.origins for name in row)

    def state(self) -> TaskState:
        """Return weights, optimizer state and weight average."""
        tensors = prefixed("model.", self.model.state_dict()) | self.optimizer.state_tensors("optimizer.")
        if self.average is not None:
            tensors |= self.average.state_tensors("average.")
        return TaskState(tensors=tensors, values={"updates": self.updates})

    def load_state(self, state: TaskState) -> None:
        """Continue from ``state()``; raise InputError if it is another model's."""
        state.load_module(self.model, "model.")
        self.optimizer.load_state_tensors(state.tensors, "optimizer.")
        self.updates = state.values["updates"]
        if self.average is not None:
            self.average.load_state_tensors(state.tensors, "average.", self.updates)

    @contextlib.contextmanager
    def export(self) -> Iterator[Transformer]:
        """Yield the model as it should be used: averaged weights if there are any, evaluation mode."""
        with averaged(self.model, self.average) as model:
            yield model

    def sample(self, folder: Path, step: int) -> None:
        """Let the recipe's sampler write its pictures."""
        if self._sampler is not None:
            with self.export() as model, torch.no_grad():
                self._sampler(model, folder, step)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _hidden(self, model: Transformer, microbatch: Packed) -> Tensor:
        """Return what a model makes of each token [B, T, D]."""
        return model.hidden(
            self._to_device(microbatch.token_ids),
            positions_BT=self._to_device(microbatch.positions),
            document_ids_BT=self._to_device(microbatch.document_ids),
        )

    def _loss_of(
        self, hidden_ND: Tensor, labels_N: Tensor, weights_N: Tensor, model: Transformer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses and each token's, by the head of the trained model or of another."""
        model = model or self.model
        assert model.lm_head is not None
        head, chunk, z_loss = model.lm_head.weight, self.config.loss_chunk, self.config.z_loss
        if self.config.loss_over == "vocabulary":
            return weighted_cross_entropy(hidden_ND, head, labels_N, weights_N, chunk=chunk, z_loss=z_loss)
        first_code, codes_N = self.vocabulary.vision.start, labels_N >= self.vocabulary.vision.start
        total, nll_N = hidden_ND.new_zeros((), dtype=torch.float32), weights_N.new_zeros(len(labels_N))
        others_KD, vision_KD = head.split([first_code, len(head) - first_code])
        for rows, of_kind_KD, first in ((codes_N, vision_KD, first_code), (~codes_N, others_KD, 0)):
            chosen = (rows & (weights_N != 0)).nonzero().flatten()
            loss, nll = weighted_cross_entropy(
                hidden_ND[chosen], of_kind_KD, labels_N[chosen] - first, weights_N[chosen], chunk=chunk, z_loss=z_loss
            )
            total, nll_N[chosen] = total + loss, nll
        return total, nll_N

    def _by_modality(self, microbatch: Packed, nll_N: Tensor) -> dict[str, Mean]:
        """Return the unweighted mean loss of the counted text, structure and vision tokens."""
        labels, counted = np.asarray(microbatch.labels).ravel(), np.asarray(microbatch.loss_weights).ravel() != 0
        special, vision = self.vocabulary.special, self.vocabulary.vision
        kinds = np.where(labels >= vision.start, 2, np.where(labels >= special.start, 1, 0)) * counted
        totals = nll_N.new_zeros(len(MODALITIES)).index_add_(0, self._to_device(kinds), nll_N)
        counts = np.bincount(kinds[counted], minlength=len(MODALITIES)).tolist()
        return {f"loss_{name}": Mean(totals[i], float(counts[i])) for i, name in enumerate(MODALITIES) if counts[i] > 0}

    def _to_device(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)
