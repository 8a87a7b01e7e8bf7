"""The options that several commands of the command line share; their texts are what ``--help`` says.

Nothing heavy is imported here before a model is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from rhea.errors import InputError

if TYPE_CHECKING:
    from rhea.generation.model import Rhea


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model answers, and where it runs."""

    checkpoint: Annotated[str | None, arg(metavar="FOLDER|NAME|ID")] = None
    """Checkpoint folder in any layout, an id on the Hugging Face hub, or `rich`, the model that draws emoji and drives;
    the default model if not given."""
    vision_tokenizer: Annotated[str | None, arg(metavar="FOLDER|ID")] = None
    """A second folder or id, for releases that keep the vision tokenizer apart."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """cpu, cuda, cuda:1 or mps; by default the GPU if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the transformer; chosen by size and device if not given."""
    tile: Annotated[int | None, arg(metavar="CODES")] = None
    """Code larger pictures in tiles of that many codes a side: less memory, and faint seams."""
    weights: Literal["int8", "fp8"] | None = None
    """Keep the transformer's layers in eight bits: half the memory; fp8 needs a GPU and torchao."""
    cache: Literal["model", "int8", "fp8"] = "model"
    """What keys and values are kept in; eight bits take half the memory of bfloat16."""
    parallel: Literal["gumbel", "coupling"] = "gumbel"
    """How several codes are drawn in one forward: the same ones as one by one, or a few more, from the same law."""
    window: Annotated[int | None, arg(metavar="CODES")] = None
    """How many codes are drawn in one forward; by default what proves fastest while it draws."""

    def load(self) -> "Rhea":
        """Load the model."""
        from rhea.generation.engine import EngineConfig
        from rhea.generation.loading import load_model

        if self.window is not None and self.window < 1:
            raise InputError(f"--window {self.window}: at least one code is drawn in a forward")
        return load_model(
            self.checkpoint,
            device=self.device,
            dtype=self.dtype,
            vision_tokenizer=self.vision_tokenizer,
            tile=self.tile,
            weights=self.weights,
            engine=EngineConfig(window=self.window, parallel=self.parallel, cache=self.cache),
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn; what is not given is the checkpoint's own default."""

    temperature: Annotated[float | None, arg(metavar="T")] = None
    """0 always takes the most probable token."""
    top_k: Annotated[int | None, arg(metavar="K")] = None
    """Draw from the K most probable tokens; 0 from all."""
    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw from the most probable tokens that together have this probability."""
    seed: int = 0
    """Another seed gives another result; the same seed the same."""

    def settings(self) -> dict[str, Any]:
        """Return them as keyword arguments of the model's methods."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(SamplingOptions):
    """How tokens are drawn; what is not given is the checkpoint's own default."""

    guidance_scale: Annotated[float | None, arg(metavar="SCALE")] = None
    """How much more to follow the prompt than not; 1 is off and twice as fast."""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"guidance_scale": self.guidance_scale}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where the server listens and what it takes on."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in, who then need a key."""
    port: int = 8000
    """0 takes any that is free."""
    api_key: Annotated[tuple[str, ...], arg(metavar="KEY")] = ()
    """Clients must send one of these; RHEA_API_KEYS (with commas between) hides them from other users."""
    no_key: bool = False
    """Let other machines in without a key."""
    slots: Annotated[int, arg(metavar="ROWS")] = 16
    """Rows of the cache: requests worked on at once; a guided picture takes two, and one of eight is kept for texts."""
    max_requests: Annotated[int, arg(metavar="N")] = 128
    """Requests under way at once; one more is refused with 429."""
    max_tokens: Annotated[int, arg(metavar="N")] = 65_536
    """Tokens under way at once, likewise."""
    deadline: Annotated[float, arg(metavar="SECONDS")] = 600.0
    """For the model's work on one request."""
    drain: Annotated[float, arg(metavar="SECONDS")] = 30.0
    """For what is under way when the server is told to stop."""
    hang_seconds: Annotated[float, arg(metavar="SECONDS")] = 120.0
    """For one step of the engine in "serve"; after that it counts as hung and is started again."""
    films: Annotated[Path, arg(metavar="FOLDER")] = Path("films")
    """Where ordered films are kept; one server at a time uses it."""
    allow_host: Annotated[tuple[str, ...], arg(metavar="HOST")] = ()
    """Hosts from which pictures and films may be fetched by https; none by default."""


MODEL, SAMPLING, GUIDANCE, SERVE = ModelOptions(), SamplingOptions(), GuidanceOptions(), ServeOptions()
"""What is not given on the command line."""
