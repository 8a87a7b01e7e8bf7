"""Judgements: kept, counted by formulas with known results, and exported as what DPO reads."""

import json
import sqlite3
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny_checkpoint

from rhea import media
from rhea.documents import formats
from rhea.documents.document import Image, Video
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.errors import InputError
from rhea.generation.model import Rhea
from rhea.studio.agreement import agreement_of
from rhea.studio.export import Corrections, export, preferred
from rhea.studio.shelf import Piece
from rhea.studio.store import _VERSIONS, Comparison, Rating, Sample, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "folder" / "judgements.db")


def some(count: int = 2, prompt: str = "a red circle") -> list[Sample]:
    return [
        Sample(prompt=prompt, media=b"png %d" % index, suffix=".png", token_ids=(7, index), settings={"seed": index})
        for index in range(count)
    ]


def added(store: Store, count: int = 2, prompt: str = "a red circle") -> Comparison:
    return store.add(prompt, some(count, prompt))


def test_a_comparison_comes_back_as_it_was_also_from_a_new_store(store: Store) -> None:
    kept = added(store, 3)
    again = Store(store.path).comparison(kept.id)
    assert again == kept
    assert [sample.token_ids for sample in again.samples] == [(7, 0), (7, 1), (7, 2)]
    assert [sample.settings["seed"] for sample in again.samples] == [0, 1, 2]
    assert again.samples[1].media == b"png 1"


def test_the_next_comparison_is_the_oldest_that_one_has_not_judged(store: Store) -> None:
    first, second = added(store), added(store, prompt="two squares")
    store.judge(first.id, "Ada", None)
    assert store.next_for("Ada") == second
    assert store.next_for("Grace") == first
    store.judge(second.id, " Ada ", second.samples[0].id)
    assert store.next_for("Ada") is None


def test_a_second_judgement_replaces_the_first_with_its_ratings(store: Store) -> None:
    kept = added(store)
    one, two = (sample.id for sample in kept.samples)
    store.judge(kept.id, "Ada", one, {one: Rating(text_match=5, look=4), two: Rating(look=2)})
    store.judge(kept.id, "Ada", two, {two: Rating(text_match=1)})
    (found,) = store.judgements()
    assert (found["best"], found["ratings"]) == (two, [{"sample": two, "text_match": 1, "look": None}])
    assert store.counts() == {"comparisons": 1, "judgements": 1, "captions": 0, "answers": 0}


def test_preferences_pair_the_best_with_each_other_one(store: Store) -> None:
    kept, tied = added(store, 3), added(store)
    store.judge(kept.id, "Ada", kept.samples[1].id)
    store.judge(tied.id, "Ada", None)
    found = list(store.preferences())
    assert [(each["chosen_ids"], each["rejected_ids"]) for each in found] == [([7, 1], [7, 0]), ([7, 1], [7, 2])]
    assert {each["prompt"] for each in found} == {"a red circle"}
    assert found[0]["chosen_settings"] == {"seed": 1}
    assert len(list(store.judgements())) == 2, "a tie teaches no preference, but it was judged"


def test_captions_are_corrected_once_per_annotator(store: Store) -> None:
    sample = added(store).samples[0]
    store.correct(sample.id, "Ada", "a red disc")
    store.correct(sample.id, "Ada", "  一个红色圆盘 ")
    store.correct(sample.id, "Grace", "a circle")
    told = [(each["annotator"], each["prompt"], each["caption"], each["token_ids"]) for each in store.captions()]
    assert told == [("Ada", "a red circle", "一个红色圆盘", [7, 0]), ("Grace", "a red circle", "a circle", [7, 0])]


