"""The engine: requests join and leave a running batch at any step, and pictures are drawn several tokens at a time.

A step is one forward over a flat batch: pieces of prompts, single tokens of texts and windows of guesses in grids, for
whoever is due. Both branches of guidance are two slots of the cache that are fed the same new tokens. A prompt whose
beginning some slot holds, or has left behind, is not computed again. The plain loop in ``plain.py`` is the reference:
the engine gives each request, in float32, the tokens that the plain loop gives it alone.

Shapes: N tokens of the flat batch, M draws, D channels, V legal tokens.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rhea.errors import BusyError, InputError
from rhea.generation.request import Progress, Request, check_fits
from rhea.generation.sampling import SamplingConfig, draw, guided_logits
from rhea.generation.sequence import Sequence, Window
from rhea.generation.tuning import WindowTuner
from rhea.models.slot_cache import SlotCache
from rhea.models.transformer import Transformer

_WORTH_COPYING = 8
"""Tokens of a shared beginning below which computing them is as quick as looking for them."""
_ALWAYS_FED = 64
"""Tokens that a request may always be fed in a step, whatever prompts are computed beside it: more than the grammar
ever forces in a row."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Bounds of one engine."""

    slots: int = 16
    """Cache rows; a guided request takes two."""
    max_len: int | None = None
    """Tokens per slot; None for the model's whole context."""
    prefill_chunk: int = 256
    """Prompt tokens computed beside the running requests in one step."""
    window: int | None = None
    """Tokens of a grid drawn at a time, 1 for one after the other; None finds the fastest. The result is the same."""
    max_waiting: int = 256
    """Requests that may wait; one more is refused."""


@dataclass(kw_only=True)
class Statistics:
    """What the engine has done so far."""

    forwards: int = 0
    tokens_fed: int = 0
    tokens_written: int = 0
    """New tokens of all requests, forced ones included."""
    tokens_guessed: int = 0
    """Tokens fed on trial, with the forced ones between them."""
    guesses_right: int = 0
    prefix_tokens_reused: int = 0

    def summary(self) -> str:
        """Return one line for people."""
        held = f", {self.guesses_right} of {self.tokens_guessed} guesses held" if self.tokens_guessed else ""
        return (
            f"{self.tokens_written} tokens in {self.forwards} forwards "
            f"({self.tokens_written / max(self.forwards, 1):.1f} per forward){held}, "
            f"{self.prefix_tokens_reused} prompt tokens shared"
        )


@dataclass(eq=False)
class Ticket:
    """A request that the engine has taken. ``tokens`` grows while it runs."""

    sequence: Sequence
    slots: list[int] = field(default_factory=list)
    """The cache rows it owns, while it runs."""
    error: Exception | None = None
    cancelled: bool = False

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return self.sequence.tokens

    @property
    def done(self) -> bool:
        """Whether nothing more will come: finished, failed or cancelled."""
        return self.sequence.finished or self.error is not None or self.cancelled


