"""Keys and values of tokens that are not written in the order of their positions.

Every token is fed at a position that the caller names and kept there; a mask says which positions have been written. A
token sees what is written, at its own position or before: what lies ahead of it is hidden even if it was written first,
and a gap is nothing at all. A position may be fed again: the new key replaces the old one.

Shapes: B rows, T new tokens, L = max_len, S positions up to the last one fed, H heads, G key-value heads,
K channels of one head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.attend import attend_cached
from rhea.models.config import TransformerConfig
from rhea.models.visibility import Visibility


class ScatteredCache:
    """``written_BL`` tells which positions of each row hold a token."""

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve ``rows`` times ``max_len`` positions."""
        shape = (rows, 2, config.num_kv_heads, max_len, config.head_dim)
        # Zeros, for the keys of gaps are masked, and a masked NaN is still one.
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.written_BL = torch.zeros(rows, max_len, dtype=torch.bool, device=device)
        self._rows_B1 = torch.arange(rows, device=device)[:, None]
        self._positions_BT = torch.empty(rows, 0, dtype=torch.int64, device=device)
        self._end = 0

    def feed(self, positions: Sequence[Sequence[int]]) -> None:
        """Announce the next forward: the position of every token, as many for each row.

        A position that a row names twice must get the same token twice.
        """
        last, max_len = max(map(max, positions)), self.written_BL.shape[1]
        if last >= max_len:
            raise InputError(f"position {last} does not fit a cache of {max_len}")
        self._end = last + 1
        self._positions_BT = torch.tensor(positions, dtype=torch.int64, device=self.written_BL.device)

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        """Open the forward that ``feed`` announced: return the positions [B, T] and who sees whom."""
        assert num_tokens == self._positions_BT.shape[1], "another batch than was announced"
        self.written_BL[self._rows_B1, self._positions_BT] = True
        keys_S = torch.arange(self._end, device=self.written_BL.device)
        mask_BTS = self.written_BL[:, None, : self._end] & (keys_S <= self._positions_BT[:, :, None])
        return self._positions_BT, Visibility(causal=False, mask_B1TS=mask_BTS[:, None])

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility) -> Tensor:
        """Keep the new keys and values at their positions; attend to all that each query may see."""
        cache = self.layers[layer]
        cache[self._rows_B1, 0, :, self._positions_BT] = keys.to(cache.dtype)
        cache[self._rows_B1, 1, :, self._positions_BT] = values.to(cache.dtype)
        known_BGSK, content_BGSK = cache[:, :, :, : self._end].unbind(1)
        return attend_cached(queries, known_BGSK, content_BGSK, visibility)

    def finish(self) -> None:
        """Close the forward; the positions count as written since it began."""
        self._positions_BT = self._positions_BT[:, :0]