def test_the_export_holds_records_and_the_files_they_name(store: Store, tmp_path: Path) -> None:
    kept = added(store)
    store.judge(kept.id, "Ada", kept.samples[1].id, {kept.samples[1].id: Rating(text_match=5, look=3)})
    store.correct(kept.samples[0].id, "Ada", "红色")
    export(store, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        lines = {name: archive.read(f"{name}.jsonl").decode() for name in ("preferences", "judgements", "captions")}
        preference = json.loads(lines["preferences"])
        assert archive.read(preference["chosen"]) == b"png 1"
        assert archive.read(preference["rejected"]) == b"png 0"
    assert "红色" in lines["captions"]
    assert json.loads(lines["judgements"])["ratings"][0]["look"] == 3


def test_what_is_kept_without_a_comparison_is_kept_once(store: Store) -> None:
    (one, other) = some()
    assert store.keep(one) == store.keep(one) == 1
    assert store.keep(other) == 2
    assert store.keep(replace(one, prompt="two squares")) == 3
    assert store.next_for("Ada") is None
    assert [sample.media for sample in store.samples()] == [b"png 0", b"png 1", b"png 0"]


def test_answers_are_corrected_once_per_question_and_annotator(store: Store) -> None:
    sample, turns = store.keep(some()[0]), [("How many?", "two"), ("What colour?", "red")]
    store.correct_answer(sample, "Ada", turns, "blue")
    store.correct_answer(sample, "Ada", turns, " 蓝色 ")
    store.correct_answer(sample, "Grace", turns[:1], "one")
    store.correct_answer(None, "Ada", [("Who are you?", "a circle")], "a model")
    store.correct_answer(None, "Ada", [("Who are you?", "a square")], "Rhea")
    first, second, third = store.answers()
    assert first == {
        "file": "samples/1.png",
        "turns": [["How many?", "two"]],
        "question": "What colour?",
        "original": "red",
        "answer": "蓝色",
        "annotator": "Ada",
    }
    assert (second["annotator"], second["turns"], second["answer"]) == ("Grace", [], "one")
    assert (third["file"], third["original"], third["answer"]) == (None, "a square", "Rhea")
    assert store.counts()["answers"] == 3


def test_corrections_come_back_as_documents_to_train_on(store: Store, tmp_path: Path) -> None:
    """Rendered by the grammar after encoding, they are what the same pixels and words give."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 24, 3), dtype=np.uint8)
    frames = np.stack([pixels, pixels[::-1], pixels[:, ::-1], pixels, pixels])
    kept = [
        Piece(pixels=pixels, title="noise.png").sample("rhea"),
        Piece(pixels=frames, fps=8.0, title="noise.mp4").sample("rhea"),
    ]
    picture, film = map(store.keep, kept)
    store.correct(picture, "Ada", "a\u2028red circle")
    store.correct_answer(film, "Ada", [("How many?", "one"), ("make it blue", "no")], "two")
    store.correct_answer(None, "Ada", [("How many?", "one")], "two")
    export(store, tmp_path / "out.zip")
    found, tiny = Corrections(tmp_path / "out.zip"), Rhea(tiny_checkpoint())
    assert len(found) == 3
    (tmp_path / "film.mp4").write_bytes(kept[1].media)
    shown = media.read_film(tmp_path / "film.mp4")
    expected = [
        formats.captioning(Image(pixels=pixels), "a\u2028red circle"),
        formats.question_answering(
            Video(frames=shown.frames, fps=8.0), [("How many?", "one"), ("make it blue", "two")]
        ),
        formats.question_answering(None, "How many?", "two"),
    ]
    for index, document in enumerate(expected):
        for each in (found.document(index), found.document(index + 3)):
            one, other = (tiny.completer.grammar.render(d.encoded(tiny.prompts.codec)) for d in (each, document))
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_array_equal(one.loss_weights, other.loss_weights)
    loader = PackedLoader(
        PackedLoaderConfig(rows=2, seq_len=128, too_long="drop"),
        Mixture([WeightedSource(name="corrected", source=found, weight=1.0)], seed=0),
        tiny.completer.grammar,
        tiny.prompts.codec,
    )
    assert loader.next_batch().token_ids.shape == (2, 128)


def test_preferences_come_back_as_pairs_to_learn_from(store: Store, tmp_path: Path) -> None:
    """The tokens before both are those that the model was given when it drew them."""
    tiny = Rhea(tiny_checkpoint())
    picture = {"size": "32x16", "model": "rhea", "guidance_scale": 2.0}
    film = {"num_frames": 5, "fps": 4.0}
    for settings in (picture, film):
        kept = store.add("a red circle", [replace(each, settings=settings) for each in some()])
        store.judge(kept.id, "Ada", kept.samples[1].id)
    export(store, tmp_path / "out.zip")
    asked = [
        tiny.prompts.draw("a red circle", size="32x16"),
        tiny.prompts.draw("a red circle", video=True, num_frames=5, fps=4.0),
    ]
    expected = [tuple(tiny.completer.grammar.render_prompt(each.document, each.next)) for each in asked]
    assert [each.prompt_ids for each in preferred(tmp_path / "out.zip", tiny)] == expected
    assert [(e.chosen_ids, e.rejected_ids) for e in preferred(tmp_path / "out.zip", tiny)] == [((7, 1), (7, 0))] * 2
    strange = store.add("a red circle", [replace(each, token_ids=(10**6, index)) for index, each in enumerate(some())])
    store.judge(strange.id, "Ada", strange.samples[0].id)
    export(store, tmp_path / "out.zip")
    with pytest.raises(InputError, match="comparison 3: needs prompt_ids, chosen_ids"):
        preferred(tmp_path / "out.zip", tiny)


def test_what_is_no_export_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "notes.zip").write_text("no archive")
    for name in ("notes.zip", "missing.zip"):
        with pytest.raises(InputError, match="is no export"):
            Corrections(tmp_path / name)
        with pytest.raises(InputError, match="is no export"):
            preferred(tmp_path / name, Rhea(tiny_checkpoint()))
    export(store, tmp_path / "empty.zip")
    with pytest.raises(InputError, match="nothing was corrected"):
        Corrections(tmp_path / "empty.zip")


def test_a_store_of_the_first_version_is_taken_further(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.executescript(f"{_VERSIONS[0]} PRAGMA user_version = 1;")
        database.execute("INSERT INTO comparisons (prompt) VALUES ('a circle')")
    database.close()
    store = Store(tmp_path / "old.db")
    store.correct_answer(None, "Ada", [("How many?", "one")], "two")
    assert Store(tmp_path / "old.db").counts() == {"comparisons": 1, "judgements": 0, "captions": 0, "answers": 1}


def two(*pairs: str) -> list[dict[str, Any]]:
    return [{"Ada": pair[0], "Grace": pair[1]} for pair in pairs]


def test_cohens_kappa_of_two_annotators() -> None:
    """The textbook's table: 20 times both yes, 15 both no, 5 and 10 apart; 70 %, kappa 0.4."""
    found = agreement_of(two(*["yy"] * 20, *["yn"] * 5, *["ny"] * 10, *["nn"] * 15))
    assert (found.kind, found.comparisons, found.annotators) == ("Cohen", 50, 2)
    assert found.percent == pytest.approx(70)
    assert found.kappa == pytest.approx(0.4)


def test_fleiss_kappa_of_many_annotators() -> None:
    """The example of Fleiss' measure that is worked through most often: 10 subjects, 14 raters, 5 categories; 0.210."""
    table = """
        0 0 0 0 14 | 0 2 6 4 2 | 0 0 3 5 6 | 0 3 9 2 0 | 2 2 8 1 1
        7 7 0 0 0 | 3 2 6 3 0 | 2 5 3 2 2 | 6 5 2 1 0 | 0 2 2 3 7"""
    rows = [list(map(int, row.split())) for line in table.strip().splitlines() for row in line.split("|")]
    judged = [dict(enumerate(label for label, count in enumerate(counts) for _ in range(count))) for counts in rows]
    found = agreement_of([{str(name): label for name, label in labels.items()} for labels in judged])
    assert (found.kind, found.annotators) == ("Fleiss", 14)
    assert found.kappa == pytest.approx(0.210, abs=5e-4)
    assert found.percent == pytest.approx(37.8, abs=0.05)


def test_agreement_of_too_few_or_all_alike() -> None:
    assert agreement_of([]).percent is None
    alike = agreement_of(two("aa", "aa"))
    assert (alike.percent, alike.kappa) == (100, None), "chance would agree as well: kappa says nothing"
    assert agreement_of(two("ab", "ba")).kappa == pytest.approx(-1)


def test_agreement_looks_at_places_and_at_shared_comparisons_only(store: Store) -> None:
    first, second, alone = added(store), added(store), added(store)
    for kept, ada, grace in ((first, 0, 0), (second, 0, 1)):
        store.judge(kept.id, "Ada", kept.samples[ada].id)
        store.judge(kept.id, "Grace", kept.samples[grace].id)
    store.judge(alone.id, "Ada", None)
    found = store.agreement()
    assert (found.comparisons, found.percent, found.kind) == (2, 50, "Cohen")
    assert found.kappa == 0, "Ada always took the first, so Grace's habits alone explain what they share"


def test_what_the_store_refuses(store: Store, tmp_path: Path) -> None:
    kept, other = added(store), added(store)
    with pytest.raises(InputError, match="give two or more"):
        added(store, 1)
    with pytest.raises(InputError, match="is not in comparison"):
        store.judge(kept.id, "Ada", other.samples[0].id)
    with pytest.raises(InputError, match="a rating of 6"):
        store.judge(kept.id, "Ada", None, {kept.samples[0].id: Rating(look=6)})
    with pytest.raises(InputError, match="who judges"):
        store.judge(kept.id, "  ", None)
    with pytest.raises(InputError, match="no comparison 99"):
        store.judge(99, "Ada", None)
    with pytest.raises(InputError, match="no sample 99"):
        store.correct(99, "Ada", "a circle")
    with pytest.raises(InputError, match="no sample 99"):
        store.correct_answer(99, "Ada", [("How many?", "one")], "two")
    with pytest.raises(InputError, match="answer is empty"):
        store.correct_answer(None, "Ada", [("How many?", "one")], " ")
    with pytest.raises(InputError, match="caption is empty"):
        store.correct(kept.samples[0].id, "Ada", " ")
    assert store.counts()["judgements"] == 0, "what is refused leaves nothing behind"
    (tmp_path / "picture.db").write_bytes(b"no database at all, but long enough to be taken for one" * 30)
    with pytest.raises(InputError, match="cannot be used for judgements"):
        Store(tmp_path / "picture.db")
    with sqlite3.connect(tmp_path / "newer.db") as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(InputError, match="version 7"):
        Store(tmp_path / "newer.db")
