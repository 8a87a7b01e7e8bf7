"""A cache that stores nothing: one forward over all tokens, at positions and under a mask that a test writes down."""

import torch
from torch import Tensor

from rhea.models.attend import attend
from rhea.models.visibility import Visibility


class OneForward:
    def __init__(self, positions: list[int], mask_TT: Tensor) -> None:
        """Let the token of each line of the mask see those whose columns are True."""
        self.positions_1T, self.mask_TT = torch.tensor([positions]), mask_TT

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        return self.positions_1T, Visibility(causal=False, mask_B1TS=self.mask_TT[None, None])

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility) -> Tensor:
        return attend(queries, keys, values, visibility)

    def finish(self) -> None:
        pass
