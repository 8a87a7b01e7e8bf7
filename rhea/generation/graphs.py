"""Decoding steps of fixed shape, replayed as CUDA graphs.

A step of a large model launches hundreds of small kernels, and on a GPU launching them takes longer than their work. A
graph replays them in one go, but only with the shapes and addresses that it was captured with. So a step in which
slots are due a few tokens each is padded: every slot from the first to the last gets as many tokens as the longest,
rounded up to a power of two, and attends to as many keys as the fullest holds, rounded up. What pads is fed behind the
real tokens, where nothing sees it and the next step overwrites it.

On other devices nothing is captured and the same padded step just runs: that is how tests hold it to the flat one.

Shapes: S slots, C tokens of each, N = S C, L keys, H heads, G key-value heads, K channels of one head, D channels.
"""

import logging

import torch
from torch import Tensor

from rhea.models.attend import attend_cached
from rhea.models.cache import PlacedCache, Places
from rhea.models.slot_cache import SlotCache
from rhea.models.transformer import Transformer
from rhea.models.visibility import Visibility

_MOST_TOKENS = 64
"""Of one slot; a longer piece is a prompt's and worth its launches."""
_KEYS = 512
"""Keys are rounded up to a multiple of this."""
_MOST_GRAPHS = 128


class PaddedStep(PlacedCache):
    """One shape of step: neighbouring slots, as many tokens of each, so many keys (the ``Cache`` of its forward)."""

    def __init__(self, cache: SlotCache, slots: slice, count: int, length: int) -> None:
        device = cache.layers[0].device
        self._cache, self._slots, self._count = cache, slots, count
        self._slots_N = torch.arange(slots.start, slots.stop, device=device).repeat_interleave(count)
        self._keys_L = torch.arange(length, device=device)
        self.tokens_1N = torch.zeros(1, len(self._slots_N), dtype=torch.int64, device=device)
        self.positions_1N = torch.zeros_like(self.tokens_1N)
        self.states_1ND: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        """Open the forward: each token sees the keys up to its own position."""
        positions_SC1 = self.positions_1N.view(-1, self._count, 1)
        return self.positions_1N, Visibility(causal=False, mask_B1TS=(self._keys_L <= positions_SC1)[:, None])

    def places(self) -> Places | None:
        """Return where the padded tokens lie; None with fewer bits."""
        if self._cache.storage != "model":
            return None
        return Places(self._cache.layers, self._slots_N, self.positions_1N[0])

    def attend(
        self, layer: int, queries_1NHK: Tensor, keys_1NGK: Tensor, values_1NGK: Tensor, visibility: Visibility
    ) -> Tensor:
        """Store the new keys and values; attend each slot's queries to its own keys, [1, N, H, K]."""
        for part, new_1NGK in enumerate((keys_1NGK, values_1NGK)):
            self._cache.store(layer, part, new_1NGK[0], self._slots_N, self.positions_1N[0])
        known_SGLK, content_SGLK = self._cache.read(layer, self._slots, len(self._keys_L)).unbind(1)
        queries_SCHK = queries_1NHK[0].unflatten(0, (-1, self._count))
        return attend_cached(queries_SCHK, known_SGLK, content_SGLK, visibility).flatten(0, 1)[None]

    def finish(self) -> None:
        """Nothing: the real lengths are the caller's to set."""


class StepGraphs:
    """The padded steps of one model and cache, captured as they are met."""

    def __init__(self, model: Transformer, cache: SlotCache) -> None:
        self._model, self._cache = model, cache
        self._captures = cache.layers[0].device.type == "cuda"
        self._steps: dict[tuple[int, int, int, int], PaddedStep] = {}
        self._pool: tuple[int, int] | None = None
        self.replays = 0

    def forward(self, feeds: dict[int, list[int]]) -> tuple[Tensor, dict[int, int]] | None:
        """Run a step if it can be padded: return the states [N, D] and where each slot's begin."""
        slots = range(min(feeds), max(feeds) + 1)
        lengths = self._cache.lengths[slots.start : slots.stop]
        longest = max(len(tokens) for tokens in feeds.values())
        count = 1 << (longest - 1).bit_length()
        needed = max(lengths) + count
        if longest > _MOST_TOKENS or needed > self._cache.max_len or len(slots) > 2 * len(feeds):
            return None
        length = min(-(-needed // _KEYS) * _KEYS, self._cache.max_len)
        step = self._step((slots.start, slots.stop, count, length))
        padded = [(feeds.get(slot, []) + [0] * count)[:count] for slot in slots]
        places = [list(range(start, start + count)) for start in lengths]
        step.tokens_1N.copy_(torch.tensor(padded).view(1, -1))
        step.positions_1N.copy_(torch.tensor(places).view(1, -1))
        states_1ND = self._run(step)
        for slot, tokens in feeds.items():
            self._cache.lengths[slot] += len(tokens)
        self.replays += 1
        return states_1ND[0], {slot: (slot - slots.start) * count for slot in feeds}

    def _step(self, shape: tuple[int, int, int, int]) -> PaddedStep:
        if shape not in self._steps:
            if len(self._steps) == _MOST_GRAPHS:
                del self._steps[next(iter(self._steps))]
            first, stop, count, length = shape
            self._steps[shape] = PaddedStep(self._cache, slice(first, stop), count, length)
        return self._steps[shape]

    def _run(self, step: PaddedStep) -> Tensor:
        if self._captures and step.graph is None:
            try:
                self._capture(step)
            except RuntimeError as error:
                self._captures = False
                logging.getLogger(__name__).warning("CUDA graphs are off, for a step can't be captured: %s", error)
        if step.graph is None or step.states_1ND is None:
            return self._model.hidden(step.tokens_1N, cache=step)
        step.graph.replay()
        return step.states_1ND

    def _capture(self, step: PaddedStep) -> None:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # what libraries do on their first call can't be captured
            self._model.hidden(step.tokens_1N, cache=step)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):  # type: ignore[arg-type]
            step.states_1ND = self._model.hidden(step.tokens_1N, cache=step)
        step.graph, self._pool = graph, graph.pool()
