"""Judgements as a ZIP file of JSON lines and the files that they name; corrections and preferences back to train on.

What was preferred becomes pairs for DPO (``preferred``). What was corrected by hand becomes what training reads anyway:
a caption becomes ``formats.captioning``, an answer ``formats.question_answering`` with the turns before it, each with
the pixels of its file. ``Corrections`` is a source of such documents (``rhea.documents.mixture.Source``), so that a
loader can mix them with others.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rhea import media
from rhea.documents import formats
from rhea.documents.document import Document, Image, Video
from rhea.documents.pairs import Pair, pair
from rhea.errors import InputError
from rhea.generation.model import Rhea
from rhea.io import atomic_file
from rhea.studio.store import Store, file_name

RECORDS = ("preferences", "judgements", "captions", "answers")
"""Names of the files of JSON lines, and of the methods of ``Store`` that yield them."""


def export(store: Store, path: str | Path) -> None:
    """Write everything that a store holds."""
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in RECORDS:
            lines = io.StringIO()
            for record in getattr(store, name)():
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            archive.writestr(f"{name}.jsonl", lines.getvalue())
        for sample in store.samples():
            archive.writestr(file_name(sample), sample.media, zipfile.ZIP_STORED)


class Corrections:
    """The captions and answers of an export as documents with pixels, for ever in the same order."""

    def __init__(self, path: str | Path) -> None:
        """Read the records; InputError if the file is no export or nothing was corrected."""
        self.path = Path(path)
        self.records = _records(self.path, "captions") + _records(self.path, "answers")
        if not self.records:
            raise InputError(f"nothing was corrected in {self.path}: there is nothing to learn from it")

    def __len__(self) -> int:
        return len(self.records)

    def document(self, index: int) -> Document:
        """Return correction ``index``; after the last one the first one follows."""
        record = self.records[index % len(self.records)]
        visual = None if record["file"] is None else self._visual(record["file"])
        if "caption" in record:
            assert visual is not None
            return formats.captioning(visual, record["caption"])
        turns = [*map(tuple, record["turns"]), (record["question"], record["answer"])]
        return formats.question_answering(visual, turns)

    def _visual(self, name: str) -> Image | Video:
        with zipfile.ZipFile(self.path) as archive, tempfile.TemporaryDirectory() as folder:
            file = Path(archive.extract(name, folder))
            if not media.is_film(file):
                return Image(pixels=media.read_picture(file))
            film = media.read_film(file)
            return Video(frames=film.frames, fps=film.fps)


def preferred(path: str | Path, model: Rhea) -> list[Pair]:
    """Return the preferences of an export as pairs for DPO, the prompts rendered as ``model`` is asked.

    InputError if the file is no export, or holds tokens that the model does not know.
    """
    pairs = []
    for record in _records(Path(path), "preferences"):
        settings = record["chosen_settings"]
        asked = {name: settings[name] for name in ("size", "num_frames", "fps") if name in settings}
        prompt = model.prompts.draw(record["prompt"], video="num_frames" in asked, revise=False, **asked)
        prompt_ids = model.completer.grammar.render_prompt(prompt.document, prompt.next).tolist()
        where = f"{path}, comparison {record['comparison']}"
        pairs.append(pair(record | {"prompt_ids": prompt_ids}, where, model.completer.grammar.vocabulary.size))
    return pairs


def _records(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(f"{name}.jsonl").decode().split("\n")
        return [json.loads(line) for line in lines if line]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{path} is no export of the studio: {error}") from None
