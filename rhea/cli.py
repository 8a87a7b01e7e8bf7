"""The command line: ``rhea COMMAND --help`` explains each command with an example.

Nothing heavy is imported before a command runs, so help is instant. Whatever the user can set right (a missing file, a
bad size, a damaged checkpoint) ends with one line on standard error and exit code 2; what is stopped, by Ctrl-C or by
SIGTERM while it trains, ends with 130; output files appear whole or not at all. Answers and descriptions go to standard
output, everything else to standard error.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from rhea.cli_messages import say as _say
from rhea.cli_messages import token_progress as _progress
from rhea.cli_options import (
    GUIDANCE,
    MODEL,
    SAMPLING,
    SERVE,
    GuidanceOptions,
    ModelOptions,
    SamplingOptions,
    ServeOptions,
)
from rhea.errors import InputError

if TYPE_CHECKING:
    from rhea.generation.model import Rhea
    from rhea.generation.results import Film, Picture

_SETTINGS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def generate(
    prompt: Annotated[str | None, Positional, arg(metavar="PROMPT")] = None,
    output: Path = Path("picture.png"),
    batch: Annotated[Path | None, arg(metavar="FILE")] = None,
    size: Annotated[str | None, arg(metavar="WxH|W:H")] = None,
    samples: int = 1,
    sheet: bool = False,
    num_frames: Annotated[int | None, arg(metavar="N")] = None,
    fps: Annotated[float | None, arg(metavar="RATE")] = None,
    negative_prompt: Annotated[str | None, arg(metavar="TEXT")] = None,
    best_of: Annotated[int, arg(metavar="N")] = 1,
    as_written: bool = False,
    zipar: Annotated[int | None, arg(metavar="CODES")] = None,
    preview: bool = False,
    stats: bool = False,
    sampling: GuidanceOptions = GUIDANCE,
    model: ModelOptions = MODEL,
) -> None:
    """Make pictures or a film from a text, or from every line of a file.

    $ rhea generate "a small red circle and a large blue square" --samples 4 --output red.png

    $ rhea generate "a green star bouncing around" --output star.mp4

    $ rhea generate --batch prompts.txt --samples 2 --output drawn/picture.png

    $ rhea generate "a yellow star" --preview --output growing.png

    Args:
        prompt: What is to be seen.
        output: A picture (.png .jpg .webp) or, by the extension, a film (.mp4 .gif). Several are numbered.
        batch: A text file with one prompt per line, all drawn together; empty lines are skipped.
        size: Width x height in pixels ("640x480"), or an aspect ratio ("16:9").
        samples: How many to make of each prompt.
        sheet: Put all samples into one picture.
        num_frames: Length of a film.
        fps: Frames per second of a film.
        negative_prompt: What is not to be seen.
        best_of: Draw each picture N times and keep the one that the model itself reads best as what was asked.
        as_written: Draw from the prompt itself; else a model that learned to may first put it in words that it draws
            more surely, and tells them.
        zipar: Draw rows side by side, each that many codes behind the one above: fewer forwards, worse pictures.
        preview: Rewrite the output as the one picture or film grows (rows to come are grey), to watch in a viewer.
        stats: Tell what the engine did: forwards, guesses that held, prompt tokens shared, time, cache in use.
    """
    prompts = _prompts(prompt, batch)
    video = _is_film(output)
    if sheet and video:
        raise InputError("--sheet lays pictures side by side; films are numbered instead")
    if not video and (num_frames is not None or fps is not None):
        raise InputError(f"--num-frames and --fps are for films; {output} has the extension of a picture")
    if preview and (sheet or samples * len(prompts) != 1):
        raise InputError("--preview shows one picture or film growing: give one PROMPT, without --samples and --sheet")
    loaded = model.load()
    with _progress("drawing") as progress:
        made = loaded.generate(
            prompts,
            size=size,
            video=video,
            num_frames=num_frames,
            fps=fps,
            samples=samples,
            negative_prompt=negative_prompt,
            best_of=best_of,
            revise=False if as_written else None,
            zipar=zipar,
            progress=progress,
            preview=(lambda _, seen: None if seen.final else seen.save(output)) if preview else None,
            **sampling.settings(),
        )
    if sheet:
        from rhea.generation.results import contact_sheet
        from rhea.media import write_picture

        write_picture(output, contact_sheet([each.pixels for each in made]))  # type: ignore[union-attr]
        _say(f"wrote {output}")
    else:
        _save(made, output)
    for revised in dict.fromkeys(getattr(each, "revised_prompt", None) for each in made):
        if revised is not None:
            _say(f"drawn from: {revised}")
    if stats:
        _say(loaded.completer.statistics.summary())


def ask(
    source: Annotated[Path, Positional, arg(metavar="FILE")],
    question: Annotated[str, Positional, arg(metavar="QUESTION")],
    max_new_tokens: Annotated[int | None, arg(metavar="N")] = None,
    sampling: SamplingOptions = SAMPLING,
    model: ModelOptions = MODEL,
) -> None:
    """Ask a question about a picture or film; the answer goes to standard output.

    $ rhea ask picture.png "What colour is the circle?"

    Args:
        source: Picture or film.
        question: The question.
        max_new_tokens: Longest answer, in tokens.
    """
    loaded = model.load()
    answer = loaded.ask(source, question, max_new_tokens=max_new_tokens, **sampling.settings())
    _say_what_it_knows(loaded)
    print(answer)


def extend(
    film: Annotated[Path, Positional, arg(metavar="FILM")],
    output: Path = Path("longer.mp4"),
    num_frames: Annotated[int | None, arg(metavar="N")] = None,
    caption: str = "",
    sampling: GuidanceOptions = GUIDANCE,
    model: ModelOptions = MODEL,
) -> None:
    """Go on with a film: predict the frames that follow its last ones.

    $ rhea extend film.mp4 --num-frames 12 --output longer.mp4

    Args:
        film: The film.
        output: The whole film, old and new frames (.mp4 .gif).
        num_frames: How many frames to add; by default as many as the model does at once.
        caption: What the film shows, if that should be told.
    """
    if not _is_film(output):
        raise InputError(f"cannot write a film to {output}: the extension must be .mp4 or .gif")
    loaded = model.load()
    with _progress("drawing") as progress:
        longer = loaded.extend(film, num_frames, caption=caption, progress=progress, **sampling.settings())
    _say_what_it_knows(loaded)
    _save([longer], output)


def edit(
    picture: Annotated[Path, Positional, arg(metavar="PICTURE")],
    instruction: Annotated[str, Positional, arg(metavar="INSTRUCTION")],
    output: Path = Path("edited.png"),
    more_pictures: Annotated[tuple[Path, ...], arg(metavar="PATH")] = (),
    size: Annotated[str | None, arg(metavar="WxH|W:H")] = None,
    sampling: GuidanceOptions = GUIDANCE,
    model: ModelOptions = MODEL,
) -> None:
    """Change a picture by an instruction.

    $ rhea edit picture.png "make the circle red" --output edited.png

    Args:
        picture: The picture to start from.
        instruction: What to change.
        output: The result (.png .jpg .webp).
        more_pictures: Further pictures, for models that take several.
        size: Of the result; by default that of the picture.
    """
    if _is_film(output):
        raise InputError(f"an edit gives a picture; {output} has the extension of a film")
    loaded = model.load()
    with _progress("drawing") as progress:
        edited = loaded.edit(
            [picture, *more_pictures], instruction, size=size, progress=progress, **sampling.settings()
        )
    _say_what_it_knows(loaded)
    _save([edited], output)


def reconstruct(
    source: Annotated[Path, Positional, arg(metavar="FILE")],
    output: Path | None = None,
    model: ModelOptions = MODEL,
) -> None:
    """Turn a picture or film into visual tokens and back, to see what the vision tokenizer keeps.

    $ rhea reconstruct photo.jpg --output back.png

    Args:
        source: Picture or film.
        output: By default the source's name with "-reconstructed", as .png or .mp4.
    """
    from rhea.media import is_film

    film = is_film(source)
    target = output or source.with_name(f"{source.stem}-reconstructed{'.mp4' if film else '.png'}")
    if _is_film(target) is not film:
        raise InputError(f"{source} is a {'film' if film else 'picture'}; {target} has the extension of the other")
    loaded = model.load()
    result = loaded.reconstruct(source)
    _say_what_it_knows(loaded)
    _say(f"{result.codes.size} visual tokens, grid {' x '.join(map(str, result.codes.shape))}")
    _save([result], target)


def train(recipe: Annotated[str, Positional, arg(metavar="RECIPE")], output: Path = Path("runs/RECIPE")) -> None:
    """Run a training recipe in a folder, or go on with the run that is there.

    $ rhea train debug --output runs/debug --trainer.total-steps 20

    The recipes are debug (seconds), and, one after the other, default-tokenizer, local-tokenizer and default-model, or
    rich-tokenizer and rich-model (emoji and films of driving too); aligned-model goes on from any of ours and learns
    from pairs of its own right and wrong tries (DPO), reinforced-model from how all its tries are graded while it
    learns (GRPO; docs/data.md).
    Every value of a recipe can be overridden by its dotted name: "rhea train debug --help" lists those of debug.

    Args:
        recipe: Name of the recipe.
        output: Folder of the run: checkpoints, metrics, samples.
    """
    raise AssertionError("main hands train over to _train, which knows the recipe's own options")


def evaluate(what: Annotated[str, Positional, arg(metavar="WHAT")]) -> None:
    """Grade a checkpoint: on the shapes world, exactly, with ceilings and chance levels, or in other ways.

    $ rhea evaluate shapes --scenes 200 --output report.json

    "rhea evaluate" alone lists what there is, "rhea evaluate shapes --help" tells about one.

    Args:
        what: What to grade it on.
    """
    raise AssertionError("main hands evaluate over to rhea.cli_evaluate, where each has its own options")


def record(
    what: Positional[Literal["driving", "drawings"]],
    output: Path | None = None,
    films: int = 2000,
    tries: int = 10_000,
    seed: int = 0,
    model: ModelOptions = MODEL,
) -> None:
    """Record films or drawings as WebDataset shards, to train on; what is recorded already is kept.

    $ rhea record driving --output driving --films 2000

    Args:
        what: Films of a simulator with their truth, which needs "pip install 'gymnasium[box2d]'"; or what a model draws
            of captions of the shapes world, where it is right, for another model to learn.
        output: Folder of the shards; by default one of that name.
        films: Of driving: how many, of 32 frames each.
        tries: Of drawings: how many captions are drawn, once each.
        seed: Another seed gives others; the same seed the same.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from rhea.logging import console

    folder, total = output or Path(what), films if what == "driving" else tries
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        shown = bar.add_task("recording", total=total)

        def progress(done: int) -> None:
            bar.update(shown, completed=done)

        if what == "driving":
            from rhea.worlds.driving.recording import RecordingConfig, record_driving

            shards = record_driving(RecordingConfig(films=films, seed=seed), folder, progress)
        else:
            from rhea.recipes.drawings import DrawingsConfig, record_drawings

            shards = record_drawings(model.load(), DrawingsConfig(tries=tries, seed=seed), folder, progress)
    _say(f"wrote {what} in {len(shards)} shards to {folder}")


