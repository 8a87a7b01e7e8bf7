"""Every table of figures, made from the JSON files of the other benchmarks; README, docs and cards quote nothing else.

Usage: python benchmarks/table.py           print all of them
       python benchmarks/table.py --write   put them between the markers in docs/figures.md, in README.md (how good the
                                            models are, and the first figure of all else) and in the models' cards
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
FIGURES = HERE.parent / "docs" / "figures.md"
ASSETS = HERE.parent / "rhea" / "assets"
MARKERS = re.compile(r"(<!-- figures:.*?-->\n).*?(<!-- end of figures -->)", re.DOTALL)
PRODUCTS = "oneDNN's matrix products, which both sides use, are more than half of our time (LOG.md)"
HEADER = "| what | figure | beside it | measured by |\n|---|--:|---|---|\n"


def load(name: str) -> dict[str, Any]:
    """Read the results of one benchmark."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def short_of(aim: float, times: float, reason: str) -> str:
    """Return why an aim was not met, nothing if it was."""
    return "" if times >= aim else f"; aim {aim:g} x: {reason}"


def shapes_rows() -> list[tuple[str, str, str, str]]:
    """Return the default model's figures."""
    report = load("shapes")
    figures = {(each["group"], each["name"]): each for each in report["figures"]}
    rows = []
    for group, name, told in (
        ("text to image", "1 object", "one object drawn exactly as told"),
        ("text to image", "2 objects", "two objects"),
        ("text to image", "3 objects", "three objects"),
        ("text to image, best of 4", "2 objects", "two objects, the best of 4 as the model itself reads them"),
        ("text to image, best of 4", "3 objects", "three objects, the best of 4"),
        ("text to image", "1 unseen kind", "one object of a kind never seen in training"),
        ("answers", "all types", "questions about a picture answered rightly"),
        ("edits", "all edits", "edits done exactly"),
        ("text to film", "1 object", "films from text whose object sets off as told"),
    ):
        each = figures[group, name]
        guesses = ", ".join(f"{guess} {value:.1%}" for guess, value in each["unskilled"].items())
        rows.append((told, f"{each['value']:.1%}", f"ceiling {each['ceiling']:.1%}; {guesses}", "shapes"))
    films = figures["films", "centre error"]
    guesses = ", ".join(f"{guess} {value:.2f} px" for guess, value in films["unskilled"].items())
    told = "centre error of predicted films"
    rows.append((told, f"{films['value']:.2f} px", f"ceiling {films['ceiling']:.2f} px; {guesses}", "shapes"))
    return rows


def rich_rows() -> list[tuple[str, str, str, str]]:
    """Return the rich model's figures, English ones with the Chinese beside them."""
    figures = {(each["group"], each["name"]): each for each in load("rich_model")["figures"]}
    rows = []
    for group, name, told in (
        ("emoji drawn, trained", "top-5", "rich: emoji of the training, drawn by name, of the five nearest to it"),
        ("emoji drawn, absent, by other styles", "top-5", "rich: emoji that no picture shows in this style"),
        ("emoji named, trained", "exact name", "rich: emoji of the training named exactly"),
    ):
        english, chinese = (figures[group, f"{name}, {language}"] for language in ("English", "Chinese"))
        beside = f"Chinese {chinese['value']:.1%}; ceiling {english['ceiling']:.1%}; "
        beside += ", ".join(f"{guess} {value:.1%}" for guess, value in english["unskilled"].items())
        rows.append((told, f"{english['value']:.1%}", beside, "rich_model"))
    for frame in (1, 16):
        each = figures["driving", f"PSNR of predicted frame {frame}"]
        beside = f"ceiling {each['ceiling']:.1f} dB; copy last {each['unskilled']['copy last']:.1f} dB"
        rows.append(
            (f"rich: frame {frame} of a driving film predicted", f"{each['value']:.1f} dB", beside, "rich_model")
        )
    return rows


def memory_rows() -> list[tuple[str, str, str, str]]:
    """Return what loading a checkpoint of more than a gigabyte costs."""
    loads = load("load_memory")["loads"]
    ours = [each["worst_peak_over_model"] for name, each in loads.items() if not name.startswith("transformers")]
    told = "peak memory of loading, in sizes of the loaded model"
    return [(told, f"{max(ours):.2f} x", f"the worst of {len(ours)} layouts and dtypes", "load_memory")]


def generation_rows() -> list[tuple[str, str, str, str]]:
    """Return the speed of the plain loop beside transformers' fastest way."""
    results, rows = load("generation"), []
    for task, told in (("guided picture", "a guided, constrained picture"), ("text", "unguided text")):
        for dtype in ("bfloat16", "float32"):
            measured = results[dtype][task]
            rates = measured["tokens_per_second"]
            theirs = max(rate for name, rate in rates.items() if name != "rhea")
            figure = f"{rates['rhea']:.0f} tokens/s"
            times = measured["times_the_fastest_peer"]
            beside = f"transformers {theirs:.0f}: {times:.1f} x"
            if task == "guided picture" and dtype == "bfloat16":
                beside += short_of(3, times, PRODUCTS)
            rows.append((f"{told}, 110 M, {dtype}, CPU", figure, beside, "generation"))
    return rows


