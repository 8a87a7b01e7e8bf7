"""The task of a vision tokenizer: reconstruct pictures and 4-frame clips through a codebook, later against a critic.

Generator (encoder, codebook, decoder) and discriminator have an optimizer each and take turns within every microbatch:
the generator's backward pass leaves nothing on the discriminator and the other way round. Until ``adversarial_start``
the discriminator does not run at all. Losses follow MoVQGAN (arXiv 2209.09002), on which Emu3's tokenizer was built.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.media import write_picture
from rhea.models.vision.codebook_training import CodebookTrainer, CodebookTrainingConfig
from rhea.models.vision.discriminator import Discriminator, DiscriminatorConfig
from rhea.models.vision.locality import locality_loss, paste, random_window
from rhea.models.vision.losses import (
    PerceptualNetwork,
    ReconstructionConfig,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    psnr,
    reconstruction,
)
from rhea.models.vision.quantizer import Quantized
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.training.average import WeightAverage, averaged
from rhea.training.optimizer import Optimizer, OptimizerConfig, require_finite
from rhea.training.task import Mean, NonFiniteError, TaskState, prefixed

CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True, kw_only=True)
class VisionTokenizerTaskConfig:
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    perceptual_weight: float = 0.0
    """Weight of the perceptual network's distance; it is not even run at 0."""
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    locality_weight: float = 0.0
    """Weight of what latents know of far away (see models/vision/locality.py), measured on pictures mixed anew; costs
    one more pass of the encoder, none at 0."""
    codebook: CodebookTrainingConfig = field(default_factory=CodebookTrainingConfig)
    discriminator: DiscriminatorConfig | None = None
    """None trains without a critic."""
    adversarial_weight: float = 0.1
    adaptive: bool = False
    """Scale the adversarial loss so that it pulls on the last layer as hard as the reconstruction does."""
    adversarial_start: int = 0
    """The number of updates after which the discriminator joins."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.5, 0.9), weight_decay=0.0))
    discriminator_rate: float = 1.0
    """The discriminator's learning rate as a multiple of the generator's."""
    ema_decay: float | None = 0.999
    """Decay of the weight average used for samples and export; None keeps none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the networks under autocast; weights, codebook distances and losses stay float32."""
    seed: int = 0
    """Of the discriminator's first weights and of the mixtures for locality."""