class Engine:
    """Continues requests with one model. Not for several threads at a time."""

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig | None = None,
        tuner: WindowTuner | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        """``tuner`` and ``statistics`` go on from those of an earlier engine of this model."""
        self.tuner, self.statistics = tuner or WindowTuner(), statistics or Statistics()
        self.model, self.config = model, config or EngineConfig()
        weight = model.norm.weight if model.norm is not None else next(model.parameters())
        self.device = weight.device
        self.max_len = min(self.config.max_len or model.config.max_seq_len, model.config.max_seq_len)
        self.cache = SlotCache(model.config, self.config.slots, self.max_len, weight.dtype, weight.device)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._free = list(range(self.config.slots))
        self._held: list[list[int]] = [[] for _ in self._free]
        """The tokens that each slot's cache holds, also after its request has left."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def submit(self, request: Request) -> Ticket:
        """Take a request; InputError if it can never run here, BusyError if too many wait already."""
        check_fits(request, self.max_len)
        ticket = Ticket(Sequence(request))
        if len(ticket.sequence.prompts) > self.config.slots:
            raise InputError(f"a guided request takes two slots, this engine has {self.config.slots}")
        if len(self._waiting) >= self.config.max_waiting:
            raise BusyError(f"{len(self._waiting)} requests are waiting already: try again later")
        if not ticket.done:
            self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request now; its slots are free for the next step."""
        if not ticket.done:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._release()

    def abort(self, error: Exception) -> None:
        """Let all requests fail with this error and start afresh, trusting nothing that the cache holds."""
        for ticket in [*self._running, *self._waiting]:
            ticket.error = error
        self._waiting.clear()
        self._release()
        for slot in range(self.config.slots):
            self.cache.wipe(slot)
            self._held[slot] = []

    def run(
        self,
        requests: Iterable[Request],
        progress: Callable[[Progress], None] | None = None,
        watch: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        """Submit all, step until they are done, and return the new tokens of each; raise the first error there was.

        ``watch`` is called after a step for every request whose tokens grew, with its number in the given order and its
        new tokens so far.
        """
        start, tickets, requests = time.perf_counter(), list[Ticket](), deque(requests)
        seen: list[int] = []
        most = sum(request.max_new_tokens for request in requests)
        while requests or not self.idle:
            while requests and len(self._waiting) < self.config.max_waiting:
                tickets.append(self.submit(requests.popleft()))
            self.step()
            tokens = sum(len(ticket.tokens) for ticket in tickets)
            if watch is not None:
                seen += [0] * (len(tickets) - len(seen))
                for number, ticket in enumerate(tickets):
                    if len(ticket.tokens) > seen[number]:
                        seen[number] = len(ticket.tokens)
                        watch(number, ticket.tokens)
            if progress is not None:
                rate = tokens / max(time.perf_counter() - start, 1e-9)
                progress(Progress(tokens=tokens, max_tokens=most, tokens_per_second=rate))
        for ticket in tickets:
            if ticket.error is not None:
                raise ticket.error
        return [ticket.tokens for ticket in tickets]

    @torch.inference_mode()
    def step(self) -> None:
        """Admit who fits, run the model once over all that is due, and give every request that is ready its tokens."""
        self._admit()
        if not self._running:
            return
        start, before = time.perf_counter(), self.statistics.tokens_written
        feeds, windows = self._plan()
        states_ND, starts = self._forward(feeds)
        if not torch.isfinite(states_ND).all():
            self._fail_damaged(windows, states_ND, feeds, starts)
        ready = [ticket for ticket in windows if ticket.error is None]
        self._commit(ready, windows, self._draw(ready, windows, feeds, states_ND, starts))
        self._release()
        written = self.statistics.tokens_written - before
        if sum(map(len, feeds.values())) <= _ALWAYS_FED * len(windows):  # a prompt would spoil the measurement
            self.tuner.record(written, time.perf_counter() - start)

    # Admission

    def _admit(self) -> None:
        while self._waiting and len(self._waiting[0].sequence.prompts) <= len(self._free):
            ticket = self._waiting.popleft()
            for prompt in ticket.sequence.prompts:
                # A free slot that holds the beginning of the prompt is the best one, the emptiest the next best.
                slot = max(self._free, key=lambda s: (_common(prompt, self._held[s]), -len(self._held[s]), -s))
                self._free.remove(slot)
                ticket.slots.append(slot)
                self._keep(slot, min(_common(prompt, self._held[slot]), len(prompt) - 1))
                self.statistics.prefix_tokens_reused += len(self._held[slot])
            self._running.append(ticket)

    def _keep(self, slot: int, length: int) -> None:
        self.cache.truncate(slot, length)
        del self._held[slot][length:]

    def _release(self) -> None:
        for ticket in [ticket for ticket in self._running if ticket.done]:
            self._running.remove(ticket)
            self._free += ticket.slots
            ticket.slots = []

    # One forward

    def _plan(self) -> tuple[dict[int, list[int]], dict[Ticket, Window]]:
        """Return the tokens to feed each slot, and the windows of the requests whose next tokens can be drawn then."""
        budget, feeds, windows = self.config.prefill_chunk, dict[int, list[int]](), dict[Ticket, Window]()
        size = self.config.window or self.tuner.size
        coming: list[list[int]] = []  # what slots that read a prompt will hold after this step
        for ticket in self._running:
            if max(len(tokens) for tokens in self._due(ticket)) > _WORTH_COPYING:
                self._borrow(ticket)
                if self._may_borrow(ticket, coming):
                    continue
            due = self._due(ticket)
            behind = [len(tokens) for tokens in due]
            if sum(behind) <= max(budget, _ALWAYS_FED):
                windows[ticket] = ticket.sequence.window(size)
                due = [tokens + windows[ticket].guesses for tokens in due]
            else:  # a last token is kept back, so that both branches come to their first draw together
                share = max(budget // len(due), 1) if budget else 0
                due = [tokens[: min(len(tokens) - 1, share)] for tokens in due]
            feeds |= {slot: tokens for slot, tokens in zip(ticket.slots, due, strict=True) if tokens}
            if max(behind) > _WORTH_COPYING:
                budget -= min(budget, sum(behind))
                coming += [self._held[slot] + tokens for slot, tokens in zip(ticket.slots, due, strict=True)]
        return dict(sorted(feeds.items())), windows

    def _due(self, ticket: Ticket) -> list[list[int]]:
        """Return for each slot the known tokens that its cache does not hold."""
        due = []
        for slot, prompt in zip(ticket.slots, ticket.sequence.prompts, strict=True):
            held = len(self._held[slot])
            due.append(prompt[held:] + ticket.tokens[max(held - len(prompt), 0) :])
        return due

    def _borrow(self, ticket: Ticket) -> None:
        """Copy the beginning of a prompt from a slot that holds more of it."""
        for slot, prompt in zip(ticket.slots, ticket.sequence.prompts, strict=True):
            shared, donor = max((_common(prompt[:-1], held), other) for other, held in enumerate(self._held))
            held = len(self._held[slot])
            if shared >= held + _WORTH_COPYING:
                self.cache.copy_prefix(donor, slot, shared)
                self._held[slot] = prompt[:shared]
                self.statistics.prefix_tokens_reused += shared - held

    def _may_borrow(self, ticket: Ticket, coming: list[list[int]]) -> bool:
        """Tell whether waiting a step will save a part of a prompt, because another slot is reading it now."""
        return any(
            _common(prompt[:-1], tokens) >= len(self._held[slot]) + _WORTH_COPYING
            for slot, prompt in zip(ticket.slots, ticket.sequence.prompts, strict=True)
            for tokens in coming
        )

    def _forward(self, feeds: dict[int, list[int]]) -> tuple[Tensor, dict[int, int]]:
        """Run the model; return the states [N, D] and where each slot's begin."""
        flat, starts = list[int](), dict[int, int]()
        for slot, tokens in feeds.items():
            starts[slot] = len(flat)
            flat += tokens
            self._held[slot] += tokens
        self.cache.feed([(slot, len(tokens)) for slot, tokens in feeds.items()])
        states_1ND = self.model.hidden(torch.tensor([flat], device=self.device), cache=self.cache)
        self.statistics.forwards += 1
        self.statistics.tokens_fed += len(flat)
        return states_1ND[0], starts

    def _fail_damaged(
        self, tickets: Iterable[Ticket], states_ND: Tensor, feeds: dict[int, list[int]], starts: dict[int, int]
    ) -> None:
        """Let the requests fail, and them alone, whose states are not numbers."""
        for ticket in tickets:
            parts = [states_ND[starts[slot] : starts[slot] + len(feeds[slot])] for slot in ticket.slots]
            if not torch.isfinite(torch.cat(parts)).all():
                ticket.error = InputError(
                    "the model computes values that are not finite: its weights are damaged, or overflow"
                )
                for slot in ticket.slots:
                    self.cache.wipe(slot)
                    self._held[slot] = []

    # Draws

    def _draw(
        self,
        tickets: list[Ticket],
        windows: dict[Ticket, Window],
        feeds: dict[int, list[int]],
        states_ND: Tensor,
        starts: dict[int, int],
    ) -> dict[Ticket, list[int]]:
        """Draw every place of every window, those with equal choices and settings together."""
        groups: dict[tuple[tuple[range, ...], SamplingConfig, bool], list[tuple[Ticket, int]]] = {}
        for ticket in tickets:
            request = ticket.sequence.request
            for number, place in enumerate(windows[ticket].places):
                groups.setdefault((place.legal.ranges, request.sampling, request.guided), []).append((ticket, number))
        drawn = {ticket: [0] * len(windows[ticket].places) for ticket in tickets}
        for (ranges, sampling, guided), members in groups.items():
            rows: list[list[int]] = [[], []]
            for ticket, number in members:
                window = windows[ticket]
                for branch, slot in enumerate(ticket.slots):
                    last_known = starts[slot] + len(feeds[slot]) - len(window.guesses) - 1
                    rows[branch].append(last_known + window.places[number].ahead)
            chosen_MD = states_ND[torch.tensor(rows[0] + rows[1], device=self.device)]
            logits_MV = torch.cat([self.model.logits(chosen_MD, r.start, r.stop) for r in ranges], dim=-1)
            if guided:
                conditional, unconditional = logits_MV.chunk(2)
                logits_MV = guided_logits(conditional, unconditional, sampling.guidance_scale)
            token_ids_V = torch.cat([torch.arange(r.start, r.stop, device=self.device) for r in ranges])
            keys = [ticket.sequence.noise_key(windows[ticket].places[number].index) for ticket, number in members]
            tokens_M = draw(logits_MV, token_ids_V, torch.tensor(keys, device=self.device), sampling)
            for (ticket, number), token in zip(members, tokens_M.tolist(), strict=True):
                drawn[ticket][number] = token
        return drawn

    def _commit(self, tickets: list[Ticket], windows: dict[Ticket, Window], drawn: dict[Ticket, list[int]]) -> None:
        for ticket in tickets:
            window, before = windows[ticket], len(ticket.tokens)
            right = ticket.sequence.commit(window, drawn[ticket])
            for slot in ticket.slots:
                self._keep(slot, len(self._held[slot]) - len(window.guesses) + right)
            self.statistics.tokens_written += len(ticket.tokens) - before
            self.statistics.tokens_guessed += len(window.guesses)
            self.statistics.guesses_right += right


def _common(a: list[int], b: list[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])
