"""The engine: requests join and leave a running batch at any step, and pictures are drawn several tokens at a time.

A step is one forward over a flat batch: pieces of prompts, single tokens of texts and windows of guesses in grids, for
whoever is due. Both branches of guidance are two slots of the cache that are fed the same new tokens. A prompt whose
beginning some slot holds, or has left behind, is not computed again. The plain loop in ``plain.py`` is the reference:
the engine gives each request, in float32, the tokens that the plain loop gives it alone (or, if asked for maximal
coupling, tokens of the same law).

Shapes: N tokens of the flat batch, D channels.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Literal

import torch
from torch import Tensor

from rhea.errors import BusyError, InputError
from rhea.generation.coupling import Guess
from rhea.generation.drawing import Drawing, draw_windows
from rhea.generation.graphs import StepGraphs
from rhea.generation.request import Progress, Request, check_fits
from rhea.generation.sequence import Sequence, Window
from rhea.generation.statistics import Statistics
from rhea.generation.tuning import WindowTuner
from rhea.models.slot_cache import CacheStorage, SlotCache
from rhea.models.transformer import Transformer

_WORTH_COPYING = 8
"""Tokens of a shared beginning below which computing them is as quick as looking for them."""
_NOT_FINITE = "the model computes values that are not finite: its weights are damaged, or overflow"
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
    parallel: Literal["gumbel", "coupling"] = "gumbel"
    """How guesses are judged: by noise that depends on the place alone, so that windows never change a token, or by
    maximal coupling, which keeps more of them and changes the tokens, but not their law, with every window."""
    cache: CacheStorage = "model"
    """What keys and values are kept in: the model's dtype, or eight bits ("int8", "fp8") for less memory."""
    graphs: bool | None = None
    """Whether steps are padded to fixed shapes and, on CUDA, replayed as graphs; None: on CUDA only."""
    max_waiting: int = 256
    """Requests that may wait; one more is refused."""


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


