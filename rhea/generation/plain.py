"""The plain loop: continue a batch of prompts token by token, each under its own constraint, until all are done.

It is the reference that faster engines are held to, and it wastes no forward: both branches of guidance are rows of
one batch, the head computes only the rows that are legal next, tokens that the grammar forces (ends of lines and
frames) ride along in the next forward instead of costing one, and finished rows leave the batch. Prompts of different
lengths are padded on the right behind their row's length, where nobody attends (see ``KVCache``).

Shapes: B cache rows (conditional, then unconditional), D channels, V legal tokens.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.generation.request import Progress, Request, check_fits
from rhea.generation.sampling import SamplingConfig, draw, guided_logits
from rhea.generation.sequence import Written
from rhea.models.kv_cache import KVCache
from rhea.models.transformer import Transformer

_SLACK = 16
"""Cache slots behind the longest row for right padding: more than the grammar ever forces in a row."""


class _Waiting(Written):
    """A request on its way, and how many of its tokens the model has seen."""

    seen = 0

    @property
    def pending(self) -> list[int]:
        """The tokens that the model has not seen yet."""
        return self.tokens[self.seen :]

    def take_pending(self, fold: bool) -> list[int]:
        """Hand over the tokens of the next forward: all that are pending, or one."""
        taken = self.pending if fold else self.pending[:1]
        self.seen += len(taken)
        return taken


@torch.inference_mode()
def continue_prompts(
    model: Transformer,
    requests: Sequence[Request],
    *,
    max_requests: int = 64,
    fold: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> list[list[int]]:
    """Return the new token ids of each request, up to the constraint's end or ``max_new_tokens``.

    At most ``max_requests`` run at once. ``fold=False`` feeds forced tokens one by one (same result, more forwards).
    The draws depend on each request's seed and sample index only. A request that does not fit the context: InputError.
    """
    for request in requests:
        check_fits(request, model.config.max_seq_len)
    most, done, start = sum(request.max_new_tokens for request in requests), 0, time.perf_counter()

    def report(tokens: int) -> None:
        if progress is not None:
            rate = (done + tokens) / max(time.perf_counter() - start, 1e-9)
            progress(Progress(tokens=done + tokens, max_tokens=most, tokens_per_second=rate))

    results: list[list[int]] = []
    for first in range(0, len(requests), max_requests):
        sequences = [_Waiting(request) for request in requests[first : first + max_requests]]
        unfinished = [sequence for sequence in sequences if not sequence.finished]
        if unfinished:
            batch = _Batch(model, unfinished, fold)
            while batch.sequences:
                batch.step()
                report(sum(len(sequence.tokens) for sequence in sequences))
        done += sum(len(sequence.tokens) for sequence in sequences)
        results += [sequence.tokens for sequence in sequences]
    return results


class _Batch:
    """The unfinished sequences and their cache: row i is sequence i, the guided ones' second rows follow in order."""

    def __init__(self, model: Transformer, sequences: list[_Waiting], fold: bool) -> None:
        self.model, self.sequences, self.fold = model, sequences, fold
        guided = [sequence for sequence in sequences if sequence.request.guided]
        prompts = [list(sequence.request.prompt) for sequence in sequences]
        prompts += [list(sequence.request.negative_prompt or ()) for sequence in guided]
        self.inputs = [p + new for p, new in zip(prompts, self._next_inputs(), strict=True)]
        room = max(len(p) for p in prompts) + max(sequence.request.max_new_tokens for sequence in sequences)
        weight = model.norm.weight if model.norm is not None else next(model.parameters())
        self.device = weight.device
        self.cache = KVCache(model.config, len(prompts), room + _SLACK, weight.dtype, weight.device)
        self.seen_prompt = False

    def step(self) -> None:
        """Run the model once over what is pending, then give every sequence that has seen all its tokens one more."""
        states_BD = self._forward()
        self._draw(states_BD)
        if any(sequence.finished for sequence in self.sequences):
            self._leave()
        if self.sequences:
            self.inputs = self._next_inputs()

    def _next_inputs(self) -> list[list[int]]:
        taken = [sequence.take_pending(self.fold) for sequence in self.sequences]
        return taken + [new for new, sequence in zip(taken, self.sequences, strict=True) if sequence.request.guided]

    def _forward(self) -> Tensor:
        """Feed each cache row its tokens; return the state after each row's last token, [B, D]."""
        counts = [len(tokens) for tokens in self.inputs]
        longest = max(counts)
        padded = [tokens + [0] * (longest - len(tokens)) for tokens in self.inputs]
        lengths = [length + count for length, count in zip(self.cache.lengths, counts, strict=True)]
        x_BTD = self.model.hidden(torch.tensor(padded, device=self.device), cache=self.cache)
        if min(counts) == longest:
            states_BD = x_BTD[:, -1]
        else:
            self.cache.set_lengths(lengths)
            last_B = torch.tensor(counts, device=self.device) - 1
            states_BD = x_BTD[torch.arange(len(counts), device=self.device), last_B]
        if not self.seen_prompt and not torch.isfinite(states_BD).all():
            raise InputError("the model computes values that are not finite: its weights are damaged, or overflow")
        self.seen_prompt = True
        return states_BD

    def _draw(self, states_BD: Tensor) -> None:
        """Draw for all sequences that wait for a token, those with equal choices and settings together."""
        groups: dict[tuple[tuple[range, ...], SamplingConfig, bool], list[int]] = {}
        for index, sequence in enumerate(self.sequences):
            if not sequence.pending:
                request = sequence.request
                key = (sequence.legal.ranges, request.sampling, request.guided)
                groups.setdefault(key, []).append(index)
        second_rows = self._second_rows()
        for (ranges, sampling, guided), members in groups.items():
            rows = members + [second_rows[index] for index in members] if guided else members
            chosen_BD = states_BD if rows == list(range(len(states_BD))) else states_BD[rows]
            logits_BV = torch.cat([self.model.logits(chosen_BD, r.start, r.stop) for r in ranges], dim=-1)
            if guided:
                conditional, unconditional = logits_BV.chunk(2)
                logits_BV = guided_logits(conditional, unconditional, sampling.guidance_scale)
            token_ids_V = torch.cat([torch.arange(r.start, r.stop, device=self.device) for r in ranges])
            keys_B = torch.tensor(
                [self.sequences[index].noise_key(len(self.sequences[index].tokens)) for index in members],
                device=self.device,
            )
            for index, token_id in zip(members, draw(logits_BV, token_ids_V, keys_B, sampling).tolist(), strict=True):
                self.sequences[index].append(token_id)

    def _second_rows(self) -> dict[int, int]:
        """Map each guided sequence to the cache row of its unconditional branch."""
        guided = [index for index, sequence in enumerate(self.sequences) if sequence.request.guided]
        return {index: len(self.sequences) + place for place, index in enumerate(guided)}

    def _leave(self) -> None:
        """Drop the finished sequences and their cache rows."""
        second_rows = self._second_rows()
        staying = [index for index, sequence in enumerate(self.sequences) if not sequence.finished]
        if staying:
            self.cache.keep_rows(staying + [second_rows[index] for index in staying if index in second_rows])
        self.sequences = [self.sequences[index] for index in staying]
