"""The constraint: at every step the same legal tokens as a slow reference that reads the whole sequence anew."""

from collections.abc import Sequence

import numpy as np
import pytest
from document_cases import image, small_grammar, video
from hypothesis import given
from hypothesis import strategies as st

from rhea.documents import formats
from rhea.documents.constraint import Constraint, Mode
from rhea.documents.document import Document, Image, ImageSize, Text, Video, VideoSize
from rhea.documents.meta import MetaLimits, format_meta, parse_meta, split_pieces
from rhea.errors import InputError

GRAMMAR = small_grammar()
VOCABULARY = GRAMMAR.vocabulary
SIZES = [
    ImageSize(height=1, width=1),
    ImageSize(height=2, width=3),
    ImageSize(height=12, width=2),
    VideoSize(height=2, width=1, num_frames=5, fps=2.5),
    VideoSize(height=1, width=2, num_frames=9, fps=24),
    VideoSize(height=1, width=2, num_frames=8, fps=24),
]
ALL_IMAGES = [ImageSize(height=height, width=width) for height in range(1, 13) for width in range(1, 13)]
NO_VIDEOS = MetaLimits(max_side=12, videos=False)


def whole_grid(size: ImageSize | VideoSize) -> list[int]:
    """Return the ids of a grid of zeros with all its end marks and image-end."""
    grid = np.zeros(GRAMMAR.grid(size), dtype=np.int64)
    if isinstance(size, VideoSize):
        segment: Image | Video = Video(codes=grid, fps=size.fps, num_frames=size.num_frames)
    else:
        segment = Image(codes=grid[0])
    ids = GRAMMAR.render(Document((segment,), bos=False, eos=False)).token_ids.tolist()
    return ids[ids.index(VOCABULARY.image_token) + 1 :]


def reference(ids: Sequence[int], prompt: int, mode: Mode, sizes: Sequence[ImageSize | VideoSize]) -> set[int]:
    """Return the legal next ids after ``ids``, of which the first ``prompt`` were given, by parsing from the start."""
    ids = list(ids)
    if VOCABULARY.eos in ids[prompt:]:
        return {VOCABULARY.pad}
    starts = [place for place, token_id in enumerate(ids) if token_id == VOCABULARY.image_start]
    block = ids[starts[-1] + 1 :] if starts else [VOCABULARY.image_end]
    if VOCABULARY.image_end in block:
        if mode == "visual":
            return {VOCABULARY.eos}
        text = {*range(GRAMMAR.text_tokenizer.vocab_size), VOCABULARY.eos}
        return text | {VOCABULARY.image_start} if mode == "free" else text
    if VOCABULARY.image_token not in block:
        legal = set()
        for size in sizes:
            pieces = [GRAMMAR.text_tokenizer.encode(piece) for piece in split_pieces(format_meta(size))]
            whole = [*(token_id for piece in pieces for token_id in piece), VOCABULARY.image_token]
            if whole[: len(block)] == block:
                legal.add(whole[len(block)])
        return legal
    middle = block.index(VOCABULARY.image_token)
    size = parse_meta(GRAMMAR.text_tokenizer.decode(block[:middle]))
    following = whole_grid(size)[len(block) - middle - 1]
    return set(VOCABULARY.vision) if following in VOCABULARY.vision else {following}


def legal_set(constraint: Constraint) -> set[int]:
    legal = constraint.legal()
    found = {token_id for ids in legal.ranges for token_id in ids}
    assert (legal.forced is not None) == (len(found) == 1)
    assert legal.forced is None or found == {legal.forced}
    return found


