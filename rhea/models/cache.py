"""What a transformer asks of a cache of keys and values, however it keeps them.

Shapes: B rows, T new tokens, H heads, G key-value heads, K channels of one head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

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


class Places(NamedTuple):
    """Where the tokens of a forward lie."""

    blocks: Sequence[Tensor]
    """Keys and values of all slots for each layer, [slots, 2, G, L, K], in the model's dtype."""
    slots_N: Tensor
    positions_N: Tensor


class PlacedCache(ABC):
    """A cache in which each token sees what its slot holds up to its own position, and nothing else."""

    @abstractmethod
    def places(self) -> Places | None:
        """Return where the tokens of the open forward lie; None if keys are not kept as they are computed."""