def inspect(checkpoint: Annotated[str, Positional, arg(metavar="FOLDER|ID")]) -> None:
    """Say what a checkpoint is: layout, sizes, parameters, vocabulary, what it was trained on.

    $ rhea inspect BAAI/Emu3-Gen

    Args:
        checkpoint: Folder in any layout, or an id on the Hugging Face hub.
    """
    from rhea.checkpoints.inspect import describe_checkpoint

    print("\n".join(describe_checkpoint(checkpoint).lines()))


def convert(
    source: Annotated[str, Positional, arg(metavar="FOLDER|ID")],
    target: Annotated[Path, Positional, arg(metavar="FOLDER")],
    layout: Literal["rhea", "hf"] = "rhea",
    vision_tokenizer: Annotated[str | None, arg(metavar="FOLDER|ID")] = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint in another layout, tensor by tensor; the values stay what they are.

    $ rhea convert BAAI/Emu3-Gen emu3 --layout hf --vision-tokenizer BAAI/Emu3-VisionTokenizer

    Args:
        source: Folder in any layout, or an id on the Hugging Face hub.
        target: New folder.
        layout: Ours, or that of transformers' Emu3 classes.
        vision_tokenizer: A second source, whose vision tokenizer is put beside the transformer.
        overwrite: Replace a checkpoint that is in the target folder.
    """
    from rhea.checkpoints.save import convert_checkpoint

    convert_checkpoint(source, target, layout, vision_tokenizer=vision_tokenizer, overwrite=overwrite)
    _say(f"wrote {target}")


def demo(output: Path = Path("demo"), model: ModelOptions = MODEL) -> None:
    """Show what the models of the package can do: a folder of pictures, answers, edits and films, and a page of them.

    $ rhea demo --output demo

    Args:
        output: Folder; open its index.html.
    """
    from rhea.checkpoints.hub import INSTALLED
    from rhea.evaluation.demo import build_demo

    beside = replace(model, checkpoint=str(INSTALLED / "rich"), vision_tokenizer=None)
    rich = beside.load() if model.checkpoint is None else None
    with _progress("drawing") as progress:
        page = build_demo(model.load(), output, rich=rich, progress=progress)
    _say(f"open {page}; to try things yourself: pip install -e '.[studio]' && rhea studio")


def serve(
    folder: Annotated[str | None, Positional, arg(metavar="[CHECKPOINT]")] = None,
    options: ServeOptions = SERVE,
    model: ModelOptions = MODEL,
) -> None:
    """Serve the model to OpenAI clients: chat, pictures, edits, films, over HTTP at /v1.

    $ rhea serve

    $ rhea serve my-checkpoint --port 9000

    $ RHEA_API_KEYS=secret rhea serve --host 0.0.0.0

    Then, in Python:

        client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
        client.images.generate(prompt="a small red circle", response_format="b64_json")

    Ctrl-C lets it finish what it has begun, and stops it.

    Args:
        folder: Checkpoint folder or hub id; the default model if not given. The same as --checkpoint.
    """
    try:
        from rhea.serving import serve as serving
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install -e '.[serve]'") from None
    if folder is not None and model.checkpoint is not None:
        raise InputError("a checkpoint was given twice: once is enough")
    chosen = {**vars(model), "checkpoint": folder or model.checkpoint, "slots": options.slots}
    serving.serve(serving.ModelChoice(**chosen), serving.Listening(**vars(options)), _say)


def studio(
    folder: Annotated[str | None, Positional, arg(metavar="[CHECKPOINT]")] = None,
    judgements: Path = Path("judgements.db"),
    options: ServeOptions = SERVE,
    model: ModelOptions = MODEL,
) -> None:
    """Open the page to create, ask, edit, continue films, look inside and compare; the API of "serve" is beside it.

    $ rhea studio

    $ rhea studio my-checkpoint --port 9000

    Args:
        folder: Checkpoint folder or hub id; the default model if not given. The same as --checkpoint.
        judgements: Where comparisons are kept (SQLite).
    """
    try:
        from rhea.serving.serve import Listening
        from rhea.studio.run import run
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install -e '.[studio]'") from None
    if folder is not None and model.checkpoint is not None:
        raise InputError("a checkpoint was given twice: once is enough")
    loaded = replace(model, checkpoint=folder or model.checkpoint).load()
    run(loaded, Listening(**vars(options)), judgements, _say)


_COMMANDS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        generate,
        ask,
        extend,
        edit,
        reconstruct,
        train,
        record,
        evaluate,
        inspect,
        convert,
        demo,
        serve,
        studio,
    )
}
_RECIPES = {
    "debug": ("rhea.recipes.debug", "debug"),
    "default-tokenizer": ("rhea.recipes.default_tokenizer", "default_tokenizer"),
    "local-tokenizer": ("rhea.recipes.default_tokenizer", "local_tokenizer"),
    "default-model": ("rhea.recipes.default_model", "default_model"),
    "rich-tokenizer": ("rhea.recipes.rich_tokenizer", "rich_tokenizer"),
    "rich-model": ("rhea.recipes.rich_model", "rich_model"),
    "aligned-model": ("rhea.recipes.aligned_model", "aligned_model"),
    "reinforced-model": ("rhea.recipes.reinforced_model", "reinforced_model"),
}
_DESCRIPTION = (
    "Rhea: pictures, films and answers by next-token prediction. Start with: rhea demo. Examples: rhea COMMAND --help"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()
    except InputError as error:
        return _failed(str(error))
    except BrokenPipeError:  # whoever reads, ``head`` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it flushes at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _failed(f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _say("rhea: interrupted")
        return 130


def _run(given: list[str]) -> int:
    if given[0] == "--version":
        print(f"rhea {importlib.import_module('rhea').__version__}")
    elif given[0] == "train" and len(given) > 1 and not given[1].startswith("-"):
        return _train(given[1], given[2:])
    elif given[0] == "evaluate" and given[1:2] not in (["-h"], ["--help"]):
        from rhea.cli_evaluate import EVALUATIONS

        evaluate = given[1:] or ["--help"]
        tyro.extras.subcommand_cli_from_dict(EVALUATIONS, prog="rhea evaluate", args=evaluate, config=_SETTINGS)
    else:
        commands = _summaries() if given[0] in ("-h", "--help") else _COMMANDS
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="rhea", description=_DESCRIPTION, args=given, config=_SETTINGS
        )
    return 0


def _summaries() -> dict[str, Callable[..., None]]:
    """Return commands that only have the first sentence of their help, for the list of all."""

    def summary(command: Callable[..., None]) -> Callable[..., None]:
        def run() -> None: ...

        run.__doc__ = (command.__doc__ or "").splitlines()[0]
        return run

    return {name: summary(command) for name, command in _COMMANDS.items()}


def _failed(message: str) -> int:
    print("rhea: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _train(name: str, rest: list[str]) -> int:
    if name not in _RECIPES:
        raise InputError(f"no recipe is called {name!r}; there are {', '.join(_RECIPES)}")
    module, function = _RECIPES[name]
    recipe = getattr(importlib.import_module(module), function)()

    def run(recipe: Any, output: Path) -> bool:
        return bool(recipe.run(output))

    run.__annotations__["recipe"] = Annotated[type(recipe), arg(name="")]
    run.__defaults__ = (recipe, Path("runs") / name)
    from rhea.training.task import TrainingError

    try:
        complete = tyro.cli(run, prog=f"rhea train {name}", args=rest, config=(tyro.conf.AvoidSubcommands,))
    except TrainingError as error:
        _failed(str(error))
        return 1
    return 0 if complete else 130


def _prompts(prompt: str | None, batch: Path | None) -> list[str]:
    """Return the one prompt, or the lines of the file."""
    if (prompt is None) == (batch is None):
        raise InputError("give either a PROMPT or --batch FILE with one prompt per line")
    if batch is None:
        return [prompt or ""]
    try:
        lines = batch.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {batch}: {error}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{batch} holds no prompts: write one per line")
    return found


def _is_film(output: Path) -> bool:
    """Tell a film from a picture by the extension, before any work is done."""
    from rhea.media import FILM_SUFFIXES, PICTURE_SUFFIXES

    suffix = output.suffix.lower()
    if suffix not in (*FILM_SUFFIXES, *PICTURE_SUFFIXES):
        known = ", ".join((*PICTURE_SUFFIXES, *FILM_SUFFIXES))
        raise InputError(f"cannot tell what to write to {output}: the extension must be one of {known}")
    if output.is_dir():
        raise InputError(f"{output} is a folder")
    return suffix in FILM_SUFFIXES


def _save(made: "Sequence[Picture | Film]", output: Path) -> None:
    digits = len(str(len(made)))
    for number, each in enumerate(made, 1):
        path = output if len(made) == 1 else output.with_stem(f"{output.stem}-{number:0{digits}}")
        each.save(path)
        _say(f"wrote {path}")


def _say_what_it_knows(model: "Rhea") -> None:
    if model.trained_on:
        _say(f"note: this model was trained on {model.trained_on}")


if __name__ == "__main__":
    sys.exit(main())