def choose(rng: np.random.Generator, legal: set[int]) -> int:
    """Choose at random, special ids as likely as all others together, so that walks get somewhere."""
    special = sorted(legal & set(VOCABULARY.special))
    return int(rng.choice(special if special and rng.random() < 0.5 else sorted(legal)))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_free_walks_equal_the_reference_and_parse(seed: int, listed: bool) -> None:
    rng = np.random.default_rng(seed)
    sizes: list[ImageSize | VideoSize] = [*(SIZES if listed else ALL_IMAGES)]
    constraint = Constraint(GRAMMAR, sizes=sizes) if listed else Constraint(GRAMMAR, limits=NO_VIDEOS)
    ids = GRAMMAR.render_prompt(formats.editing([image(2, 2)], "go")).tolist()
    prompt = len(ids)
    constraint.start(ids)
    while not constraint.done and len(ids) < 400:
        legal = legal_set(constraint)
        assert legal == reference(ids, prompt, "free", sizes)
        ids.append(choose(rng, legal))
        constraint.advance(ids[-1])
    if constraint.done:
        assert legal_set(constraint) == {VOCABULARY.pad}
        GRAMMAR.parse(ids)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [[], [image(2, 3)], [image(1, 1), image(3, 2)]])
def test_announced_images_equal_the_reference_then_stop(size: ImageSize | VideoSize, before: list[Image]) -> None:
    ids = GRAMMAR.render_prompt(formats.editing(before, "go"), size).tolist()
    prompt = len(ids)
    constraint = Constraint(GRAMMAR, "visual").start(ids)
    while not constraint.done:
        legal = legal_set(constraint)
        assert legal == reference(ids, prompt, "visual", [size])
        ids.append(max(legal))
        constraint.advance(ids[-1])
    assert ids[-1] == VOCABULARY.eos
    frames, height, width = GRAMMAR.grid(size)
    assert len(ids) - prompt == frames * (height * (width + 1) + 1) + 2
    constraint.advance(VOCABULARY.pad)
    assert constraint.done
    last = GRAMMAR.parse(ids).segments[-1]
    assert isinstance(last, Image | Video)
    assert last.codes is not None
    assert last.codes.reshape(frames, height, width).min() == 49


@pytest.mark.parametrize(("height", "width"), [(1, 3), (3, 3), (5, 4), (2, 7)])
def test_equals_the_offset_rule_of_the_released_code_for_widths_above_two(height: int, width: int) -> None:
    ids = GRAMMAR.render_prompt(formats.text_to_image("go"), ImageSize(height=height, width=width)).tolist()
    constraint = Constraint(GRAMMAR, "visual").start(ids)
    for offset in range(1, height * (width + 1) + 4):
        ends = {1: VOCABULARY.eof, 2: VOCABULARY.image_end, 3: VOCABULARY.eos}
        past = offset - height * (width + 1)
        if past in ends:
            expected = {ends[past]}
        elif offset % (width + 1) == 0:
            expected = {VOCABULARY.eol}
        else:
            expected = set(VOCABULARY.vision)
        assert legal_set(constraint) == expected
        constraint.advance(min(expected))
    assert constraint.done


def test_a_caption_is_not_empty() -> None:
    prompt = GRAMMAR.render_prompt(formats.captioning(image(2, 2))).tolist()
    constraint = Constraint(GRAMMAR, "text").start(prompt)
    assert legal_set(constraint) == reference(prompt, len(prompt), "text", []) - {VOCABULARY.eos}
    assert legal_set(constraint.copy()) == legal_set(constraint)
    constraint.advance(0)
    assert VOCABULARY.eos in constraint.legal()
    assert VOCABULARY.eos in Constraint(GRAMMAR, "free").start(prompt).legal()


def test_text_mode_is_text_until_eos() -> None:
    prompt = GRAMMAR.render_prompt(formats.question_answering(image(2, 2), [("q", "a"), ("r", None)])).tolist()
    constraint = Constraint(GRAMMAR, "text").start(prompt)
    for token_id in GRAMMAR.text_tokenizer.encode("two <|image start|>"):
        assert legal_set(constraint) == reference(prompt, len(prompt), "text", [])
        constraint.advance(token_id)
    constraint.advance(VOCABULARY.eos)
    assert constraint.done
    assert constraint.legal().forced == VOCABULARY.pad


def test_free_mode_without_any_admissible_size_is_text() -> None:
    assert VOCABULARY.image_start not in legal_set(Constraint(GRAMMAR, sizes=[]).start([VOCABULARY.bos]))


