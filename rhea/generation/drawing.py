"""Draws for every place of every window after one forward: requests of equal choices and settings together.

Shapes: N tokens of the flat batch, M draws, D channels, V legal tokens.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
from torch import Tensor

from rhea.generation.coupling import Guess, couple
from rhea.generation.sampling import SamplingConfig, draw, final_probabilities, guided_logits, noise_key
from rhea.generation.sequence import Sequence, Window
from rhea.models.transformer import Transformer

_AT_ONCE = 64
"""Places drawn together: their logits over all codes are the largest thing that a step allocates."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A window to be drawn."""

    sequence: Sequence
    window: Window
    rows: list[int]
    """For each branch, which row of the states belongs to the last token before the window."""


def draw_windows(
    model: Transformer, drawings: Several[Drawing], states_ND: Tensor, *, coupled: bool
) -> tuple[list[list[Guess]], list[bool]]:
    """Draw all places; return them for each drawing, and whether each row of ``states_ND`` is finite.

    ``coupled`` keeps guesses by maximal coupling; otherwise noise depends on the position alone. The results come to
    the host at once: this is where the step waits for the device.
    """
    groups: dict[tuple[tuple[range, ...], SamplingConfig, bool], list[tuple[int, int]]] = {}
    for number, drawing in enumerate(drawings):
        request = drawing.sequence.request
        for place, where in enumerate(drawing.window.places):
            groups.setdefault((where.legal.ranges, request.sampling, request.guided), []).append((number, place))
    tokens, laws, order = [torch.isfinite(states_ND).all(dim=-1).long()], list[Tensor | None](), list[tuple[int, int]]()
    batches = ((key, due[at : at + _AT_ONCE]) for key, due in groups.items() for at in range(0, len(due), _AT_ONCE))
    for (ranges, sampling, guided), members in batches:
        ids_V = torch.cat([torch.arange(r.start, r.stop, device=states_ND.device) for r in ranges])
        logits_MV = _logits(model, [(drawings[n], place) for n, place in members], states_ND, ranges, guided)
        by_chance = coupled and sampling.temperature > 0
        keys_M = torch.tensor([_key(drawings[n], place, by_chance) for n, place in members], device=states_ND.device)
        if by_chance:
            chances_MV = final_probabilities(logits_MV, sampling)
            guesses = [drawings[n].window.places[place].guess for n, place in members]
            tokens.append(couple(chances_MV, ids_V, guesses, keys_M))
            laws += chances_MV.unbind()
        else:
            tokens.append(draw(logits_MV, ids_V, keys_M, sampling))
            laws += [None] * len(members)
        order += members
    numbers = torch.cat(tokens).tolist()
    finite, chosen = numbers[: len(states_ND)], numbers[len(states_ND) :]
    drawn = {place: Guess(token, law) for place, token, law in zip(order, chosen, laws, strict=True)}
    return [[drawn[n, place] for place in range(len(d.window.places))] for n, d in enumerate(drawings)], [
        bool(flag) for flag in finite
    ]


def _logits(
    model: Transformer,
    members: Several[tuple[Drawing, int]],
    states_ND: Tensor,
    ranges: tuple[range, ...],
    guided: bool,
) -> Tensor:
    """Return the guided logits of the legal tokens, [M, V], float32."""
    rows: list[list[int]] = [[], []]
    for drawing, place in members:
        for branch, row in enumerate(drawing.rows):
            rows[branch].append(row + drawing.window.places[place].ahead)
    chosen_MD = states_ND[torch.tensor(rows[0] + rows[1], device=states_ND.device)]
    logits_MV = torch.cat([model.logits(chosen_MD, r.start, r.stop) for r in ranges], dim=-1)
    if not guided:
        return logits_MV
    conditional, unconditional = logits_MV.chunk(2)
    return guided_logits(conditional, unconditional, members[0][0].sequence.request.sampling.guidance_scale)


def _key(drawing: Drawing, place: int, coupled: bool) -> int:
    """Return the noise of a place; coupled draws take new noise in every step."""
    key = drawing.sequence.noise_key(drawing.window.places[place].index)
    return noise_key(key, drawing.sequence.steps, 0) if coupled else key