def engine_rows() -> list[tuple[str, str, str, str]]:
    """Return what exact parallel decoding and batching bring."""
    results = load("engine")
    sides = results["one picture, default model"]
    found, plain = sides["window found by measuring"], sides["plain loop"]["seconds_per_picture"]
    beside = f"one by one {plain:.2f} s, the same tokens: {found['times_the_plain_loop']:.1f} x; transformers "
    beside += f"{sides['transformers']['seconds_per_picture']:.2f} s: {found['times_the_peer']:.1f} x"
    beside += short_of(6, found["times_the_peer"], "LOG.md")
    figure = f"{found['seconds_per_picture']:.2f} s"
    rows = [("a guided 64 x 64 picture of the default model, CPU", figure, beside, "engine")]
    one = results["one picture, 110 M, bfloat16"]
    told, seconds = f"a guided picture of {one['codes']:,} codes, 110 M, bfloat16, CPU", one["seconds_per_picture"]
    times = one["times_the_peer"]["window 1"]
    beside = f"transformers {seconds['transformers']:.0f} s: {times:.1f} x" + short_of(4, times, "LOG.md")
    rows.append((f"{told}, token by token", f"{seconds['window 1']:.1f} s", beside, "engine"))
    beside = f"{one['times_the_peer']['window found by measuring']:.1f} x; if as many guesses held as in the default "
    beside += f"model {one['estimate: times_the_peer with the best window']:.1f} x (an estimate)"
    figure = f"{seconds['window found by measuring']:.1f} s"
    rows.append(("the same in windows, with random weights", figure, beside, "engine"))
    eight = results["eight pictures, 110 M, bfloat16"]
    ours, theirs = (eight["tokens_per_second"][side] for side in ("rhea", "transformers, static batch"))
    beside = f"transformers {theirs:.0f}: {eight['times_the_peer']:.1f} x"
    beside += short_of(4, eight["times_the_peer"], "LOG.md")
    return [*rows, ("eight guided pictures at once, 110 M, bfloat16, CPU", f"{ours:.0f} tokens/s", beside, "engine")]


def pixel_rows() -> list[tuple[str, str, str, str]]:
    """Return how long the default model takes from a text to pixels."""
    rows = []
    for size, times in load("engine")["pictures with their pixels, default model"].items():
        beside = f"of which vision decoding {times['of which vision decoding']:.2f} s"
        rows.append((f"a text to {size} pixels, default model, CPU", f"{times['seconds']:.2f} s", beside, "engine"))
    return rows


def precision_rows() -> list[tuple[str, str, str, str]]:
    """Return how far bfloat16 draws as float32 does, and how its pictures are graded."""
    results = load("engine_precision")
    compared, grades = results["bfloat16 against float32, window 1"], results["grades"]
    graded = ""
    for name in ("text to image: 1 object", "text to image: 2 objects"):
        ours, exact = grades[name]["bfloat16"], grades[name]["float32"]
        graded += f"; {name.removeprefix('text to image: ')} exact {ours:.0%}, in float32 {exact:.0%}"
    beside = f"the others differ from code {compared['median_first_difference']:.0f} on (median){graded}"
    told = f"pictures of {compared['codes_of_each']} codes that bfloat16 draws as float32 does"
    return [(told, f"{compared['equal']} of {compared['pictures']}", beside, "engine_precision")]


def quantization_rows() -> list[tuple[str, str, str, str]]:
    """Return what eight bits cost."""
    formats = load("quantization")["formats"]
    exact, small = formats["float32"], formats["int8 weights and cache"]
    told = "one object drawn exactly, weights and cache in eight bits"
    beside = f"float32 {exact['one_object_exact']:.1%}; KL divergence {small['kl_mean']:.0e} nats a code"
    return [(told, f"{small['one_object_exact']:.1%}", beside, "quantization")]


def training_rows() -> list[tuple[str, str, str, str]]:
    """Return what a training step costs beside transformers', and how far the loader is ahead of it."""
    rows, rates = [], []
    for name, each in load("training_step")["vocabularies"].items():
        ours, theirs = (each["tokens_per_second"][side] for side in ("rhea", "transformers"))
        told = f"a training step, 110 M, vocabulary {name}, bfloat16, CPU"
        memory = f"{each['peak_gb']['rhea']:.1f} GB, {each['times_the_peers_memory']:.2f} x theirs"
        beside = f"transformers {theirs:.0f}: {each['times_the_peers_speed']:.1f} x; peak {memory}"
        rows.append((told, f"{ours:.0f} tokens/s", beside, "training_step"))
        rates.append(ours)
    slowest = min(
        each["tokens_per_second"]
        for each in load("loader").values()
        if isinstance(each, dict) and "tokens_per_second" in each
    )
    beside = f"{slowest / max(rates):,.0f} x what that step eats"
    return [*rows, ("documents packed by the loader, one core", f"{slowest:,.0f} tokens/s", beside, "loader")]


