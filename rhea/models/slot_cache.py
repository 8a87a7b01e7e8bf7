"""Keys and values for requests that come and go: a fixed block of slots, and one flat batch of whatever tokens are due.

A forward takes any number of tokens for any of the slots (a piece of a prompt here, one token there, a window of drafts
elsewhere), laid end to end: nothing is padded and nothing moves. A slot's length is the only pointer; what lies behind
it is overwritten, so drafts are rejected, and requests leave, by setting a number. Slots that are neighbours and due
the same number of tokens are attended in one kernel call, on a view of the block.

A cache may keep fewer bits than the model has: int8 with one scale per token and key-value head, or fp8 (e4m3). Then
every key is read as it was stored, also in the forward that stores it, so that neither the size of a prompt's pieces
nor a window of drafts changes what a token sees; and only what a run attends to is widened.

Shapes: N tokens of the flat batch, S slots of a run, C tokens per slot of a run, L keys, H heads, G key-value heads,
K channels of one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.attend import attend, attend_cached
from rhea.models.cache import PlacedCache, Places
from rhea.models.config import TransformerConfig
from rhea.models.rounding import to_fp8, to_int8
from rhea.models.visibility import Visibility

CacheStorage = Literal["model", "int8", "fp8"]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Neighbouring slots that are due the same number of tokens."""

    slots: slice
    tokens: slice
    """Where their tokens lie in the flat batch."""
    length: int
    """Keys of the longest slot, the new ones included."""
    visibility: Visibility
    fresh: bool
    """Whether no slot holds anything yet."""


