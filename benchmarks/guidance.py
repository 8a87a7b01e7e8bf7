"""How guidance scale and temperature decide whether pictures are what was asked for: a table as JSON, curves as SVG.

Usage: python benchmarks/guidance.py [--checkpoint FOLDER] [--emoji FOLDER] [--limit 40]

Every point is a run of its own in a folder of records, so an interrupted sweep goes on where it was.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from record import save

import rhea
from rhea.config import to_dict
from rhea.evaluation.emoji import EmojiBenchmark, EmojiTask
from rhea.evaluation.report import Figure, checkpoint_hash
from rhea.evaluation.runner import run_task
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask
from rhea.generation.model import Rhea
from rhea.generation.prompts import PromptWriter
from rhea.io import atomic_file

CURVES = Path(__file__).parents[1] / "docs" / "images" / "guidance.svg"
WIDTH, HEIGHT, MARGIN = 300, 200, 44
COLOURS = ("#2a6fbb", "#d2691e", "#2a8a4a", "#9b3fb5", "#777777")
MEASURES = {
    "shapes, exact": ("text to image", ("1 object", "2 objects", "3 objects")),
    "shapes, unseen kinds exact": ("text to image", ("1 unseen kind", "2 unseen kinds")),
    "emoji, top-1": ("emoji drawn, trained", ("top-1, English", "top-1, Chinese")),
    "absent emoji, top-5": ("emoji drawn, absent, by other styles", ("top-5, English", "top-5, Chinese")),
}
"""What is plotted: the mean of these figures of a group."""


def sampled(model: Rhea, scale: float, temperature: float) -> Rhea:
    """Let a model draw with these settings from now on."""
    model.defaults = replace(model.defaults, guidance_scale=scale, temperature=temperature)
    model.prompts = PromptWriter(model.defaults, model.codec)
    return model


def measured(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Return value and ceiling of each measure for which there are figures."""
    found = {}
    for title, (group, names) in MEASURES.items():
        mine = [each for each in figures if each.group == group and each.name in names]
        if mine:
            sides = {side: [getattr(each, side) for each in mine] for side in ("value", "ceiling")}
            found[title] = {side: float(np.mean(values)) for side, values in sides.items()}
    return found


def panel(title: str, points: Sequence[dict[str, Any]], left: int) -> str:
    """Draw one measure over the guidance scale, a line for each temperature, the ceiling dashed."""
    scales = sorted({each["guidance_scale"] for each in points})
    temperatures = sorted({each["temperature"] for each in points})

    def place(scale: float, value: float) -> str:
        x = (scale - scales[0]) / max(scales[-1] - scales[0], 1e-9)
        return f"{left + MARGIN + x * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - value * (HEIGHT - 2 * MARGIN):.1f}"

    def text(x: float, y: float, said: str, more: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="#888" {more}>{escape(said)}</text>'

    def line(values: Sequence[tuple[float, float]], style: str) -> str:
        return f'<polyline points="{" ".join(place(*each) for each in values)}" fill="none" {style}/>'

    ceiling = float(np.mean([each["measured"][title]["ceiling"] for each in points]))
    parts = [
        text(left + MARGIN, 20, title),
        text(left + WIDTH / 2, HEIGHT - 10, "guidance scale", 'text-anchor="middle"'),
        line([(scale, 0) for scale in scales], 'stroke="#888"'),
    ]
    parts += [line([(scale, ceiling) for scale in scales], 'stroke="#888" stroke-dasharray="4"')]
    for number, temperature in enumerate(temperatures):
        mine = sorted(
            (p["guidance_scale"], p["measured"][title]["value"]) for p in points if p["temperature"] == temperature
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(line(mine, f'stroke="{colour}" stroke-width="2"'))
        parts.append(
            text(
                left + WIDTH - MARGIN,
                HEIGHT - MARGIN - 8 - 13 * number,
                f"T {temperature:g}",
                f'style="fill:{colour}" text-anchor="end"',
            )
        )
    for scale in scales:
        x, y = place(scale, 0).split(",")
        parts.append(text(float(x), float(y) + 14, f"{scale:g}", 'text-anchor="middle"'))
    for share in (0.0, 0.5, 1.0):
        x, y = place(scales[0], share).split(",")
        parts.append(text(float(x) - 6, float(y) + 4, f"{100 * share:.0f} %", 'text-anchor="end"'))
    return "".join(parts)


def curves(points: Sequence[dict[str, Any]]) -> str:
    """Return the picture of all measures, side by side."""
    titles = list(points[0]["measured"])
    panels = "".join(panel(title, points, number * WIDTH) for number, title in enumerate(titles))
    size = f'viewBox="0 0 {len(titles) * WIDTH} {HEIGHT}" width="{len(titles) * WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{panels}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=None, help="a folder; the default model if not given")
    parser.add_argument("--emoji", default=None, help="folder of the emoji shards; shapes alone if not given")
    parser.add_argument("--side", type=int, default=None, help="of the emoji in pixels")
    parser.add_argument("--limit", type=int, default=40, help="scenes and cells per figure")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 4, 6])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 0.8, 1.0])
    parser.add_argument("--records", type=Path, default=Path("guidance"), help="folder for what is graded already")
    parser.add_argument("--curves", type=Path, default=CURVES, help="where the SVG goes")
    arguments = parser.parse_args()
    model, points, emoji = rhea.load(arguments.checkpoint), [], None
    if arguments.emoji:
        kinds = {"kinds": ("trained", "absent"), "groups": ("drawn",)}
        emoji = EmojiTask(
            model, EmojiBenchmark(shards=arguments.emoji, cells=arguments.limit, side=arguments.side, **kinds)
        )
    for temperature in arguments.temperatures:
        for scale in arguments.scales:
            sampled(model, scale, temperature)
            tasks = [ShapesTask(model, ShapesBenchmark(scenes=arguments.limit, tasks=("text to image",)))]
            if emoji is not None:
                emoji.settings |= {"generation": to_dict(model.defaults)}
                tasks.append(emoji)
            figures: list[Figure] = []
            for task in tasks:
                report = run_task(task, model, output=arguments.records / f"{task.name}-{scale:g}-{temperature:g}.json")
                assert report is not None, "there is one shard"
                figures += report.figures
            points.append({"guidance_scale": scale, "temperature": temperature, "measured": measured(figures)})
            print(points[-1], flush=True)
    save(__file__, {"checkpoint": checkpoint_hash(model.checkpoint), "limit": arguments.limit, "points": points})
    with atomic_file(arguments.curves) as temporary:
        temporary.write_text(curves(points), encoding="utf-8")


if __name__ == "__main__":
    main()