def walked(constraint: Constraint, rng: np.random.Generator, steps: int) -> list[int]:
    ids = []
    for _ in range(steps):
        ids.append(choose(rng, legal_set(constraint)))
        constraint.advance(ids[-1])
    return ids


def test_rows_of_a_batch_at_different_sizes_equal_each_alone() -> None:
    shared = Constraint(GRAMMAR, "visual")
    prompts = [GRAMMAR.render_prompt(formats.text_to_image("go"), size).tolist() for size in SIZES]
    together = [shared.copy().start(prompt) for prompt in prompts]
    streams = [np.random.default_rng(row) for row in range(len(prompts))]
    ids: list[list[int]] = [[] for _ in prompts]
    for _ in range(60):
        for row, constraint in enumerate(together):
            ids[row] += walked(constraint, streams[row], 1)
    for row, prompt in enumerate(prompts):
        alone = Constraint(GRAMMAR, "visual").start(prompt)
        assert walked(alone, np.random.default_rng(row), 60) == ids[row]


def test_copies_are_independent_and_start_anew_forgets() -> None:
    prompt = GRAMMAR.render_prompt(formats.text_to_image("go"), SIZES[1])
    constraint = Constraint(GRAMMAR, "visual").start(prompt)
    other = constraint.copy()
    other.advance(VOCABULARY.vision[3])
    assert constraint.position == (0, 0, 0)
    assert other.position == (0, 0, 1)
    assert other.start(prompt).position == (0, 0, 0)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_positions_and_remaining_tokens_count_through_the_grid(latents: int, height: int, width: int) -> None:
    size = VideoSize(height=height, width=width, num_frames=4 * latents, fps=8)
    prompt = GRAMMAR.render_prompt(formats.text_to_video("go"), size)
    constraint = Constraint(GRAMMAR, "visual").start(prompt)
    grid = whole_grid(size)[:-1]
    cells = []
    for done, token_id in enumerate(grid):
        assert constraint.in_grid
        assert constraint.size == (latents, height, width)
        assert constraint.remaining_grid_tokens == len(grid) - done
        if token_id in VOCABULARY.vision:
            cells.append(constraint.position)
        constraint.advance(token_id)
    assert cells == list(np.ndindex(latents, height, width))
    assert (constraint.in_grid, constraint.position, constraint.size) == (False, None, None)
    assert constraint.remaining_grid_tokens == 0


@pytest.mark.parametrize("mode", ["visual", "free"])
@pytest.mark.parametrize("size", SIZES)
def test_forced_runs_are_what_is_forced_later(size: ImageSize | VideoSize, mode: Mode) -> None:
    prompt = GRAMMAR.render_prompt(formats.text_to_image("go"), size)
    constraint = Constraint(GRAMMAR, mode, sizes=[size]).start(prompt)
    end = VOCABULARY.image_end
    while constraint.in_grid:
        assert constraint.forced_run() == ()
        constraint.advance(VOCABULARY.vision[0])
        run = constraint.forced_run()
        for token_id in run:
            assert constraint.legal().forced == token_id
            constraint.advance(token_id)
    assert run == (VOCABULARY.eol, VOCABULARY.eof, end, *((VOCABULARY.eos,) if mode == "visual" else ()))
    assert constraint.done == (mode == "visual")
    assert constraint.forced_run() == ()


def test_the_text_of_a_single_admissible_size_is_forced_as_a_whole() -> None:
    size = SIZES[4]
    constraint = Constraint(GRAMMAR, sizes=[size]).start([VOCABULARY.bos])
    constraint.advance(VOCABULARY.image_start)
    opening = GRAMMAR.render_prompt(Document((), bos=False), size)[1:]
    assert list(constraint.forced_run()) == opening.tolist()


def test_numpy_ids_are_taken_like_integers() -> None:
    constraint = Constraint(GRAMMAR, "visual").start(GRAMMAR.render_prompt(Document(()), SIZES[1]))
    constraint.advance(np.int64(VOCABULARY.vision[5]))  # type: ignore[arg-type]
    assert constraint.position == (0, 0, 1)


