"""What people judged: samples, who preferred which, ratings, and captions corrected by hand, in one SQLite file.

The decision that is not obvious: a comparison is kept apart from the judgements on it, so that a second annotator is
shown the very same samples and agreement can be counted. Agreement is given as the share of pairs of annotators that
chose alike, and as kappa, which takes chance away: Cohen's (1960) for two annotators, Fleiss' (1971) for more, each
comparison counted with as many judgements as it has.
"""

import contextlib
import io
import itertools
import json
import sqlite3
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhea.errors import InputError
from rhea.io import atomic_file

BEST, WORST = 5, 1
"""Of a rating."""
_VERSION = 1
_SCHEMA = """
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
"""


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


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike annotators judge; nothing can be said (None) while no comparison has two judgements."""

    comparisons: int
    """Those with at least two judgements."""
    annotators: int
    """Those who judged one of them."""
    percent: float | None
    """Of all pairs of judgements on one comparison, how many are alike."""
    kappa: float | None
    """1 is agreement throughout, 0 what chance would give; None as well if all judgements are the same."""
    kind: str
    """ "Cohen" or "Fleiss"."""


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
                if version == 0:
                    database.executescript(_SCHEMA)
                    database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise InputError(f"{self.path} cannot be used for judgements: {error}") from None
        if version not in (0, _VERSION):
            raise InputError(f"{self.path} is of version {version}; this studio reads version {_VERSION}")

    def add(self, prompt: str, samples: Sequence[Sample]) -> Comparison:
        """Keep samples of a prompt to be compared, at least two."""
        if len(samples) < 2:
            raise InputError(f"{len(samples)} samples cannot be compared: give two or more")
        with self._open() as database:
            number = database.execute("INSERT INTO comparisons (prompt) VALUES (?)", (prompt,)).lastrowid
            for place, sample in enumerate(samples):
                row = (
                    sample.prompt,
                    sample.media,
                    sample.suffix,
                    json.dumps(sample.token_ids),
                    json.dumps(sample.settings),
                )
                into = "INSERT INTO samples (prompt, media, suffix, token_ids, settings) VALUES (?, ?, ?, ?, ?)"
                kept = database.execute(into, row).lastrowid
                database.execute("INSERT INTO compared VALUES (?, ?, ?)", (number, place, kept))
        assert number is not None
        return self.comparison(number)

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
            if database.execute("SELECT 1 FROM samples WHERE id = ?", (sample,)).fetchone() is None:
                raise InputError(f"there is no sample {sample}")
            into = "INSERT OR REPLACE INTO captions (sample, annotator, caption) VALUES (?, ?, ?)"
            database.execute(into, (sample, _named(annotator), caption.strip()))

    def counts(self) -> dict[str, int]:
        """Return how many comparisons, judgements and corrected captions there are."""
        with self._open() as database:
            tables = ("comparisons", "judgements", "captions")
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
                    "chosen": _file_name(chosen),
                    "rejected": _file_name(rejected),
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
                    "file": _file_name(sample),
                    "prompt": sample.prompt,
                    "caption": caption,
                    "token_ids": list(sample.token_ids),
                    "annotator": annotator,
                }

    def export(self, path: str | Path) -> None:
        """Write a ZIP file of preferences.jsonl, judgements.jsonl, captions.jsonl and the samples as files."""
        with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("preferences", "judgements", "captions"):
                lines = io.StringIO()
                for record in getattr(self, name)():
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                archive.writestr(f"{name}.jsonl", lines.getvalue())
            with self._open() as database:
                query = "SELECT prompt, media, suffix, token_ids, settings, id FROM samples ORDER BY id"
                for sample in map(_sample, database.execute(query)):
                    archive.writestr(_file_name(sample), sample.media, zipfile.ZIP_STORED)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield the database; what is done becomes true when the block ends without an error."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as database:
            database.execute("PRAGMA foreign_keys = ON")
            with database:
                yield database


def agreement_of(judged: Sequence[dict[str, Any]]) -> Agreement:
    """Count agreement over comparisons, each a label by annotator, of at least two annotators."""
    annotators = {name for labels in judged for name in labels}
    kind = "Cohen" if len(annotators) == 2 else "Fleiss"
    pairs = [a == b for labels in judged for a, b in itertools.combinations(labels.values(), 2)]
    if not pairs:
        return Agreement(comparisons=0, annotators=0, percent=None, kappa=None, kind=kind)
    if kind == "Cohen":
        observed, expected = sum(pairs) / len(pairs), _chance_of_two(judged, sorted(annotators))
    else:
        observed, expected = _mean_of_comparisons(judged), _chance_of_all(judged)
    return Agreement(
        comparisons=len(judged),
        annotators=len(annotators),
        percent=100 * sum(pairs) / len(pairs),
        kappa=None if expected == 1 else (observed - expected) / (1 - expected),
        kind=kind,
    )


def _chance_of_two(judged: Sequence[dict[str, Any]], names: list[str]) -> float:
    """Return how often two annotators with these habits would agree by chance."""
    first, second = (Counter(labels[name] for labels in judged) for name in names)
    return sum(first[label] * second[label] for label in first) / len(judged) ** 2


def _mean_of_comparisons(judged: Sequence[dict[str, Any]]) -> float:
    """Return the share of pairs that agree, as the mean over comparisons."""
    shares = []
    for labels in judged:
        several = len(labels)
        alike = sum(count * (count - 1) for count in Counter(labels.values()).values())
        shares.append(alike / (several * (several - 1)))
    return sum(shares) / len(shares)


def _chance_of_all(judged: Sequence[dict[str, Any]]) -> float:
    """Return how often two judgements drawn from all would be alike."""
    labels = Counter(label for comparison in judged for label in comparison.values())
    total = labels.total()
    return sum((count / total) ** 2 for count in labels.values())


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


def _file_name(sample: Sample) -> str:
    return f"samples/{sample.id}{sample.suffix}"


def _named(annotator: str) -> str:
    name = " ".join(annotator.split())
    if not name:
        raise InputError("who judges? give a name")
    return name