class VisionTokenizerTask:
    """Trains a VisionTokenizer.

    A microbatch is a dict with "pictures" uint8 [B, H, W, 3], "clips" uint8 [B, 4, H, W, 3] or both.
    """

    unit = "frames"

    def __init__(
        self,
        config: VisionTokenizerTaskConfig,
        model: VisionTokenizer,
        *,
        codebook_initialized: bool = False,
        perceptual: PerceptualNetwork | None = None,
        samples: dict[str, Any] | None = None,
    ) -> None:
        """Train ``model`` where it lies. ``samples``: a microbatch to show while training; the latest one otherwise."""
        self.config, self.model = config, model.train()
        self.device = next(model.parameters()).device
        self.optimizer = Optimizer(config.optimizer, model.named_parameters())
        self.average = WeightAverage(config.ema_decay, model) if config.ema_decay is not None else None
        self.codebook = CodebookTrainer(model.quantize, config.codebook, initialized=codebook_initialized)
        self.perceptual = (perceptual or PerceptualNetwork()).to(self.device) if config.perceptual_weight else None
        self.discriminator: Discriminator | None = None
        if config.discriminator is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.discriminator = Discriminator(config.discriminator).to(self.device)
            self.discriminator_optimizer = Optimizer(config.optimizer, self.discriminator.named_parameters())
        self.updates = 0
        self._samples, self._latest = samples, samples  # the latter follows the run if there are none given
        self._weight = 0.0
        self._loss = torch.zeros((), device=self.device)
        self._generator = self._generator_of_step()

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part in the next update."""
        return self.discriminator is not None and self.updates >= self.config.adversarial_start

    def train_microbatch(self, microbatch: dict[str, Any]) -> dict[str, Mean]:
        """Add the gradients of both sides, summed over frames."""
        if self._samples is None:
            self._latest = microbatch
        targets = self._pixels(microbatch)
        with self._autocast():
            latents = [self.model.encode_latents(target) for target in targets]
        self._prepare_codebook(latents)
        metrics: dict[str, Mean] = {}
        losses, outputs = [], []
        for target, latent in zip(targets, latents, strict=True):
            quantized = self.model.quantize(latent)
            self.codebook.observe(latent, quantized.codes)
            with self._autocast():
                output = self.model.decode_latents(quantized.latents, image=target.ndim == 4)
            frames = target[..., 0, 0, 0].numel()
            loss, parts = self._generator_loss(output, target, quantized)
            if self.config.locality_weight:
                parts["locality"] = self._locality(target, latent)
                loss = loss + self.config.locality_weight * parts["locality"]
            _note(metrics, parts | {"loss": loss}, frames)
            losses.append(frames * loss)
            outputs.append(output.detach())
        loss = torch.stack(losses).sum()
        loss.backward()
        self._loss += loss.detach()
        self._weight += self.count(microbatch)
        if self.adversarial:
            self._discriminate(targets, outputs, metrics)
        return metrics

    def optimizer_step(self, learning_rate: float) -> dict[str, Mean]:
        """Update generator and, once it has started, discriminator; then average weights and revive dead codes."""
        optimizers = [self.optimizer, self.discriminator_optimizer] if self.adversarial else [self.optimizer]
        norms = [optimizer.gradient_norm(self._weight) for optimizer in optimizers]
        weight, loss = self._weight, self._loss
        self._weight, self._loss = 0.0, torch.zeros_like(loss)
        try:
            require_finite(loss, *norms)
        except NonFiniteError:
            for optimizer in optimizers:
                optimizer.clear()
            raise
        rates = (learning_rate, learning_rate * self.config.discriminator_rate)
        for optimizer, norm, rate in zip(optimizers, norms, rates, strict=False):
            optimizer.update(rate, weight, norm)
        report = self.codebook.after_step(self.updates)
        if self.average is not None:
            self.average.update()
        self._settle_revived(report.revived)
        self.updates += 1
        self._generator = self._generator_of_step()
        metrics = {"gradient_norm": Mean(norms[0]), "codes_used": Mean(report.used)}
        if len(norms) == 2:
            metrics["discriminator_gradient_norm"] = Mean(norms[1])
        return metrics | {"perplexity": Mean(report.perplexity), "codes_revived": Mean(float(len(report.revived)))}

    def count(self, microbatch: dict[str, Any]) -> int:
        """Return the number of frames."""
        return sum(
            int(np.prod(array.shape[:-3])) for name, array in microbatch.items() if name in ("pictures", "clips")
        )

    def describe(self, microbatch: dict[str, Any]) -> str:
        """Return the source's own ``description`` if it gives one, the shapes otherwise."""
        shapes = [f"{name} {tuple(microbatch[name].shape)}" for name in ("pictures", "clips") if name in microbatch]
        return str(microbatch.get("description", " and ".join(shapes)))

    def state(self) -> TaskState:
        """Return the state of both networks, both optimizers, the weight average and the codebook's counters."""
        tensors = prefixed("model.", self.model.state_dict())
        tensors |= self.optimizer.state_tensors("optimizer.")
        tensors |= prefixed("codebook.", self.codebook.state_dict())
        if self.average is not None:
            tensors |= self.average.state_tensors("average.")
        if self.discriminator is not None:
            tensors |= prefixed("discriminator.", self.discriminator.state_dict())
            tensors |= self.discriminator_optimizer.state_tensors("discriminator_optimizer.")
        return TaskState(tensors=tensors, values={"updates": self.updates})

    def load_state(self, state: TaskState) -> None:
        """Continue from ``state()``; raise InputError if it is another model's."""
        state.load_module(self.model, "model.")
        self.optimizer.load_state_tensors(state.tensors, "optimizer.")
        self.codebook.load_state_dict(state.group("codebook."))
        self.updates = state.values["updates"]
        self._generator = self._generator_of_step()
        if self.average is not None:
            self.average.load_state_tensors(state.tensors, "average.", self.updates)
        if self.discriminator is not None:
            state.load_module(self.discriminator, "discriminator.")
            self.discriminator_optimizer.load_state_tensors(state.tensors, "discriminator_optimizer.")

    @contextlib.contextmanager
    def export(self) -> Iterator[VisionTokenizer]:
        """Yield the model as it should be used: averaged weights, evaluation mode."""
        with averaged(self.model, self.average) as model:
            yield model

    @torch.no_grad()
    def sample(self, folder: Path, step: int) -> None:
        """Write one picture: originals in the upper row, reconstructions below; clips frame by frame."""
        if self._latest is None:
            return
        with self.export() as model:
            for target in self._pixels(self._latest):
                codes = model.encode(target[:8])
                pairs = torch.stack([target[:8], model.decode(codes)])
                if target.ndim == 5:
                    pairs = pairs.flatten(1, 2)
                strip = torch.cat([torch.cat(list(row), dim=-1) for row in pairs], dim=-2)
                pixels = ((strip.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
                kind = "pictures" if target.ndim == 4 else "clips"
                write_picture(folder / f"step-{step:08d}-{kind}.png", pixels)

    def _pixels(self, microbatch: dict[str, Any]) -> list[Tensor]:
        """Return pictures [B, 3, H, W] and clips [B, F, 3, H, W] in [-1, 1], whichever there are."""
        found = [torch.as_tensor(microbatch[name]) for name in ("pictures", "clips") if name in microbatch]
        if not found:
            raise InputError(f"a microbatch with {sorted(microbatch)}: expected pictures, clips or both")
        return [pixels.to(self.device).movedim(-1, -3).float() / 127.5 - 1.0 for pixels in found]

    def _prepare_codebook(self, latents: list[Tensor]) -> None:
        if not self.codebook.initialized:
            places = [latent.detach().movedim(1, 0).flatten(1) for latent in latents]
            self.codebook.prepare(torch.cat(places, dim=1)[None, :, None])

    def _generator_loss(self, output: Tensor, target: Tensor, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of one frame and its parts."""
        config = self.config
        loss, parts = reconstruction(output, target, config.reconstruction)
        if self.perceptual is not None:
            with self._autocast():
                parts["perceptual"] = self.perceptual(_frames(output), _frames(target)).float()
            loss = loss + config.perceptual_weight * parts["perceptual"]
        if self.adversarial:
            loss = loss + self._adversarial_loss(output, loss, parts)
        parts |= quantized.losses
        loss = loss + config.codebook_weight * parts["codebook"] + config.commitment_weight * parts["commitment"]
        kind = "psnr" if target.ndim == 4 else "psnr_clips"
        return loss, parts | {kind: psnr(output.detach(), target)}

    def _locality(self, target: Tensor, latent: Tensor) -> Tensor:
        window = random_window(latent.shape[2], latent.shape[3], self._generator)
        with self._autocast():
            mixed = self.model.encode_latents(paste(target, window, self.model.config.spatial_factor))
        return locality_loss(mixed.float(), latent.float(), window)

    def _adversarial_loss(self, output: Tensor, loss: Tensor, parts: dict[str, Tensor]) -> Tensor:
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        with self._autocast():
            parts["adversarial"] = generator_hinge(self.discriminator(self._judged(output)))
        weight: Tensor | float = self.config.adversarial_weight
        if self.config.adaptive:
            weight = weight * adaptive_weight(loss, parts["adversarial"], self.model.decoder.conv_out.weight)
        return weight * parts["adversarial"]

    def _discriminate(self, targets: list[Tensor], outputs: list[Tensor], metrics: dict[str, Mean]) -> None:
        """Add the discriminator's gradients on pictures that carry none back to the generator."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        for target, output in zip(targets, outputs, strict=True):
            frames = target[..., 0, 0, 0].numel()
            with self._autocast():
                scores = self.discriminator(torch.cat([self._judged(target), self._judged(output.float())]))
            real, fake = scores.chunk(2)
            loss = discriminator_hinge(real, fake)
            (frames * loss).backward()
            self._loss += frames * loss.detach()
            _note(metrics, {"discriminator": loss}, frames)

    def _judged(self, pixels: Tensor) -> Tensor:
        """Return what the discriminator sees: frames, or, if it is temporal, clips (a picture is a still one)."""
        assert self.config.discriminator is not None
        if not self.config.discriminator.temporal:
            return _frames(pixels)
        clip = self.model.config.temporal_downsample
        clips = pixels if pixels.ndim == 5 else pixels[:, None].expand(-1, clip, -1, -1, -1)
        return clips.transpose(1, 2)

    @torch.no_grad()
    def _settle_revived(self, codes: Tensor) -> None:
        """Let a replaced entry start afresh: no moments of its predecessor, and no average with it."""
        if not len(codes):
            return
        self.optimizer.forget_rows(CODEBOOK, codes)
        if self.average is not None:
            self.average.tensors[CODEBOOK][codes] = self.model.quantize.embedding.weight[codes]

    def _generator_of_step(self) -> torch.Generator:
        """Return random numbers that depend on the seed and the number of updates alone, for a bitwise resume."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.updates)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _note(metrics: dict[str, Mean], parts: dict[str, Tensor], frames: int) -> None:
    for name, value in parts.items():
        mean = Mean(frames * value.detach(), float(frames))
        metrics[name] = metrics[name] + mean if name in metrics else mean


def _frames(pixels: Tensor) -> Tensor:
    return pixels if pixels.ndim == 4 else pixels.flatten(0, 1)
