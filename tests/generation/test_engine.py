"""The engine against the plain loop: whatever arrives when, in whatever windows, every request gets its own tokens."""

import contextlib
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plain import GRAMMAR, MIXED, MODEL, VISUAL_ROWS, answer, head_rows_asked_for, tiny_parts, visual

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize, VideoSize
from rhea.errors import BusyError, InputError
from rhea.generation.engine import Engine, EngineConfig, Ticket
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Progress, Request


def requests() -> list[Request]:
    """Return all kinds of requests, and several samples of one prompt."""
    samples = [replace(MIXED["picture"], sample_index=index) for index in (1, 2)]
    return [*MIXED.values(), *samples]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return [continue_prompts(MODEL, [request])[0] for request in requests()]


@pytest.mark.parametrize("window", [1, 2, 8, 16, 64])
def test_every_window_gives_the_plain_loops_tokens(alone: list[list[int]], window: int) -> None:
    engine = Engine(MODEL, EngineConfig(window=window))
    assert engine.run(requests()) == alone
    assert engine.idle
    for request, tokens in zip(requests(), alone, strict=True):
        assert Engine(MODEL, EngineConfig(window=window, slots=2)).run([request]) == [tokens]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_schedule_gives_the_plain_loops_tokens(alone: list[list[int]], data: st.DataObject) -> None:
    config = EngineConfig(
        slots=data.draw(st.integers(2, 9), label="slots"),
        prefill_chunk=data.draw(st.integers(1, 40), label="prefill_chunk"),
        window=data.draw(st.sampled_from([1, 2, 3, 7, 20]), label="window"),
        graphs=data.draw(st.booleans(), label="graphs"),
    )
    engine, tickets = Engine(MODEL, config), dict[int, Ticket]()
    order = data.draw(st.permutations(range(len(alone))), label="order")
    for number in order:
        tickets[number] = engine.submit(requests()[number])
        for _ in range(data.draw(st.integers(0, 6), label="steps")):
            engine.step()
    while not engine.idle:
        engine.step()
    assert [tickets[number].tokens for number in range(len(alone))] == alone


@pytest.mark.parametrize("window", [1, 8])
def test_padded_steps_give_the_same_tokens(alone: list[list[int]], window: int) -> None:
    engine = Engine(MODEL, EngineConfig(window=window, graphs=True))
    assert engine.run(requests()) == alone
    assert engine._graphs is not None
    assert engine._graphs.replays > engine.statistics.forwards / 2
    # Slots that end where the padding would stand are fed as they are.
    tight = EngineConfig(window=window, graphs=True, slots=2, max_len=len(requests()[0].prompt) + 21)
    assert Engine(MODEL, tight).run(requests()[:1]) == alone[:1]


def test_the_packed_model_gives_the_same_tokens(alone: list[list[int]]) -> None:
    model, _ = tiny_parts()
    assert Engine(model.pack()).run(requests()) == alone