class SlotCache(PlacedCache):
    """``lengths`` (a list on the host) holds how many tokens of each slot are real."""

    def __init__(
        self,
        config: TransformerConfig,
        slots: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        storage: CacheStorage = "model",
    ) -> None:
        """Reserve ``slots`` times ``max_len`` tokens, kept in ``dtype`` ("model"), "int8" or "fp8"."""
        kinds = {"model": dtype, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
        if storage not in kinds:
            raise InputError(f"a cache is kept as one of {', '.join(kinds)}, not {storage!r}")
        self.storage, self.dtype = storage, dtype
        shape = (slots, 2, config.num_kv_heads, max_len, config.head_dim)
        # Zeros, for a neighbour's unused keys are masked, and a masked NaN is still one.
        self.layers = [torch.zeros(shape, dtype=kinds[storage], device=device) for _ in range(config.num_layers)]
        self.scales = [torch.zeros(*shape[:-1], 1, device=device) for _ in self.layers] if storage == "int8" else []
        self.max_len = max_len
        self.lengths = [0] * slots
        self._feeds: list[tuple[int, int]] = []
        self._runs: list[_Run] | None = None
        self._slots_N = self._positions_N = torch.empty(0, dtype=torch.int64)

    def feed(self, feeds: Sequence[tuple[int, int]]) -> None:
        """Announce the next forward: (slot, number of tokens), in the order of the flat batch, slots ascending."""
        for slot, count in feeds:
            if self.lengths[slot] + count > self.max_len:
                raise InputError(f"{self.lengths[slot]} + {count} tokens do not fit a slot of {self.max_len}")
        self._feeds = list(feeds)

    def truncate(self, slot: int, length: int) -> None:
        """Forget what a slot holds from ``length`` on."""
        assert 0 <= length <= self.lengths[slot], f"slot {slot} holds {self.lengths[slot]} tokens, not {length}"
        self.lengths[slot] = length

    def wipe(self, slot: int) -> None:
        """Forget a slot whose keys or values may not be numbers."""
        for layer in (*self.layers, *self.scales):
            layer[slot] = 0
        self.lengths[slot] = 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Let ``target`` hold the first ``length`` tokens of ``source``, which may have left them behind."""
        for layer in (*self.layers, *self.scales):
            layer[target, :, :, :length] = layer[source, :, :, :length]
        self.lengths[target] = length

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        """Open the forward that ``feed`` announced, on tokens [1, N]: return their positions [1, N]."""
        assert num_tokens == sum(count for _, count in self._feeds), "another batch than was announced"
        device = self.layers[0].device
        places = [(slot, self.lengths[slot] + step) for slot, count in self._feeds for step in range(count)]
        self._slots_N, self._positions_N = torch.tensor(places, dtype=torch.int64, device=device).T.contiguous()
        self._runs = None
        return self._positions_N[None], Visibility(causal=False)

    def places(self) -> Places | None:
        """Return where the tokens of the open forward lie; None with fewer bits."""
        return Places(self.layers, self._slots_N, self._positions_N) if self.storage == "model" else None

    def attend(
        self, layer: int, queries_1NHK: Tensor, keys_1NGK: Tensor, values_1NGK: Tensor, visibility: Visibility
    ) -> Tensor:
        """Store the new keys and values; attend each slot's queries to its own keys, [1, N, H, K]."""
        self.store(layer, 0, keys_1NGK[0], self._slots_N, self._positions_N)
        self.store(layer, 1, values_1NGK[0], self._slots_N, self._positions_N)
        outputs = []
        if self._runs is None:
            self._runs = self._find_runs()
        for run in self._runs:
            slots = run.slots.stop - run.slots.start
            queries, keys, values = (
                x[0, run.tokens].unflatten(0, (slots, -1)) for x in (queries_1NHK, keys_1NGK, values_1NGK)
            )
            if run.fresh and self.storage == "model":
                attended = attend(queries, keys, values, Visibility(causal=True))
            else:
                known_SGLK, content_SGLK = self.read(layer, run.slots, run.length).unbind(1)
                attended = attend_cached(queries, known_SGLK, content_SGLK, run.visibility)
            outputs.append(attended.flatten(0, 1))
        return torch.cat(outputs)[None]

    def store(self, layer: int, part: int, new_NGK: Tensor, slots_N: Tensor, positions_N: Tensor) -> None:
        """Write new keys (part 0) or values (part 1) at their places."""
        cache = self.layers[layer]
        if self.storage == "int8":
            new_NGK, self.scales[layer][slots_N, part, :, positions_N] = to_int8(new_NGK)
        elif self.storage == "fp8":
            new_NGK = to_fp8(new_NGK)
        cache[slots_N, part, :, positions_N] = new_NGK.to(cache.dtype)

    def read(self, layer: int, slots: slice, length: int) -> Tensor:
        """Return the first keys and values of some slots [S, 2, G, L, K]: a view, unless they must be widened."""
        stored = self.layers[layer][slots, :, :, :length]
        if self.storage == "model":
            return stored
        if self.storage == "int8":
            return (stored * self.scales[layer][slots, :, :, :length]).to(self.dtype)
        return stored.to(self.dtype)

    def finish(self) -> None:
        """Close the forward: every slot holds the tokens it was given."""
        for slot, count in self._feeds:
            self.lengths[slot] += count
        self._feeds = []

    def _find_runs(self) -> list[_Run]:
        runs, at, first = [], 0, 0
        while first < len(self._feeds):
            slot, count = self._feeds[first]
            after = first + 1
            while after < len(self._feeds) and self._feeds[after] == (slot + after - first, count):
                after += 1
            runs.append(self._run(slice(slot, slot + after - first), slice(at, at + (after - first) * count), count))
            at, first = runs[-1].tokens.stop, after
        assert all(a[0] < b[0] for a, b in zip(self._feeds, self._feeds[1:], strict=False)), "slots must ascend"
        return runs

    def _run(self, slots: slice, tokens: slice, count: int) -> _Run:
        lengths = self.lengths[slots]
        longest = max(lengths) + count
        mask_S1CL = None
        if count > 1 or min(lengths) + count < longest:
            positions_SC = self._positions_N[tokens].unflatten(0, (-1, count))
            keys_L = torch.arange(longest, device=positions_SC.device)
            mask_S1CL = (keys_L <= positions_SC[:, :, None])[:, None]
        visibility = Visibility(causal=False, mask_B1TS=mask_S1CL)
        return _Run(slots=slots, tokens=tokens, length=longest, visibility=visibility, fresh=max(lengths) == 0)
