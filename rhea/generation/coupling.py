"""Maximal coupling: draws that keep a guess as often as any rule can, without changing the law of what is drawn.

A guess x that was itself drawn from a law q is kept with probability min(1, p(x) / q(x)) when p turns out to be right;
otherwise the draw comes from what p has more than q. (Drawing again from p itself is the easy mistake: it favours what
was guessed.) Rejection rule of speculative sampling (arXiv:2211.17192) in the windows of Jacobi decoding
(arXiv:2410.01699), applied at every place as in arXiv:2510.24211.

Shapes: M draws, V legal tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rhea.generation.sampling import gumbel_noise, uniform_noise


@dataclass(frozen=True, eq=False)
class Guess:
    """A token on trial."""

    token: int
    law: Tensor | None = None
    """The probabilities [V] of the legal tokens that it was drawn from; None if it was chosen without chance."""


def couple(probabilities_MV: Tensor, token_ids_V: Tensor, guesses: Sequence[Guess | None], keys_M: Tensor) -> Tensor:
    """Draw one token id for each row of ``probabilities_MV``, int64 [M], equal to its guess as often as can be.

    token_ids_V: ascending. keys_M: a ``noise_key`` per row, never used for another draw of the same position.
    """
    law_MV = torch.zeros_like(probabilities_MV)  # without a guess: everything is what p has more
    tokens = [guess.token if guess else int(token_ids_V[0]) for guess in guesses]
    tokens_M = torch.tensor(tokens, device=token_ids_V.device)
    columns_M1 = torch.searchsorted(token_ids_V, tokens_M)[:, None]
    for row, guess in enumerate(guesses):
        if guess is not None and guess.law is not None:
            law_MV[row] = guess.law
        elif guess is not None:
            law_MV[row, columns_M1[row]] = 1.0
    chance_M1, guessed_M1 = probabilities_MV.gather(1, columns_M1), law_MV.gather(1, columns_M1)
    kept_M1 = uniform_noise(keys_M, torch.full_like(columns_M1, -1)) * guessed_M1 < chance_M1
    kept_M1 &= guessed_M1 > 0
    rest_MV = excess(probabilities_MV, law_MV)
    other_M1 = (rest_MV.log() + gumbel_noise(keys_M, token_ids_V)).argmax(dim=-1, keepdim=True)
    return token_ids_V[torch.where(kept_M1, columns_M1, other_M1)[:, 0]]


def excess(probabilities_MV: Tensor, law_MV: Tensor) -> Tensor:
    """Return what the first has more than the second, [M, V]: the draws that replace a rejected guess, unnormalised."""
    return (probabilities_MV - law_MV).clamp_(min=0)
