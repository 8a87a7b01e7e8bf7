"""ZipAR is the plain loop at full width, and at small windows one forward under a mask that can be written down."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_forward import OneForward
from test_plain import GRAMMAR, MIXED, MODEL, answer, choose, tiny_parts, visual
from torch import Tensor

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize, VideoSize
from rhea.errors import InputError
from rhea.generation import zipar
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Progress, Request
from rhea.generation.sampling import guided_logits
from rhea.generation.statistics import Statistics
from rhea.generation.zipar import grid_rows, waves, zip_rows


def continued(request: Request, tokens: list[int]) -> Request:
    """Return a request for what comes after the first new tokens of another."""
    prompt = [*request.prompt, *tokens]
    negative = request.negative_prompt
    return replace(
        request,
        prompt=prompt,
        negative_prompt=None if negative is None else [*negative, *tokens],
        constraint=request.constraint.copy().start(prompt),
        max_new_tokens=request.max_new_tokens - len(tokens),
    )


FILM = MIXED["film"]  # three latent frames of 2 x 2
WIDE = visual("a small red circle", ImageSize(height=4, width=6))
GRIDS = [
    *(request for request in MIXED.values() if request.constraint.mode == "visual"),
    replace(MIXED["picture"], sample_index=1),
    replace(MIXED["picture"], sampling=replace(MIXED["picture"].sampling, temperature=0.4)),
    replace(MIXED["picture"], negative_prompt=None),
    visual("How many red?", ImageSize(height=3, width=4), negative="two"),  # prompts of other lengths in one batch
    WIDE,
    visual("two", VideoSize(height=3, width=4, num_frames=8, fps=8), negative=None),
]


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    return [continue_prompts(MODEL, [request])[0] for request in GRIDS]


@pytest.mark.parametrize(("window", "max_requests"), [(6, 64), (1000, 1)])
def test_a_window_of_the_width_is_the_plain_loop(plain: list[list[int]], window: int, max_requests: int) -> None:
    counted = Statistics()
    assert zip_rows(MODEL, GRIDS, window, max_requests=max_requests, statistics=counted) == plain
    assert counted.tokens_written == sum(map(len, plain))


@pytest.mark.parametrize("given", [0, 1, 2, 3, 6, 7, 10, 20])
def test_a_film_is_continued_from_any_place(given: int) -> None:
    tokens = continue_prompts(MODEL, [FILM])[0]
    rest = continued(FILM, tokens[:given])
    assert zip_rows(MODEL, [rest], 2) == continue_prompts(MODEL, [rest])
    assert len(zip_rows(MODEL, [rest], 1)[0]) == len(tokens) - given


def test_the_packed_model_gives_the_same_tokens(plain: list[list[int]]) -> None:
    model, _ = tiny_parts()
    assert zip_rows(model.pack(), GRIDS, 6) == plain


@pytest.mark.parametrize("window", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("size", [ImageSize(height=4, width=6), VideoSize(height=3, width=5, num_frames=9, fps=8)])
def test_forwards_are_the_diagonals_of_the_grid(window: int, size: ImageSize | VideoSize) -> None:
    request, counted = visual("two", size), Statistics()
    tokens = zip_rows(MODEL, [request, replace(request, seed=1)], window, statistics=counted)
    frames, height, width = GRAMMAR.grid(size)
    ahead = min(window, width)
    assert counted.forwards == frames * (width + (height - 1) * ahead)
    assert counted.tokens_written == sum(map(len, tokens))
    again = frames * (height - 1) * (ahead < width)  # ends of lines that were fed early
    prompts = len(request.prompt) + len(request.negative_prompt or ())
    assert counted.tokens_fed == 2 * (
        prompts + 2 * (len(tokens[0]) - 5 + again)
    )  # the last code and the end are not fed


@settings(max_examples=40)
@given(
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(0, 200),
)
def test_waves_draw_and_feed_all_in_time(window: int, height: int, width: int, latents: int, given_tokens: int) -> None:
    size = VideoSize(height=height, width=width, num_frames=4 * latents, fps=8)
    prompt = GRAMMAR.render_prompt(formats.text_to_image("two"), size).tolist()
    constraint = Constraint(GRAMMAR, "visual").start(prompt)
    for _ in range(given_tokens % constraint.remaining_grid_tokens):
        constraint.advance(constraint.legal().ranges[0].start)
    rows = grid_rows(constraint)
    frame_of = {index: row.frame for row in rows for index in row.codes}
    known, fed, drawn = {i for row in rows for i in range(row.codes.stop, row.codes.stop + len(row.forced))}, {-1}, []
    for number, wave in enumerate(waves(rows, window)):
        assert (wave.fed[0] == -1) == (number == 0)
        assert set(wave.fed) <= known | {-1}, "only what is known is fed"
        assert {index - 1 for index in wave.drawn} <= set(wave.fed), "every draw has its state"
        assert len({frame_of[index] for index in wave.drawn}) == 1, "frames follow one another"
        fed |= set(wave.fed)
        drawn += wave.drawn
        known |= set(wave.drawn)
    assert sorted(drawn) == sorted(frame_of), "every code is drawn once"
    if drawn:
        assert fed == set(range(-1, max(drawn))), "what comes before the last draw is all fed"


def states_by_definition(
    prompt: list[int], tokens: list[int], height: int, width: int, window: int
) -> dict[int, Tensor]:
    """Return the state that each new token of a picture is drawn from, of one forward over its tokens.

    Code (r, c) is drawn in forward r * window + c and fed in the next; the EOL of row r is fed with the first draw of
    row r + 1 and again when row r is complete. A token sees what lies before it and was fed no later, and of an EOL the
    newest of the two.
    """
    forever = height * width + 1
    entries = [(token, place - len(prompt), 0, forever) for place, token in enumerate(prompt)]
    for row in range(height):
        for column in range(width):
            index = row * (width + 1) + column
            entries.append((tokens[index], index, row * window + column + 1, forever))
        eol, early, late = row * (width + 1) + width, (row + 1) * window, row * window + width
        entries += [(tokens[eol], eol, early, late)] if early < late else []
        entries.append((tokens[eol], eol, late, forever))
    token_ids, index, since, until = (torch.tensor(column) for column in zip(*entries, strict=True))
    before = (index[None, :] < index[:, None]) | torch.eye(len(entries), dtype=torch.bool)
    visible = before & (since[None, :] <= since[:, None]) & (since[:, None] < until[None, :])
    states = MODEL.hidden(token_ids[None], cache=OneForward((index + len(prompt)).tolist(), visible))[0]
    last = {}
    for place, at in enumerate(index.tolist()):
        last.setdefault(at + 1, states[place])  # the early EOL is what the next row starts from
    return last


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 4, 6])
@pytest.mark.parametrize("negative", [None, "make it blue"])
def test_every_draw_is_that_of_one_masked_forward(window: int, negative: str | None) -> None:
    request = visual("a small red circle", ImageSize(height=4, width=6), negative=negative, top_k=9)
    tokens = zip_rows(MODEL, [request], window)[0]
    branches = [request.prompt, request.negative_prompt] if request.guided else [request.prompt]
    states = [states_by_definition(list(prompt or ()), tokens, 4, 6, window) for prompt in branches]
    vision = GRAMMAR.vocabulary.vision
    for row in grid_rows(request.constraint):
        for index in row.codes:
            logits = [MODEL.logits(each[index]) for each in states]
            whole = guided_logits(*logits, request.sampling.guidance_scale) if len(logits) == 2 else logits[0]
            legal = torch.full_like(whole, float("-inf"))
            legal[vision.start : vision.stop] = whole[vision.start : vision.stop]
            key = zipar.noise_key(request.seed, request.sample_index, len(request.prompt) + index)
            assert tokens[index] == choose(legal, request.sampling, key), f"new token {index}"


def test_rows_that_are_ahead_in_time_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the first code of the third row changes nothing before it, though most of that is drawn later."""
    honest, draw, calls = zip_rows(MODEL, [WIDE], 2)[0], zipar.draw, 0
    third = 2 * 7

    def meddling(logits: Tensor, ids: Tensor, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        drawn = draw(logits, ids, *arguments)
        if calls == 1 + 2 * 2:  # rows 0, 1 and 2 are drawn here, at columns 4, 2 and 0
            assert drawn.tolist() == [honest[4], honest[7 + 2], honest[third]]
            drawn[2] = ids[(drawn[2] - ids[0] + 1) % len(ids)]
        return drawn

    monkeypatch.setattr(zipar, "draw", meddling)
    changed = zip_rows(MODEL, [WIDE], 2)[0]
    assert changed[:third] == honest[:third]
    assert changed[third] != honest[third]
    assert changed[third + 1 :] != honest[third + 1 :], "and those after it do see it"


@pytest.mark.parametrize("window", [1, 4])
def test_small_windows_write_whole_grids(plain: list[list[int]], window: int) -> None:
    zipped = zip_rows(MODEL, GRIDS, window)
    assert zipped == zip_rows(MODEL, GRIDS, window, max_requests=1), "alone as in any batch"
    assert zipped != plain
    for request, tokens, same in zip(GRIDS, zipped, plain, strict=True):
        document = GRAMMAR.parse([*request.prompt, *tokens])
        assert document.eos
        assert len(tokens) == len(same) == request.max_new_tokens
        assert tokens[:window] == same[:window], "the first row sees all"
        assert tokens == same or request.constraint.size[-1] > window, "grids are zipped by their own width"  # type: ignore[index]


def test_guidance_runs_in_the_same_forwards() -> None:
    unguided, guided = Statistics(), Statistics()
    one = zip_rows(MODEL, [replace(WIDE, negative_prompt=None)], 2, statistics=unguided)
    other = zip_rows(MODEL, [WIDE], 2, statistics=guided)
    assert one != other
    assert guided.forwards == unguided.forwards


def test_max_requests_bounds_a_batch() -> None:
    for most, batches in ((3, 1), (2, 2)):
        counted = Statistics()
        zip_rows(MODEL, [replace(WIDE, seed=seed) for seed in range(3)], 1, max_requests=most, statistics=counted)
        assert counted.forwards == batches * (6 + 3)


def test_progress_ends_with_all_tokens() -> None:
    told: list[Progress] = []
    tokens = zip_rows(MODEL, GRIDS, 2, statistics=Statistics(tokens_written=7), progress=told.append)
    assert [each.tokens for each in told] == sorted(each.tokens for each in told)
    assert told[-1].tokens == told[-1].max_tokens == sum(map(len, tokens))


def test_nothing_to_do() -> None:
    assert zip_rows(MODEL, [], 4) == []


def free() -> Request:
    prompt = GRAMMAR.render_prompt(formats.text_to_image("two"), ImageSize(height=2, width=3))
    constraint = Constraint(GRAMMAR, "free").start(prompt)
    return Request(prompt=prompt.tolist(), constraint=constraint, max_new_tokens=40)


@pytest.mark.parametrize(
    ("request_", "window", "reason"),
    [
        (WIDE, 0, "window of 0 codes must be at least 1"),
        (answer("How many"), 4, "for text, which has no rows: turn ZipAR off"),
        (free(), 4, "for a document of text and pictures in any order: turn"),
        (continued(FILM, continue_prompts(MODEL, [FILM])[0][:-2]), 4, "the end of a grid that is complete"),
        (replace(WIDE, max_new_tokens=30), 4, "takes 31 new tokens, max_new_tokens is 30"),
        (visual("two", ImageSize(height=20, width=20)), 4, "context of 256 tokens"),
    ],
)
def test_what_has_no_rows_is_refused(request_: Request, window: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        zip_rows(MODEL, [WIDE, request_], window)


def test_weights_with_nan_are_noticed() -> None:
    model, _ = tiny_parts()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(InputError, match="not finite"):
        zip_rows(model, [WIDE], 2)