def test_what_is_not_legal_is_not_taken() -> None:
    constraint = Constraint(GRAMMAR, "visual").start(GRAMMAR.render_prompt(Document(()), SIZES[1]))
    with pytest.raises(AssertionError, match="not legal"):
        constraint.advance(VOCABULARY.eol)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_prompt_may_end_anywhere_in_an_image(latents: int, height: int, width: int, data: st.DataObject) -> None:
    film = video(latents, height, width)
    ids = GRAMMAR.render(Document((image(1, 2), Text("go"), film))).token_ids.tolist()
    opening = len(ids) - 1 - ids[::-1].index(VOCABULARY.image_start)
    kept = data.draw(st.integers(opening + 1, len(ids) - 2))
    constraint = Constraint(GRAMMAR, "visual").start(ids[:kept])
    for place in range(kept, len(ids)):
        assert ids[place] in constraint.legal()
        if VOCABULARY.image_token in ids[opening:place]:
            assert legal_set(constraint) == reference(ids[:place], kept, "visual", [GRAMMAR.size_of(film)])
        constraint.advance(ids[place])
    assert constraint.done


def test_video_prediction_goes_on_after_the_given_frames() -> None:
    size = VideoSize(height=2, width=2, num_frames=12, fps=8)
    prompt = GRAMMAR.render_prompt(formats.video_prediction(video(3, 2, 2), 2), size)
    constraint = Constraint(GRAMMAR, "visual").start(prompt)
    assert constraint.position == (2, 0, 0)
    assert constraint.remaining_grid_tokens == 2 * 3 + 1


def opened(text: str, *ids: int) -> list[int]:
    return [VOCABULARY.image_start, *GRAMMAR.text_tokenizer.encode(text), VOCABULARY.image_token, *ids]


@pytest.mark.parametrize(
    ("mode", "ids", "message"),
    [
        ("visual", [VOCABULARY.bos], "announces no image"),
        ("visual", GRAMMAR.render(Document((image(1, 1),))).token_ids.tolist(), "announces no image"),
        ("text", opened("2*2"), "ends inside an image"),
        ("visual", opened("2x2"), "size text '2x2'"),
        ("visual", opened("2*2", VOCABULARY.eol), "breaks its form after 0 tokens"),
        ("visual", opened("2*2", *[VOCABULARY.vision[0]] * 3), "breaks its form after 2 tokens"),
        ("visual", opened("1*1", VOCABULARY.vision[0], VOCABULARY.eol, VOCABULARY.eol), "breaks its form after 2"),
        (
            "visual",
            opened("1*1", VOCABULARY.vision[0], VOCABULARY.eol, *[VOCABULARY.eof] * 2),
            "breaks its form after 3",
        ),
        ("visual", [VOCABULARY.image_start, VOCABULARY.eol, VOCABULARY.image_token], "is not text"),
        ("free", [VOCABULARY.image_start, *GRAMMAR.text_tokenizer.encode("0*")], "cannot become"),
        ("other", [], "mode is 'text', 'free' or 'visual'"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(mode: Mode, ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Constraint(GRAMMAR, mode).start(ids)


@given(st.lists(st.integers(0, VOCABULARY.size - 1), max_size=30), st.sampled_from(["text", "free", "visual"]))
def test_any_prompt_starts_or_is_refused(ids: list[int], mode: Mode) -> None:
    try:
        constraint = Constraint(GRAMMAR, mode).start(ids)
    except InputError:
        return
    assert constraint.legal().ranges


def test_steps_in_a_grid_build_nothing() -> None:
    """The legal sets inside a grid are the same three objects at every step, whatever the vocabulary's size."""
    constraint = Constraint(GRAMMAR, "visual").start(GRAMMAR.render_prompt(Document(()), SIZES[4]))
    seen = {}
    while constraint.in_grid:
        legal = constraint.legal()
        seen[id(legal)] = legal
        constraint.advance(legal.ranges[0][0])
    assert sorted(legal.ranges[0][0] for legal in seen.values()) == sorted(
        [VOCABULARY.vision[0], VOCABULARY.eol, VOCABULARY.eof]
    )