@pytest.mark.parametrize("window", [1, 8])
def test_inside_a_grid_only_the_visual_rows_of_the_head_are_computed(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    asked, engine = head_rows_asked_for(monkeypatch), Engine(MODEL, EngineConfig(window=window))
    engine.run([MIXED["picture"]])
    assert set(asked) == {VISUAL_ROWS}
    assert len(asked) == engine.statistics.grid_forwards


def test_right_guesses_save_forwards() -> None:
    flat = visual("two red", ImageSize(height=8, width=8), temperature=0.0)
    model, _ = tiny_parts()
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[GRAMMAR.vocabulary.vision.start + 5 :] = 0  # nearly always the same few codes
        model.lm_head.weight[GRAMMAR.vocabulary.vision.start + 4] *= 0.01
    counts = {}
    for window in (1, 16):
        engine = Engine(model, EngineConfig(window=window))
        tokens = engine.run([flat])
        assert tokens == continue_prompts(model, [flat])
        counts[window] = engine.statistics.forwards
    assert counts[16] < counts[1]
    assert counts[1] <= 64 + 1


def test_equal_beginnings_are_computed_once() -> None:
    size = ImageSize(height=3, width=3)
    prompt = "a small red circle " * 3
    samples = [replace(visual(prompt, size, negative=prompt[:-4]), sample_index=index) for index in range(4)]
    engine = Engine(MODEL)
    assert engine.run(samples) == continue_prompts(MODEL, samples)
    tokens = sum(len(request.prompt) + len(request.negative_prompt or ()) for request in samples)
    assert engine.statistics.prefix_tokens_reused > 0.6 * tokens
    before = engine.statistics.prefix_tokens_reused
    assert engine.run(samples[:1]) == continue_prompts(MODEL, samples[:1]), "slots remember after their request left"
    assert engine.statistics.prefix_tokens_reused - before > 0.8 * tokens / 4


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_long_prompts_are_read_in_pieces_beside_others(chunk: int) -> None:
    size = ImageSize(height=2, width=3)
    long = visual("How many objects are there? " * 5, size, negative="make it blue " * 6)
    assert len(long.prompt) > 64
    mixed = [MIXED["answer"], long, replace(long, sample_index=1), MIXED["greedy"]]
    engine = Engine(MODEL, EngineConfig(prefill_chunk=chunk))
    assert engine.run(mixed) == [continue_prompts(MODEL, [request])[0] for request in mixed]
    assert engine.statistics.forwards > len(long.prompt) // max(chunk, 64)


def test_cancelling_frees_the_slots_and_harms_nobody(alone: list[list[int]]) -> None:
    engine = Engine(MODEL, EngineConfig(slots=4, window=2))
    tickets = [engine.submit(request) for request in requests()]
    for _ in range(3):
        engine.step()
    engine.cancel(tickets[0])
    engine.cancel(tickets[-1])
    assert tickets[0].done
    assert not tickets[0].slots
    while not engine.idle:
        engine.step()
    assert len(tickets[0].tokens) < len(alone[0])
    assert tickets[-1].tokens == tickets[-1].sequence.tokens
    assert [ticket.tokens for ticket in tickets[1:-1]] == alone[1:-1]


def test_bounds_refuse_at_once() -> None:
    engine = Engine(MODEL, EngineConfig(slots=1, max_len=64, max_waiting=2))
    with pytest.raises(InputError, match="takes two slots"):
        engine.submit(visual("two", ImageSize(height=2, width=2)))
    with pytest.raises(InputError, match="do not fit"):
        engine.submit(answer("How many", limit=64))
    for _ in range(2):
        engine.submit(answer("How many"))
    with pytest.raises(BusyError, match="2 requests"):
        engine.submit(answer("How many"))


def test_a_request_that_breaks_fails_alone() -> None:
    model, _ = tiny_parts()
    bad = answer("How many circle")
    with torch.no_grad():
        model.embed_tokens.weight[bad.prompt[-5]] = float("nan")
    good = [
        request for request in requests() if bad.prompt[-5] not in (*request.prompt, *(request.negative_prompt or ()))
    ]
    assert len(good) >= 2
    engine = Engine(model)
    tickets = [engine.submit(request) for request in [bad, *good]]
    while not engine.idle:
        engine.step()
    assert isinstance(tickets[0].error, InputError)
    assert [ticket.tokens for ticket in tickets[1:]] == continue_prompts(model, good)
    with pytest.raises(InputError, match="not finite"):
        engine.run([good[0], bad])


def test_a_request_that_runs_out_of_memory_fails_alone(alone: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, hidden = Engine(MODEL, EngineConfig(window=3)), MODEL.hidden
    long = answer("How many circle " * 8)

    def limited(token_ids: torch.Tensor, **more: object) -> torch.Tensor:
        if long.prompt[-20] in token_ids[0] and token_ids.shape[1] > 60:
            raise torch.OutOfMemoryError("not enough memory")
        return hidden(token_ids, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(MODEL, "hidden", limited)
    tickets = [engine.submit(request) for request in [*requests()[:3], long, *requests()[3:]]]
    while not engine.idle:
        engine.step()
    assert isinstance(tickets.pop(3).error, torch.OutOfMemoryError)
    assert [ticket.tokens for ticket in tickets] == alone


def test_a_text_gives_its_place_to_a_higher_priority_and_goes_on_later(alone: list[list[int]]) -> None:
    names = list(MIXED)
    texts = [name for name in names if "answer" in name]
    engine = Engine(MODEL, EngineConfig(slots=3, window=2))
    tickets = {name: engine.submit(MIXED[name]) for name in texts}
    for _ in range(3):
        engine.step()
    assert all(ticket.tokens and not ticket.done for ticket in tickets.values())
    for name, priority in (("picture", 1), ("no guidance", 0), ("film", 2)):
        tickets[name] = engine.submit(replace(MIXED[name], priority=priority))
    engine.step()
    assert len(tickets["film"].slots) == 2
    assert [bool(tickets[name].slots) for name in texts] == [True, False, False], "the latest texts give way"
    assert not tickets["picture"].slots, "a film is not interrupted, and one text more would not do"
    while not engine.idle:
        engine.step()
    assert engine.statistics.suspensions == 2
    assert {name: ticket.tokens for name, ticket in tickets.items()} == {n: alone[names.index(n)] for n in tickets}


def test_a_thousand_requests_with_cancellations_leave_the_pool_whole() -> None:
    rng = random.Random(4)
    engine, tickets = Engine(MODEL, EngineConfig(slots=11, max_waiting=20)), list[Ticket]()
    while len(tickets) < 1000 or not engine.idle:
        for _ in range(rng.randrange(12) if len(tickets) < 1000 else 0):
            request = replace(rng.choice(requests()), sample_index=len(tickets), priority=rng.randrange(3))
            with contextlib.suppress(BusyError):
                tickets.append(engine.submit(replace(request, max_new_tokens=min(request.max_new_tokens, 5))))
        for ticket in tickets[-20:]:
            if rng.random() < 0.05:
                engine.cancel(ticket)
        engine.step()
    assert sum(ticket.cancelled for ticket in tickets) > 200
    assert sum(ticket.sequence.finished for ticket in tickets) > 200
    assert all(ticket.done and not ticket.slots for ticket in tickets)
    assert engine.run(requests()) == [continue_prompts(MODEL, [request])[0] for request in requests()]
    assert sorted(engine._free) == list(range(11))


def test_what_was_done_is_counted(alone: list[list[int]]) -> None:
    engine = Engine(MODEL, EngineConfig(window=4))
    assert engine.run(requests()) == alone
    counts = engine.statistics
    assert counts.tokens_written == sum(map(len, alone))
    assert counts.grids == sum(request.constraint.in_grid for request in requests())
    assert counts.grid_forwards >= counts.forwards / 2
    assert counts.prefill_seconds > 0
    assert counts.decode_seconds > 0
    assert counts.sampling_seconds > 0
    assert counts.most_slots == 16
    longest = [len(request.prompt) + len(request.negative_prompt or ()) for request in requests()]
    assert 0 < counts.most_cached_tokens < sum(longest) + 2 * sum(map(len, alone))
    assert f"{counts.tokens_written} tokens in {counts.forwards} forwards" in counts.summary()


def test_warming_up_says_what_it_does_and_leaves_no_trace(alone: list[list[int]]) -> None:
    engine, said = Engine(MODEL, EngineConfig(prefill_chunk=40)), list[str]()
    engine.run(requests()[:2])
    engine.warm_up(said.append)
    assert [line.split()[0] for line in said] == ["2", "4", "16", "32", "128", "80"]
    assert engine.run(requests()) == alone
    padded = Engine(MODEL, EngineConfig(graphs=True))
    padded.warm_up()
    assert padded.statistics.forwards == 0
    assert padded.run(requests()) == alone


def test_free_documents_mix_text_and_pictures() -> None:
    prompt = GRAMMAR.render_prompt(formats.question_answering(None, "two?"))
    sizes = [ImageSize(height=2, width=3), VideoSize(height=2, width=2, num_frames=8, fps=8)]
    constraint = Constraint(GRAMMAR, "free", sizes=sizes).start(prompt)
    request = Request(prompt=prompt.tolist(), constraint=constraint, max_new_tokens=90, seed=3)
    expected = continue_prompts(MODEL, [request])
    for window in (1, 8):
        assert Engine(MODEL, EngineConfig(window=window)).run([request]) == expected


def test_progress_counts_all_requests(alone: list[list[int]]) -> None:
    seen: list[Progress] = []
    Engine(MODEL).run(requests(), progress=seen.append)
    assert seen[-1].tokens == sum(map(len, alone))
    assert [one.tokens for one in seen] == sorted(one.tokens for one in seen)
