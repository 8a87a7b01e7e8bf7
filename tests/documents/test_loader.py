"""The loader: resumed from its few integers it continues bitwise, and it loses and repeats nothing."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from document_cases import VISION_SIZE, small_grammar

from rhea.documents import formats
from rhea.documents.document import Document, Image, Video
from rhea.documents.grammar import FINE_TUNING, LossWeights
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.documents.packing import Packed
from rhea.errors import InputError

GRAMMAR = small_grammar()
CONFIG = PackedLoaderConfig(rows=2, seq_len=120, group=5)


class Pictures:
    """Captions and pictures of random sizes, as codes or as pixels."""

    def __init__(self, seed: int, largest: int = 6, pixels: bool = False) -> None:
        self.seed, self.largest, self.pixels = seed, largest, pixels
        self.made: list[int] = []

    def document(self, index: int) -> Document:
        self.made.append(index)
        random = np.random.default_rng([self.seed, index])
        height, width = random.integers(1, self.largest + 1, 2)
        if self.pixels:
            pixels = random.integers(0, VISION_SIZE - 9, (height, width, 3), dtype=np.uint8)
            return formats.text_to_image("a" * int(random.integers(0, 9)), Image(pixels))
        codes = random.integers(0, VISION_SIZE, (height, width))
        return formats.text_to_image("a" * int(random.integers(0, 9)), Image(codes=codes))


class Words:
    def __init__(self, length: int = 10) -> None:
        self.length = length

    def document(self, index: int) -> Document:
        return formats.language(f"{index} " * self.length)


class GroupCodec:
    """Codes depend on which pictures are encoded together, as the rounding of a real model may."""

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        together = int(sum(int(picture[0, 0, 0]) for picture in pictures)) % 9
        return [picture[:, :, 0].astype(np.int64) + together for picture in pictures]

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        return frames[::4, :, :, 0].astype(np.int64)


def mixture(*sources: Any, seed: int = 1) -> Mixture:
    entries = [
        WeightedSource(name=f"s{number}", source=source, weight=1 / (1 + number))
        for number, source in enumerate(sources)
    ]
    return Mixture(entries, seed=seed)


def same(one: Packed, other: Packed) -> bool:
    names = ("token_ids", "labels", "loss_weights", "document_ids", "positions")
    return one.origins == other.origins and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in names
    )


@pytest.mark.parametrize("too_long", ["drop", "cut"])
@pytest.mark.parametrize("pixels", [False, True])
def test_resumed_equals_uninterrupted_after_every_batch(too_long: Any, pixels: bool) -> None:
    loss = LossWeights(prompt=0.5)
    config = PackedLoaderConfig(
        rows=2, seq_len=60, group=5, too_long=too_long, loss=loss, code_dropout=0.5, beginnings=0.3
    )

    def loader() -> PackedLoader:
        mixed = mixture(Pictures(0, largest=9, pixels=pixels), Words(20))
        return PackedLoader(config, mixed, GRAMMAR, GroupCodec() if pixels else None)

    one = loader()
    states, batches = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(one.state_dict())))
        batches.append(one.next_batch())
    assert one.dropped > 0
    for place, state in enumerate(states):
        other = loader()
        other.load_state_dict(state)
        for batch in batches[place : place + 3]:
            assert same(other.next_batch(), batch)
        assert other.dropped == loader_dropped(states, place + 3, one)


def loader_dropped(states: list[dict[str, Any]], place: int, last: PackedLoader) -> int:
    return states[place]["dropped"] if place < len(states) else last.dropped


def test_state_is_a_few_integers() -> None:
    loader = PackedLoader(CONFIG, mixture(Pictures(0), Words()), GRAMMAR)
    for _ in range(20):
        loader.next_batch()
    values = [
        value for entry in loader.state_dict().values() for value in (entry if isinstance(entry, list) else [entry])
    ]
    assert all(type(value) is int for value in values)
    assert len(values) < 60


def test_every_document_comes_whole_and_once() -> None:
    loader = PackedLoader(CONFIG, mixture(Pictures(0), Words()), GRAMMAR)
    names: list[str] = []
    for _ in range(40):
        batch = loader.next_batch()
        for row, origins in enumerate(batch.origins):
            assert batch.document_ids[row].max() + 1 == len(origins)
            for number, name in enumerate(origins):
                source, index = name.split(":")
                document = (Pictures(0) if source == "s0" else Words()).document(int(index))
                ids = batch.token_ids[row][batch.document_ids[row] == number]
                assert ids.tolist() == GRAMMAR.render(document).token_ids.tolist()
        names += [name for origins in batch.origins for name in origins]
    assert len(set(names)) == len(names)
    waiting = {entry.name for entry in loader._waiting}
    for source in ("s0", "s1"):
        given = {name for name in {*names, *waiting} if name.startswith(source)}
        assert given == {f"{source}:{index}" for index in range(len(given))}


def test_rows_are_well_filled_and_none_waits_for_long() -> None:
    loader = PackedLoader(PackedLoaderConfig(rows=4, seq_len=256), mixture(Pictures(0), Words()), GRAMMAR)
    filled = []
    for _ in range(30):
        filled.append((loader.next_batch().document_ids >= 0).mean())
        assert loader._next - loader._waiting[0].number < 5 * loader.config.group
    assert np.mean(filled) > 0.95


def test_resuming_makes_only_the_groups_that_are_needed() -> None:
    source = Pictures(0)
    loader = PackedLoader(CONFIG, mixture(source), GRAMMAR)
    for _ in range(50):
        loader.next_batch()
    fresh = Pictures(0)
    resumed = PackedLoader(CONFIG, mixture(fresh), GRAMMAR)
    resumed.load_state_dict(loader.state_dict())
    assert len(fresh.made) < 40 < len(source.made)


def test_loss_weights_are_those_of_the_config() -> None:
    config = PackedLoaderConfig(rows=1, seq_len=200, loss=FINE_TUNING)
    batch = PackedLoader(config, mixture(Pictures(0)), GRAMMAR).next_batch()
    learned = batch.labels[batch.loss_weights > 0]
    assert not GRAMMAR.vocabulary.is_text(learned).all()
    caption_ids = GRAMMAR.text_tokenizer.encode("aaa")
    assert not np.isin(learned, caption_ids).any()


class Edits:
    def document(self, index: int) -> Document:
        codes = np.random.default_rng([3, index]).integers(0, VISION_SIZE, (2, 4, 5))
        return formats.editing([Image(codes=codes[0])], "turn", Image(codes=codes[1]))


def test_code_dropout_are_learned_but_not_seen() -> None:
    def batches(hidden: float) -> list[Packed]:
        config = PackedLoaderConfig(rows=2, seq_len=200, loss=LossWeights(vision=0.3, prompt=0.1), code_dropout=hidden)
        loader = PackedLoader(config, mixture(Edits(), Pictures(0)), GRAMMAR)
        return [loader.next_batch() for _ in range(12)]

    plain, hidden, always = batches(0.0), batches(0.5), batches(1.0)
    assert all(same(one, other) for one, other in zip(hidden, batches(0.5), strict=True))
    vision, shares = GRAMMAR.vocabulary.is_vision, []
    for seen, changed in zip(plain + plain, hidden + always, strict=True):
        assert np.array_equal(changed.labels, seen.labels)
        away = changed.token_ids != seen.token_ids
        assert (changed.token_ids[away] == GRAMMAR.vocabulary.pad).all()
        own_weights = np.pad(seen.loss_weights, ((0, 0), (1, 0)))[:, :-1]
        targets = vision(seen.token_ids) & np.isclose(own_weights, 0.3)
        assert not (away & ~targets).any()  # texts, sources of edits and structure stay
        for row in range(2):
            for document in range(seen.document_ids[row].max() + 1):
                mine = targets[row] & (seen.document_ids[row] == document)
                shares.append(away[row][mine].mean())
    half, whole = np.split(np.array(shares), 2)
    assert 0.3 < (half > 0).mean() < 0.6
    assert (whole > 0).mean() > 0.8
    assert 0.4 < whole.mean() < 0.6
    assert whole.std() > 0.2  # a share of its own for each document
    with pytest.raises(InputError, match=r"loss\.prompt below 1"):
        PackedLoader(PackedLoaderConfig(rows=1, seq_len=9, code_dropout=0.5), mixture(Edits()), GRAMMAR)


class Drawings:
    def document(self, index: int) -> Document:
        codes = np.random.default_rng([4, index]).integers(0, VISION_SIZE, (6, 3))
        return formats.text_to_image(f"{index}", Image(codes=codes))


def test_beginnings_end_with_one_of_the_first_rows_that_are_drawn() -> None:
    sources = {"s0": Drawings(), "s1": Edits(), "s2": Words(20)}

    def documents(share: float) -> dict[str, np.ndarray]:
        config = PackedLoaderConfig(rows=2, seq_len=200, loss=LossWeights(prompt=0.1), beginnings=share)
        loader = PackedLoader(config, mixture(*sources.values()), GRAMMAR)
        found = {}
        for batch in (loader.next_batch() for _ in range(12)):
            for row, names in enumerate(batch.origins):
                for place, name in enumerate(names):
                    found[name] = batch.token_ids[row][batch.document_ids[row] == place]
        return found

    whole, begun, some = documents(0.0), documents(1.0), documents(0.5)
    kept: dict[str, list[int]] = {"s0": [], "s1": []}
    for name, ids in begun.items():
        source, index = name.split(":")
        full = GRAMMAR.render(sources[source].document(int(index))).token_ids
        assert np.array_equal(ids, full[: len(ids)])
        if source == "s2":
            assert len(ids) == len(full)  # nothing is drawn in it
            continue
        assert ids[-1] == GRAMMAR.vocabulary.eol
        source_rows = 4 if source == "s1" else 0  # what is given of an edit stays whole
        kept[source].append(int((ids == GRAMMAR.vocabulary.eol).sum()) - source_rows)
    assert set(kept["s0"]) == {1, 2, 3}  # of six rows
    assert set(kept["s1"]) == {1, 2}  # of four
    assert len(begun) > 1.3 * len(whole)
    shortened = [ids[-1] == GRAMMAR.vocabulary.eol for name, ids in some.items() if not name.startswith("s2")]
    assert 0.3 < np.mean(shortened) < 0.7
    with pytest.raises(InputError, match=r"beginnings.*loss\.prompt below 1"):
        PackedLoader(PackedLoaderConfig(rows=1, seq_len=9, beginnings=0.5), mixture(Edits()), GRAMMAR)


def test_films_and_pictures_are_encoded() -> None:
    class Films:
        def document(self, index: int) -> Document:
            frames = np.full((6, 2, 2, 3), index % VISION_SIZE, dtype=np.uint8)
            return formats.text_to_video("go", Video(frames, fps=8))

    batch = PackedLoader(CONFIG, mixture(Films()), GRAMMAR, GroupCodec()).next_batch()
    ids = batch.token_ids[0][batch.document_ids[0] == 0]
    film = GRAMMAR.parse(ids).segments[-1]
    assert isinstance(film, Video)
    assert (film.num_frames, film.fps) == (6, 8.0)


def test_documents_that_are_too_long_are_refused_by_name() -> None:
    loader = PackedLoader(PackedLoaderConfig(rows=1, seq_len=30), mixture(Words(40)), GRAMMAR)
    with pytest.raises(InputError, match=r"document s0:0 has \d+ tokens, a row 30"):
        loader.next_batch()


def test_a_source_of_nothing_but_long_documents_is_noticed() -> None:
    loader = PackedLoader(PackedLoaderConfig(rows=1, seq_len=30, too_long="drop"), mixture(Words(40)), GRAMMAR)
    with pytest.raises(InputError, match="are longer than 30 tokens"):
        loader.next_batch()


def test_cut_documents_lose_nothing() -> None:
    config = PackedLoaderConfig(rows=3, seq_len=30, too_long="cut", group=2)
    loader = PackedLoader(config, mixture(Words(40)), GRAMMAR)
    ids: dict[str, list[int]] = {}
    for _ in range(10):
        batch = loader.next_batch()
        for row, origins in enumerate(batch.origins):
            for number, name in enumerate(origins):
                ids.setdefault(name, []).extend(batch.token_ids[row][batch.document_ids[row] == number].tolist())
    assert loader.dropped == 0
    expected = GRAMMAR.render(Words(40).document(0)).token_ids.tolist()
    assert ids["s0:0"] == expected


def test_a_document_without_tokens_is_refused() -> None:
    class Empty:
        def document(self, index: int) -> Document:
            return Document((), bos=False, eos=False)

    with pytest.raises(InputError, match="document s0:0 has no tokens"):
        PackedLoader(CONFIG, mixture(Empty()), GRAMMAR).next_batch()


@pytest.mark.parametrize("change", ["seed", "weights", "seq_len", "loss"])
def test_a_state_of_another_setup_is_refused(change: str) -> None:
    state = PackedLoader(CONFIG, mixture(Words(), Words()), GRAMMAR).state_dict()
    mixed = {"seed": mixture(Words(), Words(), seed=2), "weights": mixture(Words())}.get(change)
    config = {
        "seq_len": PackedLoaderConfig(rows=2, seq_len=121, group=5),
        "loss": PackedLoaderConfig(rows=2, seq_len=120, group=5, loss=FINE_TUNING),
    }.get(change, CONFIG)
    with pytest.raises(InputError, match="belongs to other"):
        PackedLoader(config, mixed or mixture(Words(), Words()), GRAMMAR).load_state_dict(state)


def test_the_number_of_rows_may_change_on_resume() -> None:
    loader = PackedLoader(CONFIG, mixture(Pictures(0)), GRAMMAR)
    loader.next_batch()
    wider = PackedLoader(PackedLoaderConfig(rows=4, seq_len=120, group=5), mixture(Pictures(0)), GRAMMAR)
    wider.load_state_dict(loader.state_dict())
    both = [loader.next_batch(), loader.next_batch()]
    assert np.array_equal(wider.next_batch().token_ids, np.concatenate([batch.token_ids for batch in both]))


def test_a_source_that_is_not_pure_is_noticed_on_resume() -> None:
    class Fickle:
        length = 10

        def document(self, index: int) -> Document:
            return Words(self.length).document(index)

    source = Fickle()
    config = PackedLoaderConfig(rows=1, seq_len=60, group=5, too_long="drop")
    loader = PackedLoader(config, mixture(source), GRAMMAR)
    loader.next_batch()
    source.length = 99
    with pytest.raises(InputError, match="another document than before"):
        PackedLoader(config, mixture(source), GRAMMAR).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("fields", [{"rows": 0}, {"seq_len": 1}, {"group": 0}, {"too_long": "other"}])
def test_impossible_configs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PackedLoader(PackedLoaderConfig(**({"rows": 1, "seq_len": 9} | fields)), mixture(Words()), GRAMMAR)


def test_parts_make_every_document_once_and_resume() -> None:
    def parts() -> list[PackedLoader]:
        return PackedLoader(CONFIG, mixture(Pictures(1), Words(3)), GRAMMAR).parts(3)

    def names(batches: list[Packed]) -> list[str]:
        return [name for batch in batches for row in batch.origins for name in row]

    (whole,) = PackedLoader(CONFIG, mixture(Pictures(1), Words(3)), GRAMMAR).parts(1)
    made = list[str]()
    for loader, resumed in zip(parts(), parts(), strict=True):
        made += names([loader.next_batch() for _ in range(12)])
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert same(resumed.next_batch(), loader.next_batch())
    assert len(set(made)) == len(made)
    assert set(names([whole.next_batch() for _ in range(12)])) <= set(made)
    with pytest.raises(InputError, match="1 or more parts, not 0"):
        whole.parts(0)
