"""What a transformer asks of a cache of keys and values, however it keeps them.

Shapes: B rows, T new tokens, H heads, G key-value heads, K channels of one head.
"""

from typing import Protocol

from torch import Tensor

from rhea.models.visibility import Visibility


class Cache(Protocol):
    """Keys and values of the tokens already seen, layer by layer."""

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        """Open a forward of ``num_tokens`` tokens per row: return their positions [B, T] and who sees whom."""
        ...

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility) -> Tensor:
        """Keep the new keys and values [B, T, G, K]; return what the queries [B, T, H, K] attend to, of that shape."""
        ...

    def finish(self) -> None:
        """Close the forward: the new tokens count as seen."""
        ...
