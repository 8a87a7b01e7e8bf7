"""Compare: samples of one prompt side by side, without saying how each was made, judged and rated by named annotators.

Judgements go to the ``Store``. Blind means that each annotator sees the samples in an order of their own, drawn from
name and comparison, and that settings are told only after the judgement is kept.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from rhea.errors import InputError
from rhea.serving.backend import Done, Draw, Partial, Sampling
from rhea.studio import show
from rhea.studio.desk import Desk
from rhea.studio.export import export
from rhea.studio.shelf import Piece
from rhea.studio.store import BEST, WORST, Comparison, Rating, Sample, Store
from rhea.studio.texts import say
from rhea.studio.work import MENDABLE, told, work

LETTERS = "ABCD"
"""Names of the samples, and so the most that can be compared."""
TIE = "tie"
_SCALES = "compare-guidance", "compare-other"


@dataclass
class Bench:
    """What one visitor is judging; changed in place."""

    comparison: Comparison | None = None
    order: tuple[Sample, ...] = ()
    """The samples as they are shown: A, B, ..."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """The components of a judgement."""

    best: gr.Radio
    groups: list[gr.Group]
    """One for each letter."""
    answers: list[Any]
    """Text match, look and caption of each letter, in order."""

    @property
    def outputs(self) -> list[Any]:
        return [self.best, *self.groups, *self.answers]

    def values(self, bench: Bench, language: str) -> list[Any]:
        """Return an empty form for the samples on the bench."""
        letters = LETTERS[: len(bench.order)]
        choices = [*((letter, letter) for letter in letters), (say(language, "tie"), TIE)]
        seen = [gr.update(visible=letter in letters) for letter in LETTERS]
        best = gr.update(choices=choices, value=None, visible=bool(letters))
        return [best, *seen, *([None, None, ""] * len(LETTERS))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judging:
    """What the buttons do."""

    desk: Desk
    store: Store
    form: _Form

    def _present(self, bench: Bench, language: str, text: str) -> tuple[Any, ...]:
        return show.status(text), _board(bench, language), *self.form.values(bench, language)

    def _refuse(self, text: str) -> tuple[Any, ...]:
        return show.error(text), *_skipped(self.form)

    async def new(
        self,
        bench: Bench,
        name: str,
        text: str,
        kind: str,
        number: int,
        seed: int | None,
        scale: float,
        other: float,
        language: str,
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Draw samples, telling how far they are, and lay them out."""
        if not name.strip() or not text.strip():
            yield self._refuse(say(language, "needs_annotator" if text.strip() else "needs_prompt"))
            return
        frames = self.desk.backend.info.num_frames if kind == "film" else None
        tasks = [
            Draw(
                prompt=text,
                num_frames=frames,
                revise=False,  # the pictures of a comparison are of the same words, or neither tells of the other
                sampling=Sampling(
                    guidance_scale=other if index % 2 else scale, seed=int(seed or 0), sample_index=index
                ),
            )
            for index in range(int(number))
        ]
        made: dict[int, Done] = {}
        try:
            async with contextlib.aclosing(work(self.desk.backend, tasks)) as news:
                async for fresh in news:
                    made |= {number: event for number, event in fresh.items() if isinstance(event, Done)}
                    behind = [event for event in fresh.values() if isinstance(event, Partial)]
                    for event in behind[:1]:
                        far = say(language, "drawing", done=event.rows_done, rows=event.rows)
                        yield show.status(far), *_skipped(self.form)
            samples = [sample_of(task, made[index], self.desk) for index, task in enumerate(tasks)]
            _lay_out(bench, self.store.add(text, samples), name)
        except MENDABLE as error:
            yield self._refuse(told(error, language))
            return
        yield self._present(bench, language, say(language, "judge_now"))

    def take_next(self, bench: Bench, name: str, language: str) -> tuple[Any, ...]:
        """Lay out what this annotator has not judged."""
        if not name.strip():
            return self._refuse(say(language, "needs_annotator"))
        comparison = self.store.next_for(name)
        if comparison is None:
            return self._refuse(say(language, "none_left"))
        _lay_out(bench, comparison, name)
        return self._present(bench, language, say(language, "judge_now"))

    def judge(self, bench: Bench, name: str, language: str, best: str | None, *answers: Any) -> tuple[str, str, str]:
        """Keep a judgement, and tell how each sample was made."""
        try:
            keep_judgement(self.store, bench, name, best, answers, language)
        except InputError as error:
            return show.error(told(error, language)), _board(bench, language), agreement(self.store, language)
        shown = _board(bench, language, told=True)
        bench.comparison, bench.order = None, ()  # what is told can no longer be judged blind
        return show.status(say(language, "judged")), shown, agreement(self.store, language)

    def write(self) -> Iterator[Any]:
        """Export everything."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "judgements.zip"
            export(self.store, path)
            yield gr.update(value=str(path), visible=True)  # copied by Gradio before the folder is gone


def build(desk: Desk) -> None:
    """Add the tab; nothing without a store."""
    store = desk.store
    if store is None:
        return
    wear = desk.wardrobe.wear
    with wear(gr.Tab(id="compare", elem_id="tab-compare"), label="compare") as tab:
        wear(gr.Markdown(), value="compare_help")
        annotator = wear(gr.Textbox(elem_id="annotator"), label="annotator")
        with wear(gr.Accordion(open=True), label="new_comparison"):
            prompt = wear(gr.Textbox(elem_id="compare-prompt"), label="prompt", placeholder="prompt_example")
            with gr.Row():
                kind = wear(
                    gr.Radio(value="picture", elem_id="compare-kind"),
                    label="kind",
                    choices=lambda language: [(say(language, name), name) for name in ("picture", "film")],
                )
                number = wear(gr.Slider(2, len(LETTERS), value=2, step=1, elem_id="compare-number"), label="number")
                seed = wear(gr.Number(value=0, precision=0, elem_id="compare-seed"), label="seed")
            with gr.Row():
                scale, other = (gr.Slider(0, 10, value=desk.guidance(), step=0.5, elem_id=name) for name in _SCALES)
                wear(scale, label="guidance")
                wear(other, label="other_guidance")
            draw = wear(gr.Button(elem_id="compare-draw"), value="draw_samples")
        following = wear(gr.Button(elem_id="compare-next"), value="next_comparison")
        said = gr.HTML(elem_id="compare-status")
        bench = gr.State(Bench())
        board = gr.HTML(elem_id="compare-board")
        form = _form(desk)
        keep = wear(gr.Button(variant="primary", elem_id="judge"), value="judge")
        tally = gr.HTML(elem_id="agreement")
        write = wear(gr.Button(elem_id="export"), value="export")
        file = wear(gr.File(interactive=False, visible=False, elem_id="export-file"), label="export_file")

    judging = _Judging(desk=desk, store=store, form=form)
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    shown = [said, board, *form.outputs]
    kind.input(lambda kind: 2 * [desk.guidance(kind)], kind, [scale, other], show_progress="hidden", queue=False)
    draw.click(judging.new, [bench, annotator, prompt, kind, number, seed, scale, other, desk.language], shown, **quiet)
    following.click(judging.take_next, [bench, annotator, desk.language], shown, **quiet)
    judged = [bench, annotator, desk.language, form.best, *form.answers]
    keep.click(judging.judge, judged, [said, board, tally], **quiet)
    write.click(judging.write, None, [file], **quiet)
    tab.select(lambda language: agreement(store, language), [desk.language], [tally], **quiet)
    desk.follow(lambda shelf, language: [agreement(store, language)], [tally])


def sample_of(task: Draw, done: Done, desk: Desk) -> Sample:
    """Return what is kept of a result."""
    assert done.pixels is not None
    piece = Piece(pixels=done.pixels, fps=done.fps, title=task.prompt, task=task, done=done)
    return piece.sample(desk.backend.info.name)


def keep_judgement(
    store: Store, bench: Bench, annotator: str, best: str | None, answers: tuple[Any, ...], language: str
) -> None:
    """Keep what a form says about the samples on the bench; InputError for what is missing."""
    if bench.comparison is None:
        raise InputError(say(language, "nothing_to_judge"))
    if best is None:
        raise InputError(say(language, "needs_best"))
    ratings, captions = {}, {}
    for place, sample in enumerate(bench.order):
        text_match, look, caption = answers[3 * place : 3 * place + 3]
        ratings[sample.id] = Rating(text_match=text_match, look=look)
        if caption and caption.strip():
            captions[sample.id] = caption
    chosen = None if best == TIE else bench.order[LETTERS.index(best)].id
    store.judge(bench.comparison.id, annotator, chosen, ratings)
    for number, caption in captions.items():
        store.correct(number, annotator, caption)


def shuffled(comparison: Comparison, annotator: str) -> tuple[Sample, ...]:
    """Return the samples in an order of this annotator's own, the same each time."""

    def key(sample: Sample) -> bytes:
        return hashlib.sha256(f"{annotator.strip()}/{comparison.id}/{sample.id}".encode()).digest()

    return tuple(sorted(comparison.samples, key=key))