@dataclass(kw_only=True)
class _Plan:
    """What one forward is for."""

    feeds: dict[int, list[int]] = field(default_factory=dict)
    """The tokens to feed each slot, slots ascending."""
    windows: dict[Ticket, Window] = field(default_factory=dict)
    """The windows of the requests whose next tokens can be drawn then."""
    prompt_tokens: int = 0
    """How many of all fed tokens belong to prompts."""


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
        self.cache = SlotCache(
            model.config, self.config.slots, self.max_len, weight.dtype, weight.device, self.config.cache
        )
        graphs = weight.device.type == "cuda" if self.config.graphs is None else self.config.graphs
        self._graphs = StepGraphs(model, self.cache) if graphs else None
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._free = list(range(self.config.slots))
        self._held: list[list[int]] = [[] for _ in self._free]
        """The tokens that each slot's cache holds, also after its request has left."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def load(self) -> dict[str, int]:
        """How many requests wait and run now, and how many of the cache's rows and tokens are theirs."""
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "rows": self._rows,
            "cached_tokens": sum(self.cache.lengths[slot] for ticket in list(self._running) for slot in ticket.slots),
        }

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

    @torch.inference_mode()
    def warm_up(self, say: Callable[[str], None] | None = None) -> None:
        """Run forwards of the usual sizes on an idle engine, so that the first request finds weights packed and memory
        and kernels ready; ``say`` is told what each took."""
        assert self.idle, "requests are running"
        for tokens in (size for size in (1, 2, 8, 16, 64, self.config.prefill_chunk) if size <= self.max_len):
            feeds, start = {slot: [0] * tokens for slot in range(min(self.config.slots, 2))}, time.perf_counter()
            for _ in range(2):  # the first one prepares
                taken, start = time.perf_counter() - start, time.perf_counter()
                states_ND, _ = self._hidden(feeds)
                states_ND.isfinite().all().item()  # waits for the device
                for slot in feeds:
                    self.cache.truncate(slot, 0)
                    self._held[slot] = []
            if say is not None:
                again, tokens = time.perf_counter() - start, tokens * len(feeds)
                say(f"{tokens:4} tokens: {1000 * again:.1f} ms a forward, {1000 * taken:.1f} ms the first time")

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
        self._advance(list(self._running))
        self._release()

    def _advance(self, tickets: list[Ticket]) -> None:
        """Run the model once for some of the running requests; if that breaks, once for each of them."""
        times, before, plan = [time.perf_counter()], self.statistics.tokens_written, self._plan(tickets)
        if not plan.feeds:
            return
        try:
            states_ND, starts = self._forward(plan.feeds)
        except (RuntimeError, MemoryError) as error:  # most likely out of memory
            for slot in plan.feeds:
                del self._held[slot][self.cache.lengths[slot] :]
            if len(tickets) == 1:
                self._fail(tickets[0], error)
            for ticket in tickets if len(tickets) > 1 else ():
                self._advance([ticket])
            return
        times.append(time.perf_counter())
        drawings = []
        for ticket, window in plan.windows.items():
            rows = [starts[slot] + len(plan.feeds[slot]) - len(window.guesses) - 1 for slot in ticket.slots]
            drawings.append(Drawing(ticket.sequence, window, rows))
        drawn, finite = draw_windows(self.model, drawings, states_ND, coupled=self.config.parallel == "coupling")
        times.append(time.perf_counter())
        for (ticket, window), draws in zip(plan.windows.items(), drawn, strict=True):
            spans = [finite[starts[slot] : starts[slot] + len(plan.feeds[slot])] for slot in ticket.slots]
            if all(map(all, spans)):
                self._commit(ticket, window, draws)
            else:
                self._fail(ticket, InputError(_NOT_FINITE))
        self._count(plan, times)
        if not plan.prompt_tokens:  # a prompt would spoil the measurement
            written = self.statistics.tokens_written - before
            self.tuner.record(self._rows, written, time.perf_counter() - times[0])

    @property
    def _rows(self) -> int:
        """The cache rows in use."""
        return sum(len(ticket.slots) for ticket in self._running)

    def _count(self, plan: _Plan, times: list[float]) -> None:
        counts, fed = self.statistics, sum(map(len, plan.feeds.values()))
        planned, forwarded, drawn = times
        share = plan.prompt_tokens / max(fed, 1)
        counts.prefill_seconds += share * (forwarded - planned)
        counts.decode_seconds += (1 - share) * (forwarded - planned)
        counts.sampling_seconds += drawn - forwarded
        counts.most_slots = max(counts.most_slots, self._rows)
        counts.most_cached_tokens = max(counts.most_cached_tokens, sum(self.cache.lengths))

    # Admission

    def _admit(self) -> None:
        while self._waiting:
            ticket = max(self._waiting, key=_priority)  # the first of equals
            if not self._make_room(ticket):
                return
            self._waiting.remove(ticket)
            for prompt in ticket.sequence.prompts:
                # A free slot that holds the beginning of what is known is the best one, the emptiest the next best.
                known = prompt + ticket.tokens
                slot = max(self._free, key=lambda s: (_common(known, self._held[s]), -len(self._held[s]), -s))
                self._free.remove(slot)
                ticket.slots.append(slot)
                self._keep(slot, min(_common(known, self._held[slot]), len(known) - 1))
                self.statistics.prefix_tokens_reused += len(self._held[slot])
            self._running.append(ticket)

    def _make_room(self, ticket: Ticket) -> bool:
        """Free as many slots as it needs, sending texts of lower priority back to wait; tell whether that is possible.

        They go on later from where they were, with the same tokens, for noise depends on the position alone.
        """
        missing = len(ticket.sequence.prompts) - len(self._free)
        texts = [other for other in self._running if other.sequence.can_wait and _priority(other) < _priority(ticket)]
        texts.sort(key=lambda text: (_priority(text), -self._running.index(text)))  # the latest of equals first
        texts = texts[: max(missing, 0)]  # each has one slot
        if len(texts) < missing:
            return False
        for text in texts:
            self._running.remove(text)
            self._free += text.slots
            text.slots = []
            self._waiting.appendleft(text)
        self.statistics.suspensions += len(texts)
        return True

    def _keep(self, slot: int, length: int) -> None:
        self.cache.truncate(slot, length)
        del self._held[slot][length:]

    def _release(self) -> None:
        for ticket in [ticket for ticket in self._running if ticket.done]:
            self._running.remove(ticket)
            self._free += ticket.slots
            ticket.slots = []

    # One forward

    def _plan(self, tickets: list[Ticket]) -> _Plan:
        """Share out a forward among some of the running requests."""
        budget, plan = self.config.prefill_chunk, _Plan()
        size = self.config.window or self.tuner.size(self._rows)
        coming: list[list[int]] = []  # what slots that read a prompt will hold after this step
        for ticket in tickets:
            if max(len(tokens) for tokens in self._due(ticket)) > _WORTH_COPYING:
                self._borrow(ticket)
                if self._may_borrow(ticket, coming):
                    continue
            due = self._due(ticket)
            behind = [len(tokens) for tokens in due]
            if sum(behind) <= max(budget, _ALWAYS_FED):
                window = plan.windows[ticket] = ticket.sequence.window(size)
                fed = [tokens + window.guesses for tokens in due]
            else:  # a last token is kept back, so that both branches come to their first draw together
                share = max(budget // len(due), 1) if budget else 0
                fed = [tokens[: min(len(tokens) - 1, share)] for tokens in due]
            for slot, prompt, tokens in zip(ticket.slots, ticket.sequence.prompts, fed, strict=True):
                plan.prompt_tokens += min(len(tokens), max(len(prompt) - len(self._held[slot]), 0))
            plan.feeds |= {slot: tokens for slot, tokens in zip(ticket.slots, fed, strict=True) if tokens}
            if max(behind) > _WORTH_COPYING:
                budget -= min(budget, sum(behind))
                coming += [self._held[slot] + tokens for slot, tokens in zip(ticket.slots, fed, strict=True)]
        plan.feeds = dict(sorted(plan.feeds.items()))
        return plan

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
        for slot, tokens in feeds.items():
            self._held[slot] += tokens
            self.statistics.tokens_fed += len(tokens)
        self.statistics.forwards += 1
        return self._hidden(feeds)

    def _hidden(self, feeds: dict[int, list[int]]) -> tuple[Tensor, dict[int, int]]:
        if self._graphs is not None and (padded := self._graphs.forward(feeds)) is not None:
            return padded
        ends = list(accumulate(len(tokens) for tokens in feeds.values()))
        self.cache.feed([(slot, len(tokens)) for slot, tokens in feeds.items()])
        flat_1N = torch.tensor([list(chain.from_iterable(feeds.values()))], device=self.device)
        states_1ND = self.model.hidden(flat_1N, cache=self.cache)
        return states_1ND[0], dict(zip(feeds, [0, *ends], strict=False))

    # What comes of it

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        """Let a request fail and forget what its slots hold."""
        ticket.error = error
        for slot in ticket.slots:
            self.cache.wipe(slot)
            self._held[slot] = []

    def _commit(self, ticket: Ticket, window: Window, drawn: list[Guess]) -> None:
        before, in_grid, counts = len(ticket.tokens), ticket.sequence.constraint.in_grid, self.statistics
        right = ticket.sequence.commit(window, drawn)
        for slot in ticket.slots:
            self._keep(slot, len(self._held[slot]) - len(window.guesses) + right)
        counts.tokens_written += len(ticket.tokens) - before
        counts.tokens_guessed += len(window.guesses)
        counts.guesses_right += right
        counts.grid_forwards += in_grid
        counts.grids += in_grid and not ticket.sequence.constraint.in_grid


def _common(a: list[int], b: list[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])


def _priority(ticket: Ticket) -> int:
    return ticket.sequence.request.priority
