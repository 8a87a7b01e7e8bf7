"""What people judged: samples, who preferred which, ratings, captions and answers corrected by hand, in SQLite.

The decision that is not obvious: a comparison is kept apart from the judgements on it, so that a second annotator is
shown the very same samples and agreement can be counted (``agreement.py``). What is corrected need not be compared: any
picture or film of a visit is kept as a sample once somebody says what it really shows or what the right answer is.
"""

import contextlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhea.errors import InputError
from rhea.studio.agreement import Agreement, agreement_of

BEST, WORST = 5, 1
"""Of a rating."""
_VERSIONS = (
    """
CREATE TABLE samples (
    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, media BLOB NOT NULL, suffix TEXT NOT NULL, token_ids TEXT NOT NULL,
    settings TEXT NOT NULL, made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE comparisons (
    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE compared (
    comparison INTEGER NOT NULL REFERENCES comparisons, place INTEGER NOT NULL,
    sample INTEGER NOT NULL REFERENCES samples, PRIMARY KEY (comparison, place));
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY, comparison INTEGER NOT NULL REFERENCES comparisons, annotator TEXT NOT NULL,
    best INTEGER REFERENCES samples, made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, UNIQUE (comparison, annotator));
CREATE TABLE ratings (
    judgement INTEGER NOT NULL REFERENCES judgements ON DELETE CASCADE, sample INTEGER NOT NULL REFERENCES samples,
    text_match INTEGER, look INTEGER, PRIMARY KEY (judgement, sample));
CREATE TABLE captions (
    sample INTEGER NOT NULL REFERENCES samples, annotator TEXT NOT NULL, caption TEXT NOT NULL,
    made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (sample, annotator));
""",
    """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, sample INTEGER REFERENCES samples, turns TEXT NOT NULL, question TEXT NOT NULL,
    original TEXT NOT NULL, answer TEXT NOT NULL, annotator TEXT NOT NULL,
    made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE UNIQUE INDEX answered ON answers (coalesce(sample, 0), turns, question, annotator);
""",
)
"""What each version added to the one before."""
Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One result of a prompt."""

    prompt: str
    media: bytes
    """The picture or film as a file."""
    suffix: str
    """Of that file: ".png" or ".mp4"."""
    token_ids: tuple[int, ...]
    settings: dict[str, Any]
    id: int = 0
    """Its number in the store; 0 before it is there."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples of one prompt that are to be judged side by side."""

    id: int
    prompt: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Rating:
    """From 1 to 5; None if it was not given."""

    text_match: int | None = None
    look: int | None = None