def vision_rows() -> list[tuple[str, str, str, str]]:
    """Return the processor time of encoding and decoding at the released size beside transformers' faster setting."""
    rows = []
    for case in load("vision_tokenizer")["cases"]:
        told = f"{case['do']} a {case['kind']} of {case['size']} x {case['size']}, released size, {case['dtype']}, CPU"
        figure = f"{case['cpu_seconds']['rhea']:.1f} s of a core"
        memory = f"peak {case['peak_gb']['rhea']:.1f} GB, {case['peak_over_transformers']:.2f} x theirs"
        times = case["times_less_processor_time"]
        beside = f"transformers: {times:.2f} x as much; {memory}"
        if case["kind"] == "clip":
            beside += short_of(1.1, times, "nearly all of it is oneDNN's convolutions, the same on both sides")
        rows.append((told, figure, beside, "vision_tokenizer"))
    return rows


def stream_rows() -> list[tuple[str, str, str, str]]:
    """Return what taking requests as they come brings over static batches, and what the engine's peak memory is."""
    results, memory = load("stream"), load("engine_memory")
    ours, theirs = (results["sides"][side]["total_seconds"] for side in ("rhea", "transformers, static batches"))
    told = f"{results['requests']} mixed requests arriving at random, 110 M, bfloat16, CPU"
    beside = f"transformers' static batches {theirs:.0f} s: {results['times_the_peer']:.1f} x"
    rows = [(told, f"{ours:.0f} s", beside, "stream")]
    told = f"peak memory, {memory['pictures']} guided pictures at once, 110 M, bfloat16"
    figure = f"{memory['packed']['peak_over_weights_and_cache']:.2f} x"
    return [*rows, (told, figure, "weights and reserved cache", "engine_memory")]


def serving_rows() -> list[tuple[str, str, str, str]]:
    """Return what serving adds to the engine's time, how many short answers it gives, and that it bears a crowd."""
    results, rows = load("serving"), []
    (few, many), borne = (results["answers"][f"{n} clients"] for n in (1, 32)), results["load"]
    for what, told in (
        ("first partial picture", "the first partial picture of 64 x 64 over HTTP"),
        ("whole picture", "the whole picture, three partial ones before it"),
    ):
        times = results["overhead"][what]
        seconds = times["seconds"]
        beside = f"the engine alone {seconds['engine']:.2f} s: {times['http over engine']:.2f} x; "
        beside += f"its process without HTTP {seconds['backend']:.2f} s: {times['http over backend']:.2f} x"
        rows.append((told, f"{seconds['http']:.2f} s", beside, "serving"))
    figure, beside = f"{many['requests_per_second']:.0f} a second", f"one client {few['requests_per_second']:.0f}"
    rows.append(("short answers about pictures, 32 clients", figure, beside, "serving"))
    told = f"{borne['clients']} mixed clients for {borne['seconds']:.0f} s: requests answered or refused in order"
    figure = f"{borne['answered or refused in order']:,} of {borne['requests']:,}"
    alike = borne["compared_with_the_same_alone"]
    beside = f"{alike['distinct'] - len(alike['different'])} of {alike['distinct']} different ones as if alone"
    return [*rows, (told, figure, beside, "serving")]


def startup_rows() -> list[tuple[str, str, str, str]]:
    """Return how long the package takes to answer, and to show everything that the default model can do."""
    seconds = load("startup")["seconds"]
    beside = f"an empty interpreter {seconds['python']:.2f} s"
    names = (name for name in ("import rhea", "rhea --help", "rhea demo") if name in seconds)
    return [(f"`{name}`", f"{seconds[name]:.2f} s", beside, "startup") for name in names]


MODELS = (shapes_rows, rich_rows)
OTHERS = (
    generation_rows,
    engine_rows,
    pixel_rows,
    precision_rows,
    quantization_rows,
    vision_rows,
    training_rows,
    memory_rows,
    stream_rows,
    serving_rows,
    startup_rows,
)


def all_rows() -> list[tuple[str, str, str, str]]:
    """Return every row."""
    return [row for rows in (*MODELS, *OTHERS) for row in rows()]


def first_rows() -> list[tuple[str, str, str, str]]:
    """Return what the README shows: all that tells how good the models are, and of everything else the first row."""
    return [row for rows in MODELS for row in rows()] + [rows()[0] for rows in OTHERS]


def table(rows: list[tuple[str, str, str, str]], root: str = "") -> str:
    """Return the table as Markdown, its links relative to ``root``."""
    lines = [
        f"| {what} | {figure} | {beside} | [{name}.py]({root}benchmarks/{name}.py) |\n"
        for what, figure, beside, name in rows
    ]
    return HEADER + "".join(lines)


def fill(path: Path, text: str) -> None:
    """Put ``text`` between the markers of a file."""
    before = path.read_text(encoding="utf-8")
    path.write_text(MARKERS.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


def main() -> None:
    if "--write" in sys.argv:
        fill(README, table(first_rows()))
        fill(FIGURES, table(all_rows(), root="../"))
        for name, rows in (("default", shapes_rows()), ("rich", rich_rows())):
            fill(ASSETS / name / "README.md", table(rows, root="../../../"))
    else:
        print(table(all_rows()))


if __name__ == "__main__":
    main()
