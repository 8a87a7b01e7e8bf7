"""Edits by instruction, graded exactly."""

from collections.abc import Sequence

import numpy as np

from rhea.documents import formats
from rhea.documents.document import Image
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure
from rhea.evaluation.shapes.bench import Bench, Case, exact_share, mean_of, verdict
from rhea.evaluation.task import Record, codes_of
from rhea.generation.completion import Prompt
from rhea.worlds.shapes.edits import OPERATIONS, Edit, sample_edit
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.render import render


class Edits:
    """Pictures changed by an instruction; leaving them as they are is the guess without skill."""

    group = "edits"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def cases(self) -> list[Case]:
        bench, cases = self.bench, []
        for section, operation in enumerate(OPERATIONS, start=40):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                edit = sample_edit(rng, bench.language(rng), operation=operation)
                cases.append(Case(group=self.group, name=operation, seed=bench.seed(section, index), about=edit))
        return cases

    def grade(self, cases: Sequence[Case]) -> list[Record]:
        bench, scale = self.bench, self.bench.defaults.edit_guidance_scale
        edits: list[Edit] = [case.about for case in cases]
        sources = [Image(codes=codes) for codes in bench.codec.encode_pictures([render(e.source) for e in edits])]
        prompts = [
            Prompt(
                document=formats.editing([source], case.about.instruction),
                next=bench.picture_size,
                negative=formats.editing([source], bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale, bench.defaults.edit_temperature),
                seed=case.seed,
            )
            for case, source in zip(cases, sources, strict=True)
        ]
        written = bench.complete(prompts)
        drawn, truth = bench.decoded(written), bench.round_trip([render(each.target) for each in edits])
        return [
            {
                "right": edit.is_right(read_picture(pixels)),
                "ceiling": edit.is_right(read_picture(true)),
                "unchanged": edit.is_right(edit.source.objects),
                "codes": codes_of(codes).tolist(),
            }
            for edit, pixels, true, codes in zip(edits, drawn, truth, written, strict=True)
        ]

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        figures = [
            exact_share(self.group, name, each, unchanged=float(np.mean([record["unchanged"] for record in each])))
            for name, each in records.items()
        ]
        return [*figures, mean_of(figures, "all edits")]

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the picture before and after."""
        edit, after = case.about, self.bench.codec.decode_picture(np.array(record["codes"]))
        return f'rhea edit PICTURE "{edit.instruction}" --seed {case.seed}', [
            Picture(pixels=render(edit.source), caption="before"),
            Picture(pixels=after, caption=edit.instruction, verdict=verdict(record)),
        ]
