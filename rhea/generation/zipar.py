"""ZipAR (arXiv 2412.04062): several rows of a grid at a time. Lossy: it draws from another law than the model's.

Row r + 1 starts as soon as row r is ``window`` codes ahead, and then both go on side by side: one forward draws a code
for each of several rows, and a frame of height h and width w takes w + (h - 1) min(window, w) forwards instead of h w.
What a code does not see is the rest of the row above, to the right of where that row has got to; it sees all else that
comes before it, at the positions of plain raster order. Frames follow one another. A window of the grid's width or more
is the plain loop, token for token.

The decision that is not obvious: a row starts behind the end-of-line of the row above, which is fed early, at its own
position, and is fed once more when its row is complete, so that all later codes see an end-of-line that knows its row.
Everything that is fed and drawn follows from the grid alone, so requests of equal grids go in step, without padding and
without asking the device for anything until the end.

Shapes: B cache rows (conditional, then unconditional), T tokens fed, M draws per row, N new tokens, V legal tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rhea.documents.constraint import Constraint
from rhea.errors import InputError
from rhea.generation.request import Progress, Request, check_fits
from rhea.generation.sampling import draw, guided_logits, noise_key
from rhea.generation.statistics import Statistics
from rhea.models.scattered_cache import ScatteredCache
from rhea.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is still to come of one row of a grid."""

    frame: int
    width: int
    codes: range
    """Which of the new tokens are its codes; fewer than the width if the prompt holds some."""
    choices: tuple[range, ...]
    """The ids that its codes may have."""
    forced: tuple[int, ...]
    """What the grammar writes behind it: EOL, and whatever else the grid ends with there."""


@dataclass(frozen=True)
class Wave:
    """One forward."""

    fed: list[int]
    """The new tokens given to the model, ascending; -1 is the last token of the prompt and stands for all of it."""
    drawn: list[int]
    """The new tokens that are drawn, each from the state of the token before it, which is among those fed."""


def grid_rows(constraint: Constraint) -> tuple[Row, ...]:
    """Return the rest of the grid that a "visual" constraint is in, up to EOS, row by row."""
    assert constraint.size is not None, "outside of a grid"
    ahead, rows, index, width = constraint.copy(), list[Row](), 0, constraint.size[-1]
    while ahead.position is not None:
        frame, first, choices = ahead.position[0], index, ahead.legal().ranges
        while (legal := ahead.legal()).forced is None:
            ahead.advance(legal.ranges[0].start)
            index += 1
        codes, forced = range(first, index), ahead.forced_run()
        rows.append(Row(frame=frame, width=width, codes=codes, choices=choices, forced=forced))
        index += len(forced)
        for token_id in forced:
            ahead.advance(token_id)
    return tuple(rows)


def waves(rows: Sequence[Row], window: int) -> Iterator[Wave]:
    """Yield the forwards that draw all rows, each as soon as the one above is ``window`` codes ahead."""
    left, first, fed = [len(row.codes) for row in rows], 0, {-1}
    while True:
        while first < len(rows) and not left[first]:  # ended: its last code is fed, and what is forced behind it
            stop = rows[first].codes.stop
            fed.update(range(stop - 1, stop + len(rows[first].forced)))
            first += 1
        if first == len(rows):
            return
        end = first + 1
        while end < len(rows) and rows[end].frame == rows[first].frame:
            if left[end - 1] > max(rows[end].width - window, 0):
                break
            end += 1
        drawn = [row.codes[-n] for row, n in zip(rows[first:end], left[first:end], strict=True)]
        yield Wave(sorted(fed.union(index - 1 for index in drawn)), drawn)
        left[first:end] = [n - 1 for n in left[first:end]]
        fed = set()