@dataclass(eq=False)
class Store:
    """The file; each call opens it anew, so that any thread may call. InputError if it is no store of ours."""

    path: Path

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                for number, script in list(enumerate(_VERSIONS, 1))[version:]:
                    database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error as error:
            raise InputError(f"{self.path} cannot be used for judgements: {error}") from None
        if version > len(_VERSIONS):
            raise InputError(f"{self.path} is of version {version}; this studio reads up to version {len(_VERSIONS)}")

    def add(self, prompt: str, samples: Sequence[Sample]) -> Comparison:
        """Keep samples of a prompt to be compared, at least two."""
        if len(samples) < 2:
            raise InputError(f"{len(samples)} samples cannot be compared: give two or more")
        with self._open() as database:
            number = database.execute("INSERT INTO comparisons (prompt) VALUES (?)", (prompt,)).lastrowid
            for place, sample in enumerate(samples):
                kept = _insert(database, sample)
                database.execute("INSERT INTO compared VALUES (?, ?, ?)", (number, place, kept))
        assert number is not None
        return self.comparison(number)

    def keep(self, sample: Sample) -> int:
        """Keep a sample that nothing is compared with, once; return its number."""
        query = "SELECT id FROM samples WHERE media = ? AND prompt = ? AND token_ids = ? ORDER BY id LIMIT 1"
        with self._open() as database:
            ids = json.dumps(sample.token_ids)
            found = database.execute(query, (sample.media, sample.prompt, ids)).fetchone()
            return _insert(database, sample) if found is None else found[0]

    def comparison(self, number: int) -> Comparison:
        """Return a comparison with its samples."""
        with self._open() as database:
            found = database.execute("SELECT prompt FROM comparisons WHERE id = ?", (number,)).fetchone()
            if found is None:
                raise InputError(f"there is no comparison {number}")
            query = (
                "SELECT prompt, media, suffix, token_ids, settings, id FROM samples JOIN compared ON sample = id "
                "WHERE comparison = ? ORDER BY place"
            )
            samples = tuple(map(_sample, database.execute(query, (number,))))
        return Comparison(id=number, prompt=found[0], samples=samples)

    def next_for(self, annotator: str) -> Comparison | None:
        """Return the oldest comparison that an annotator has not judged."""
        query = (
            "SELECT id FROM comparisons WHERE id NOT IN (SELECT comparison FROM judgements WHERE annotator = ?) "
            "ORDER BY id LIMIT 1"
        )
        with self._open() as database:
            found = database.execute(query, (_named(annotator),)).fetchone()
        return None if found is None else self.comparison(found[0])

    def judge(
        self, comparison: int, annotator: str, best: int | None, ratings: dict[int, Rating] | None = None
    ) -> None:
        """Keep a judgement: ``best`` is the number of a sample, None a tie. A second one replaces the first."""
        annotator, samples = _named(annotator), [sample.id for sample in self.comparison(comparison).samples]
        for number in [*(ratings or {}), *([] if best is None else [best])]:
            if number not in samples:
                raise InputError(f"sample {number} is not in comparison {comparison}, which has {samples}")
        for value in (value for rating in (ratings or {}).values() for value in (rating.text_match, rating.look)):
            if value is not None and not WORST <= value <= BEST:
                raise InputError(f"a rating of {value} is not between {WORST} and {BEST}")
        with self._open() as database:
            database.execute(
                "DELETE FROM judgements WHERE comparison = ? AND annotator = ?", (comparison, annotator)
            )  # and its ratings with it
            into = "INSERT INTO judgements (comparison, annotator, best) VALUES (?, ?, ?)"
            judgement = database.execute(into, (comparison, annotator, best)).lastrowid
            rows = [(judgement, sample, rating.text_match, rating.look) for sample, rating in (ratings or {}).items()]
            database.executemany("INSERT INTO ratings VALUES (?, ?, ?, ?)", rows)

    def correct(self, sample: int, annotator: str, caption: str) -> None:
        """Keep what an annotator says that a sample really shows; the latest counts."""
        if not caption.strip():
            raise InputError("the caption is empty: say what is to be seen")
        with self._open() as database:
            _check_sample(database, sample)
            into = "INSERT OR REPLACE INTO captions (sample, annotator, caption) VALUES (?, ?, ?)"
            database.execute(into, (sample, _named(annotator), caption.strip()))

    def correct_answer(self, sample: int | None, annotator: str, turns: Sequence[Turn], answer: str) -> None:
        """Keep what the last of some turns about a sample, or about nothing, should have been answered with."""
        if not answer.strip():
            raise InputError("the answer is empty: say what is right")
        *before, (question, original) = turns
        row = (sample, json.dumps(before, ensure_ascii=False), question, original, answer.strip(), _named(annotator))
        into = "INSERT OR REPLACE INTO answers (sample, turns, question, original, answer, annotator)"
        with self._open() as database:
            if sample is not None:
                _check_sample(database, sample)
            database.execute(f"{into} VALUES (?, ?, ?, ?, ?, ?)", row)

    def counts(self) -> dict[str, int]:
        """Return how many comparisons, judgements, and corrected captions and answers there are."""
        with self._open() as database:
            tables = ("comparisons", "judgements", "captions", "answers")
            return {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}

    def agreement(self) -> Agreement:
        """Count how alike the annotators judge."""
        with self._open() as database:
            rows = database.execute("SELECT comparison, annotator, best FROM judgements").fetchall()
            places = dict(database.execute("SELECT sample, place FROM compared"))
        judged: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        for comparison, annotator, best in rows:
            judged[comparison][annotator] = "tie" if best is None else places[best]
        return agreement_of([labels for labels in judged.values() if len(labels) > 1])

    def preferences(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each sample that lost to another: what DPO learns from. Ties teach no preference."""
        with self._open() as database:
            rows = database.execute(
                "SELECT comparison, annotator, best FROM judgements WHERE best IS NOT NULL ORDER BY id"
            ).fetchall()
        for number, annotator, best in rows:
            samples = {sample.id: sample for sample in self.comparison(number).samples}
            chosen = samples.pop(best)
            for rejected in samples.values():
                yield {
                    "prompt": chosen.prompt,
                    "chosen": file_name(chosen),
                    "rejected": file_name(rejected),
                    "chosen_ids": list(chosen.token_ids),
                    "rejected_ids": list(rejected.token_ids),
                    "chosen_settings": chosen.settings,
                    "rejected_settings": rejected.settings,
                    "comparison": number,
                    "annotator": annotator,
                }

    def judgements(self) -> Iterator[dict[str, Any]]:
        """Yield every judgement with its ratings, ties included."""
        with self._open() as database:
            rows = database.execute("SELECT id, comparison, annotator, best, made_at FROM judgements ORDER BY id")
            for number, comparison, annotator, best, made_at in rows.fetchall():
                rated = database.execute(
                    "SELECT sample, text_match, look FROM ratings WHERE judgement = ? ORDER BY sample", (number,)
                )
                ratings = [dict(zip(("sample", "text_match", "look"), row, strict=True)) for row in rated]
                yield {
                    "comparison": comparison,
                    "annotator": annotator,
                    "best": best,
                    "ratings": ratings,
                    "made_at": made_at,
                }

    def captions(self) -> Iterator[dict[str, Any]]:
        """Yield every caption that was corrected by hand, beside the prompt that its sample was made from."""
        query = (
            "SELECT prompt, media, suffix, token_ids, settings, id, caption, annotator FROM samples "
            "JOIN captions ON sample = id ORDER BY id, annotator"
        )
        with self._open() as database:
            for *row, caption, annotator in database.execute(query).fetchall():
                sample = _sample(row)
                yield {
                    "file": file_name(sample),
                    "prompt": sample.prompt,
                    "caption": caption,
                    "token_ids": list(sample.token_ids),
                    "annotator": annotator,
                }

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield every answer that was corrected by hand, with what was said before."""
        names = ("sample", "turns", "question", "original", "answer", "annotator")
        joined = "answers LEFT JOIN samples ON sample = samples.id ORDER BY answers.id"
        query = f"SELECT suffix, {', '.join(names)} FROM {joined}"
        with self._open() as database:
            rows = database.execute(query).fetchall()
        for suffix, sample, turns, *rest in rows:
            file = None if sample is None else f"samples/{sample}{suffix}"
            yield {"file": file, "turns": json.loads(turns), **dict(zip(names[2:], rest, strict=True))}

    def samples(self) -> Iterator[Sample]:
        """Yield all samples, in order."""
        with self._open() as database:
            query = "SELECT prompt, media, suffix, token_ids, settings, id FROM samples ORDER BY id"
            yield from map(_sample, database.execute(query))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield the database; what is done becomes true when the block ends without an error."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as database:
            database.execute("PRAGMA foreign_keys = ON")
            with database:
                yield database


def _insert(database: sqlite3.Connection, sample: Sample) -> int:
    row = (sample.prompt, sample.media, sample.suffix, json.dumps(sample.token_ids), json.dumps(sample.settings))
    into = "INSERT INTO samples (prompt, media, suffix, token_ids, settings) VALUES (?, ?, ?, ?, ?)"
    number = database.execute(into, row).lastrowid
    assert number is not None
    return number


def _check_sample(database: sqlite3.Connection, number: int) -> None:
    if database.execute("SELECT 1 FROM samples WHERE id = ?", (number,)).fetchone() is None:
        raise InputError(f"there is no sample {number}")


def _sample(row: Sequence[Any]) -> Sample:
    prompt, media, suffix, token_ids, settings, number = row
    return Sample(
        prompt=prompt,
        media=media,
        suffix=suffix,
        token_ids=tuple(json.loads(token_ids)),
        settings=json.loads(settings),
        id=number,
    )


def file_name(sample: Sample) -> str:
    """Return the name of a sample's file in an export."""
    return f"samples/{sample.id}{sample.suffix}"


def _named(annotator: str) -> str:
    name = " ".join(annotator.split())
    if not name:
        raise InputError("who judges? give a name")
    return name
