"""Keys and values of the tokens already seen: one preallocated block per layer, rows of different lengths allowed.

The decision that is not obvious: nothing is ever padded on the left. A batch of prompts of different lengths is padded
on the right and run once; then ``set_lengths`` says how many tokens of each row were real. What lies behind a row's
length is never attended and is overwritten by its next tokens: a row in a batch sees exactly what it sees alone.

Shapes: B rows, T new tokens, L = max_len, G key-value heads, K channels of one head.
"""

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.attend import attend, attend_cached
from rhea.models.cache import PlacedCache, Places
from rhea.models.config import TransformerConfig
from rhea.models.visibility import Visibility


class KVCache(PlacedCache):
    """The cache of one batch. ``lengths`` (a list on the host) holds how many tokens of each row are in it."""

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows, 2, config.num_kv_heads, max_len, config.head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.max_len = max_len
        self.lengths = [0] * rows
        self._new_tokens = 0
        self._slots: tuple[Tensor, Tensor] | None = None
        self._positions_BT = torch.empty(rows, 0, dtype=torch.int64)
        self._places: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Return the length of the longest row."""
        return max(self.lengths)

    @property
    def is_empty(self) -> bool:
        """Tell whether no row holds a token yet (also during the first forward)."""
        return self.length == 0

    def set_lengths(self, lengths: list[int]) -> None:
        """Declare how many tokens of each row are real: drops right padding, or rewinds. Lengths may only shrink."""
        if len(lengths) != self.rows or any(
            not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)
        ):
            raise InputError(f"cache lengths {lengths}: need {self.rows} values, each at most {self.lengths}")
        self.lengths = list(lengths)

    def copy_row(self, source: int, target: int) -> None:
        """Make row ``target`` a copy of row ``source``, for several continuations of one prompt."""
        length = self.lengths[source]
        for layer in self.layers:
            layer[target, :, :, :length] = layer[source, :, :, :length]
        self.lengths[target] = length

    def keep_rows(self, rows: list[int]) -> None:
        """Keep only these rows, in this order."""
        for index, layer in enumerate(self.layers):
            self.layers[index] = layer[torch.tensor(rows, device=layer.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        """Open a forward of ``num_tokens`` more tokens per row: return positions [B, T] and who sees whom."""
        if self.length + num_tokens > self.max_len:
            raise InputError(f"{self.length} + {num_tokens} tokens do not fit the cache of {self.max_len}")
        device = self.layers[0].device
        steps = torch.arange(num_tokens, device=device)
        positions_BT = torch.tensor(self.lengths, device=device)[:, None] + steps
        self._new_tokens = num_tokens
        self._positions_BT, self._places = positions_BT, None
        ragged = any(length != self.lengths[0] for length in self.lengths)
        self._slots = None
        if ragged:
            self._slots = (torch.arange(self.rows, device=device)[:, None], positions_BT)
        if not ragged and self.length == 0:
            return positions_BT, Visibility(causal=True)
        if not ragged and num_tokens == 1:
            return positions_BT, Visibility(causal=False)
        keys_S = torch.arange(self.length + num_tokens, device=device)
        return positions_BT, Visibility(causal=False, mask_B1TS=(keys_S <= positions_BT[:, :, None])[:, None])

    def places(self) -> Places:
        """Return where the tokens of the open forward lie, row by row."""
        if self._places is None:
            rows_B = torch.arange(self.rows, device=self._positions_BT.device)
            self._places = rows_B.repeat_interleave(self._new_tokens), self._positions_BT.flatten()
        return Places(self.layers, *self._places)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility) -> Tensor:
        """Store the new keys and values of one layer; attend to all so far (to the new ones alone, while empty)."""
        everything = self.extend(layer, keys, values)
        if self.is_empty:
            return attend(queries, keys, values, visibility)
        return attend_cached(queries, *everything, visibility)

    def extend(self, layer: int, keys_BTGK: Tensor, values_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; return all so far, [B, G, S, K] each."""
        cache = self.layers[layer]
        start, stop = self.length, self.length + self._new_tokens
        if self._slots is None:
            cache[:, 0, :, start:stop] = keys_BTGK.transpose(1, 2)
            cache[:, 1, :, start:stop] = values_BTGK.transpose(1, 2)
        else:
            rows_B1, positions_BT = self._slots
            cache[rows_B1, 0, :, positions_BT] = keys_BTGK.to(cache.dtype)
            cache[rows_B1, 1, :, positions_BT] = values_BTGK.to(cache.dtype)
        return cache[:, 0, :, :stop], cache[:, 1, :, :stop]

    def finish(self) -> None:
        """Close the forward: every row is longer by the tokens given."""
        self.lengths = [length + self._new_tokens for length in self.lengths]
        self._new_tokens = 0