@torch.inference_mode()
def zip_rows(
    model: Transformer,
    requests: Sequence[Request],
    window: int,
    *,
    max_requests: int = 64,
    statistics: Statistics | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[list[int]]:
    """Return the new token ids of each request, which must be for one picture or film, drawn several rows at a time.

    Requests of equal grids and sampling run together, at most ``max_requests`` of them. The draws depend on each
    request's seed and sample index only. ``statistics`` are counted on. A window below 1, a request for text or for
    a document of several parts, and one that does not fit the context or is cut off by ``max_new_tokens``: InputError.
    """
    if window < 1:
        raise InputError(f"a ZipAR window of {window} codes must be at least 1 (the smaller, the faster and the worse)")
    groups: dict[tuple[object, ...], list[int]] = {}
    layouts = [_layout(request, model.config.max_seq_len) for request in requests]
    for number, request in enumerate(requests):
        groups.setdefault((layouts[number], request.sampling, request.guided), []).append(number)
    batches = [
        members[first : first + max_requests]
        for members in groups.values()
        for first in range(0, len(members), max_requests)
    ]
    statistics, start = statistics or Statistics(), time.perf_counter()
    before, most = statistics.tokens_written, sum(request.max_new_tokens for request in requests)
    results: dict[int, list[int]] = {}
    for members in batches:
        rows = layouts[members[0]]
        batch = _Batch(model, [requests[number] for number in members], rows, statistics)
        for wave in waves(rows, window):
            begun = time.perf_counter()
            batch.step(wave)
            statistics.decode_seconds += time.perf_counter() - begun
            statistics.grid_forwards += len(members)
            if progress is not None:
                tokens = statistics.tokens_written - before
                rate = tokens / max(time.perf_counter() - start, 1e-9)
                progress(Progress(tokens=tokens, max_tokens=most, tokens_per_second=rate))
        results |= zip(members, batch.new_tokens(), strict=True)
        statistics.grids += len(members)
    return [results[number] for number in range(len(requests))]


def _layout(request: Request, context: int) -> tuple[Row, ...]:
    """Return the rows that a request asks for, or raise InputError if it is for anything but the rest of one grid."""
    if request.constraint.mode != "visual" or request.constraint.size is None:
        asked = {"text": "text, which has no rows", "free": "a document of text and pictures in any order"}
        what = asked.get(request.constraint.mode, "the end of a grid that is complete")
        raise InputError(f"ZipAR draws the rows of one picture or film, this request is for {what}: turn ZipAR off")
    rows = grid_rows(request.constraint)
    if request.max_new_tokens < _count(rows):
        raise InputError(
            f"ZipAR draws whole grids: this one takes {_count(rows)} new tokens, "
            f"max_new_tokens is {request.max_new_tokens}"
        )
    check_fits(request, context)
    return rows


def _count(rows: Sequence[Row]) -> int:
    """Return how many new tokens these rows are, with all that is forced."""
    return rows[-1].codes.stop + len(rows[-1].forced)


class _Batch:
    """Requests for equal grids: cache row i is request i; the second rows of guided ones follow in order.

    ``_tokens_BN`` begins with the last token of each prompt, so new token i is its column i + 1.
    """

    def __init__(
        self, model: Transformer, requests: Sequence[Request], rows: Sequence[Row], statistics: Statistics
    ) -> None:
        self.model, self.requests, self.statistics = model, requests, statistics
        self.guided, self.sampling = requests[0].guided, requests[0].sampling
        self.choices = next((row.choices for row in rows if row.codes), ())
        self.prompts = [list(request.prompt) for request in requests]
        if self.guided:
            self.prompts += [list(request.negative_prompt or ()) for request in requests]
        weight = model.norm.weight if model.norm is not None else next(model.parameters())
        self.device = weight.device
        tokens = torch.zeros(len(self.prompts), 1 + _count(rows), dtype=torch.int64)
        tokens[:, 0] = torch.tensor([prompt[-1] for prompt in self.prompts])
        for row in rows:
            tokens[:, 1 + row.codes.stop : 1 + row.codes.stop + len(row.forced)] = torch.tensor(row.forced)
        self._tokens_BN = tokens.to(self.device)
        room = max(map(len, self.prompts)) + _count(rows)
        self.cache = ScatteredCache(model.config, len(self.prompts), room, weight.dtype, weight.device)
        # What is forced is known from the start.
        self.statistics.tokens_written += len(requests) * (_count(rows) - sum(len(row.codes) for row in rows))

    def new_tokens(self) -> list[list[int]]:
        """Return what has been written for each request."""
        return self._tokens_BN[: len(self.requests), 1:].tolist()

    def step(self, wave: Wave) -> None:
        """Run the model once and draw a code in each row that goes on."""
        states_BTD = self._forward(wave)
        places = [wave.fed.index(index - 1) for index in wave.drawn]
        chosen_BD = states_BTD[:, places].flatten(0, 1)
        logits_BV = torch.cat([self.model.logits(chosen_BD, r.start, r.stop) for r in self.choices], dim=-1)
        if self.guided:
            conditional, unconditional = logits_BV.chunk(2)
            logits_BV = guided_logits(conditional, unconditional, self.sampling.guidance_scale)
        token_ids_V = torch.cat([torch.arange(r.start, r.stop, device=self.device) for r in self.choices])
        keys = [
            noise_key(request.seed, request.sample_index, len(request.prompt) + index)
            for request in self.requests
            for index in wave.drawn
        ]
        drawn_BM = draw(logits_BV, token_ids_V, torch.tensor(keys, device=self.device), self.sampling)
        drawn_BM = drawn_BM.view(-1, len(wave.drawn)).repeat(2 if self.guided else 1, 1)
        self._tokens_BN[:, [index + 1 for index in wave.drawn]] = drawn_BM
        self.statistics.tokens_written += len(self.requests) * len(wave.drawn)

    def _forward(self, wave: Wave) -> torch.Tensor:
        """Feed a wave; return the states of the tokens fed, [B, T, D]."""
        inputs_BT = self._tokens_BN[:, [index + 1 for index in wave.fed]]
        positions = [[len(prompt) + index for index in wave.fed] for prompt in self.prompts]
        first = wave.fed[0] < 0
        self.statistics.forwards += 1
        self.statistics.tokens_fed += inputs_BT.numel()
        if first:
            # Shorter prompts are filled up with their last token, fed again and again at its own position.
            longest = max(map(len, self.prompts))
            padded = [prompt + prompt[-1:] * (longest - len(prompt)) for prompt in self.prompts]
            inputs_BT = torch.cat([torch.tensor(padded, device=self.device)[:, :-1], inputs_BT], dim=1)
            places = [[min(index, len(prompt) - 1) for index in range(longest - 1)] for prompt in self.prompts]
            positions = [before + new for before, new in zip(places, positions, strict=True)]
            self.statistics.tokens_fed += sum(len(prompt) - 1 for prompt in self.prompts)
        self.cache.feed(positions)
        states_BTD = self.model.hidden(inputs_BT, cache=self.cache)[:, -len(wave.fed) :]
        if first and not torch.isfinite(states_BTD).all():
            raise InputError("the model computes values that are not finite: its weights are damaged, or overflow")
        return states_BTD