def agreement(store: Store, language: str) -> str:
    """Say how many judgements there are and how alike they are."""
    counts, found = store.counts(), store.agreement()
    text = say(language, "counts", **counts)
    if found.percent is not None:
        kappa = say(language, "no_kappa") if found.kappa is None else f"{found.kappa:.2f}"
        text += " " + say(
            language,
            "agreement",
            annotators=found.annotators,
            comparisons=found.comparisons,
            percent=f"{found.percent:.0f}",
            kind=found.kind,
            kappa=kappa,
        )
    return f"<p>{escape(text)}</p>"


def _form(desk: Desk) -> _Form:
    wear, grades = desk.wardrobe.wear, list(range(WORST, BEST + 1))
    best = wear(gr.Radio([], elem_id="best", visible=False), label="best")
    groups, answers = [], list[Any]()
    with gr.Row():
        for letter in LETTERS:
            with gr.Group(visible=False) as group:
                for name in ("text_match", "look_rating"):
                    label = _lettered(name, letter)
                    answers.append(wear(gr.Radio(grades, elem_id=f"{name}-{letter}"), label=label))
                answers.append(wear(gr.Textbox(elem_id=f"caption-{letter}"), label=_lettered("true_caption", letter)))
            groups.append(group)
    return _Form(best=best, groups=groups, answers=answers)


def _lettered(key: str, letter: str) -> Any:
    return lambda language: say(language, key, letter=letter)


def _skipped(form: _Form) -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(1 + len(form.outputs)))


def _lay_out(bench: Bench, comparison: Comparison, annotator: str) -> None:
    bench.comparison, bench.order = comparison, shuffled(comparison, annotator)


def _board(bench: Bench, language: str, told: bool = False) -> str:
    """Return the samples under their letters; ``told``: with how each was made."""
    if bench.comparison is None:
        return ""
    figures = []
    for letter, sample in zip(LETTERS, bench.order, strict=False):
        note = ", ".join(f"{key} {value}" for key, value in sample.settings.items() if value is not None)
        shown = show.of_file(sample.media, sample.suffix, say(language, "sample", letter=letter))
        figures.append(show.figure(shown, letter, note if told else ""))
    return f"<p><b>{escape(bench.comparison.prompt)}</b></p>{show.row(figures)}"
