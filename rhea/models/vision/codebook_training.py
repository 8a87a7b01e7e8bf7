"""Keep a codebook in use while it is trained: entries from the data at the start, and new life for dead ones.

With the released initialisation (uniform in 1/K) a 4-dimensional codebook collapses at once to a few entries; taking
the first latents as entries and replacing those that nothing has chosen for a while does not. The counters are
training state, not weights: they live here, outside the model, so its state dict keeps exactly the released names.
All randomness is a function of (seed, step): a resumed run draws what the uninterrupted one would have drawn.

Legend of shapes: N latent frames, D channels of a latent, P places, K entries.
"""

from dataclasses import dataclass

import torch

from rhea.models.vision.quantizer import Quantizer


@dataclass(frozen=True, kw_only=True)
class CodebookTrainingConfig:
    """When entries are replaced, and how use is averaged."""

    revive_after: int = 200
    """Replace an entry that no latent has chosen for this many steps; 0 never does."""
    merge_below: float = 0.0
    """Also replace an entry that lies nearer to a more used one than this, squared, in units of the mean squared error
    of quantization. Two entries in one cluster are a coin toss that whoever predicts the codes can't foresee."""
    revive_until: int | None = None
    """The last step at which entries are replaced; None for no end. Stop before the end, so that entries can settle."""
    usage_decay: float = 0.99
    """Decay per step of the average use on which the perplexity is computed."""
    average_decay: float | None = None
    """Move entries to the running mean of the latents that chose them, with this decay per step (arXiv:1711.00937,
    appendix A.1), not by gradient; give the codebook loss no weight then. Latents of a young model move faster than
    an optimizer's step lets entries follow."""
    noise: float = 0.02
    """Noise on the first entries, in units of the latents' standard deviation: copies of one latent must differ."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CodebookReport:
    """The state of the codebook after a step."""

    used: float
    """Share of the entries chosen at least once in the last ``revive_after`` steps."""
    perplexity: float
    """Exponential of the entropy of the average use; at most the number of entries."""
    revived: torch.Tensor
    """Indices of the entries replaced just now (their optimizer moments are stale)."""


class CodebookTrainer:
    """Watch one quantizer.

    Per microbatch: ``prepare(latents)`` before quantizing, ``observe(latents, codes)`` after. Per optimizer step:
    ``after_step(step)``. Save ``state_dict()`` at a step boundary.
    """

    def __init__(self, quantizer: Quantizer, config: CodebookTrainingConfig, initialized: bool = False) -> None:
        """Pass ``initialized=True`` to go on from a trained codebook."""
        self.quantizer, self.config, self.initialized = quantizer, config, initialized
        weight = quantizer.embedding.weight
        self.usage_K = torch.zeros(len(weight), device=weight.device)
        self.idle_K = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self.mass_K = torch.ones(len(weight), device=weight.device)
        self.total_KD = weight.detach().float().clone()
        self._counts_K = torch.zeros_like(self.idle_K)
        self._sums_KD = torch.zeros_like(self.total_KD)
        self._latents: list[torch.Tensor] = []
        self._errors: list[torch.Tensor] = []

    def prepare(self, latents_NDhw: torch.Tensor) -> None:
        """Take the entries from these latents if that has not been done yet."""
        if not self.initialized:
            self.initialize(latents_NDhw)

    @torch.no_grad()
    def initialize(self, latents_NDhw: torch.Tensor) -> None:
        """Replace every entry by a latent; latents are used again, with noise, where there are fewer than entries."""
        generator = torch.Generator().manual_seed(self.config.seed)
        weight_KD = self.quantizer.embedding.weight
        weight_KD.copy_(self._draw(_places(latents_NDhw), len(weight_KD), generator))
        self._settle(torch.arange(len(weight_KD), device=weight_KD.device))
        self.initialized = True

    @torch.no_grad()
    def observe(self, latents_NDhw: torch.Tensor, codes: torch.Tensor) -> None:
        """Count the codes of one microbatch and keep its latents until the step ends, as candidates for revival."""
        places_PD = _places(latents_NDhw.detach())
        self._counts_K += torch.bincount(codes.flatten(), minlength=len(self._counts_K))
        self._sums_KD.index_add_(0, codes.flatten(), places_PD)
        self._latents.append(places_PD)
        entries_PD = self.quantizer.embedding.weight[codes.flatten()].float()
        self._errors.append((places_PD - entries_PD).square().sum(1))

    @torch.no_grad()
    def after_step(self, step: int) -> CodebookReport:
        """Update the counters with what was observed since the last call and replace entries that have died."""
        counts_K, config = self._counts_K, self.config
        self.idle_K = torch.where(counts_K > 0, 0, self.idle_K + 1)
        share_K = counts_K / counts_K.sum().clamp(min=1)
        self.usage_K = config.usage_decay * self.usage_K + (1 - config.usage_decay) * share_K
        used = (self.idle_K < max(1, config.revive_after)).float().mean().item()
        if config.average_decay is not None:
            self._average(config.average_decay)
        report = CodebookReport(used=used, perplexity=perplexity(self.usage_K), revived=self._revive(step))
        self._counts_K = torch.zeros_like(counts_K)
        self._sums_KD = torch.zeros_like(self._sums_KD)
        self._latents, self._errors = [], []
        return report

    def _average(self, decay: float) -> None:
        self.mass_K = decay * self.mass_K + (1 - decay) * self._counts_K
        self.total_KD = decay * self.total_KD + (1 - decay) * self._sums_KD
        chosen = self._counts_K > 0  # the others would keep their value but for rounding
        self.quantizer.embedding.weight[chosen] = self.total_KD[chosen] / self.mass_K[chosen, None]

    def _settle(self, entries: torch.Tensor) -> None:
        """Let replaced entries start afresh: just used, and with the mass of one latent."""
        self.idle_K[entries] = 0
        self.mass_K[entries] = 1.0
        self.total_KD[entries] = self.quantizer.embedding.weight[entries].detach().float()

    def _revive(self, step: int) -> torch.Tensor:
        config = self.config
        over = config.revive_until is not None and step > config.revive_until
        if config.revive_after == 0 or over or not self._latents:
            return self.idle_K.new_empty(0)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 1)
        places_PD, errors_P = torch.cat(self._latents), torch.cat(self._errors)
        dead_K = self.idle_K >= config.revive_after
        if config.merge_below:
            dead_K = dead_K | self._spare(config.merge_below * errors_P.mean())
        dead = dead_K.nonzero()[:, 0]
        if len(dead):
            # In proportion to the squared error, as k-means++ does: what has an entry of its own needs no second one.
            dead = dead[: int((errors_P > 0).sum())]
            worst = torch.multinomial(errors_P.cpu(), len(dead), generator=generator) if len(dead) else dead
            self.quantizer.embedding.weight[dead] = places_PD[worst.to(places_PD.device)]
            self._settle(dead)
        return dead

    def _spare(self, square: torch.Tensor) -> torch.Tensor:
        """Tell which entries have a more used neighbour (of equal use, one of smaller index) within this distance."""
        weight_KD = self.quantizer.embedding.weight.float()
        order = torch.argsort(self.usage_K, descending=True, stable=True)
        near_KK = torch.cdist(weight_KD[order], weight_KD[order]).square() < square
        spare_K = torch.zeros_like(self.idle_K, dtype=torch.bool)
        spare_K[order] = near_KK.tril(-1).any(1)
        return spare_K

    def _draw(self, places_PD: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return ``count`` latents, each place at most once more than any other, with a little noise."""
        order = torch.cat(
            [torch.randperm(len(places_PD), generator=generator) for _ in range(-(-count // len(places_PD)))]
        )
        noise = torch.randn(count, places_PD.shape[1], generator=generator).to(places_PD.device)
        deviation_D = self.config.noise * places_PD.std(0, correction=0)
        return places_PD[order[:count].to(places_PD.device)] + deviation_D * noise

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the counters as flat tensors; call between steps."""
        assert not self._latents, "state_dict() in the middle of a step"
        initialized = torch.tensor(self.initialized)
        counters = {"usage": self.usage_K, "idle": self.idle_K, "mass": self.mass_K, "total": self.total_KD}
        return {name: counter.clone() for name, counter in counters.items()} | {"initialized": initialized}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from ``state_dict()``."""
        self.usage_K.copy_(state["usage"])
        self.idle_K.copy_(state["idle"])
        self.mass_K.copy_(state["mass"])
        self.total_KD.copy_(state["total"])
        self.initialized = bool(state["initialized"])


def perplexity(usage_K: torch.Tensor) -> float:
    """Return exp(entropy) of counts or shares: the number of entries that equal use would need."""
    share_K = usage_K.double() / usage_K.double().sum().clamp(min=1e-12)
    return torch.exp(torch.special.entr(share_K).sum()).item()


def _places(latents_NDhw: torch.Tensor) -> torch.Tensor:
    return latents_NDhw.permute(0, 2, 3, 1).flatten(0, 2).float()
