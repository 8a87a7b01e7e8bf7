"""Folders of weights to models: built on the meta device, then given the loaded tensors, never twice in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rhea.checkpoints.configs import CheckpointConfig, read_config
from rhea.checkpoints.hub import resolve
from rhea.checkpoints.layouts import PARTS, Layout, Part
from rhea.checkpoints.weights import Problems, StoredTensor, Weights, check_against, listed, read_headers, read_tensors
from rhea.errors import InputError
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.text import TextTokenizer, load_text_tokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import Vocabulary

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint; models are in evaluation mode. What the folder does not hold is None."""

    config: CheckpointConfig
    transformer: Transformer | None = None
    vision_tokenizer: VisionTokenizer | None = None
    text_tokenizer: TextTokenizer | None = None
    source: Path | None = None
    """The folder that it was loaded from."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Return the id space, if there is a transformer."""
        return Vocabulary(self.config.vocabulary) if self.config.vocabulary else None

    @property
    def policy(self) -> PixelPolicy | None:
        """Return how pictures become pixels for the vision tokenizer."""
        return self.config.pixels

    def with_vision_tokenizer(self, other: "Checkpoint") -> "Checkpoint":
        """Return this checkpoint with the vision tokenizer and pixel policy of ``other`` (the releases part them)."""
        if other.vision_tokenizer is None:
            raise InputError("the second checkpoint holds no vision tokenizer")
        config = replace(self.config, vision_tokenizer=other.config.vision_tokenizer, pixels=other.config.pixels)
        return replace(self, config=config, vision_tokenizer=other.vision_tokenizer)


@dataclass(frozen=True, kw_only=True)
class OpenedFolder:
    """A folder whose config is read and whose tensor headers fit it; no data is loaded."""

    folder: Path
    layout: Layout
    config: CheckpointConfig
    tensors: dict[Part, dict[str, StoredTensor]]


def open_folder(path_or_id: str | Path) -> OpenedFolder:
    """Read the config and all headers; raise one InputError that names every file and part that does not fit."""
    folder = resolve(path_or_id)
    layout, config = read_config(folder)
    weights = read_headers(folder, layout)
    problems = Problems()
    problems.told += weights.damaged
    tensors: dict[Part, dict[str, StoredTensor]] = {}
    for part in PARTS:
        with problems.noted():
            if getattr(config, part) is not None:
                _check_depth(folder, config, weights, part)
                tensors[part] = check_against(folder, weights, part, shapes(empty_model(config, part)))
            elif part in weights.parts:
                raise InputError(f"{folder} holds a {part} that its config.json does not describe")
    for problem, names in {"unexpected": weights.unknown, "there twice": weights.twice}.items():
        if names:
            problems.told.append(f"{folder}: {len(names)} tensors {problem}: {listed(names)}")
    problems.raise_all()
    return OpenedFolder(folder=folder, layout=layout, config=config, tensors=tensors)


def _check_depth(folder: Path, config: CheckpointConfig, weights: Weights, part: Part) -> None:
    """Refuse a config of far more layers than there are tensors before a model of them is built."""
    transformer, vision = config.transformer, config.vision_tokenizer
    depths: dict[Part, int] = {"transformer": transformer.num_layers if transformer else 0}
    depths["vision_tokenizer"] = (
        max(vision.num_res_blocks, vision.temporal_res_blocks, vision.num_levels) if vision else 0
    )
    depth, stored = depths[part], len(weights.parts.get(part, ()))
    if depth > max(stored, 100):
        raise InputError(
            f"{folder}: config.json describes a {part} {depth} layers deep, but there are {stored} tensors"
        )


def load_checkpoint(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    vision_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    parts: Sequence[Part] | None = None,
    check_finite: bool = True,
    mapped: bool = False,
) -> Checkpoint:
    """Load a folder in any layout, or a hub id such as "BAAI/Emu3-Gen".

    ``dtype`` is the transformer's and ``vision_dtype`` the vision tokenizer's (codes change with it, and the released
    one runs in float32 beside a bfloat16 transformer); None keeps what is stored. ``parts`` names the parts wanted,
    None means all that are there. ``mapped`` leaves what needs no cast on the CPU in its file until it is used: half of
    a vision tokenizer that only encodes never is. Its files may then be replaced, but not changed in place, which
    changes or kills the model. Raises one InputError that names all that the headers of every file and part show to be
    wrong or, if that is nothing, all tensors with NaN or infinity; a long list is cut ("and 2 more").
    """
    opened = open_folder(path_or_id)
    wanted = tuple(opened.tensors) if parts is None else tuple(parts)
    for part in wanted:
        if part not in PARTS:
            raise InputError(f"no part is called {part!r}; there are {', '.join(PARTS)}")
        if part not in opened.tensors:
            raise InputError(f"{opened.folder} holds no {part}, only {', '.join(opened.tensors)}")
    models: dict[str, nn.Module] = {}
    problems = Problems()
    for part in wanted:
        with problems.noted():
            state = read_tensors(
                opened.tensors[part],
                dtype=dtype if part == "transformer" else vision_dtype,
                device=device,
                check_finite=check_finite,
                mapped=mapped,
            )
            models[part] = _filled(empty_model(opened.config, part), state)
    problems.raise_all()
    return Checkpoint(
        config=opened.config,
        text_tokenizer=folder_text_tokenizer(opened) if "transformer" in wanted else None,
        source=opened.folder,
        **models,  # type: ignore[arg-type]
    )


class _WithoutDrawing(TorchFunctionMode):
    """Skip random initialisation: on the meta device it does nothing but import torch's compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def empty_model(config: CheckpointConfig, part: Part) -> nn.Module:
    """Build a part on the meta device, where it takes no memory; raise InputError for sizes that no model can have."""
    try:
        with torch.device("meta"), _WithoutDrawing():
            if part == "transformer":
                assert config.transformer is not None
                return Transformer(config.transformer)
            assert config.vision_tokenizer is not None
            return VisionTokenizer(config.vision_tokenizer)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
        raise InputError(f"the config describes no possible {part}: {(str(error).splitlines() or [''])[0]}") from None


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def folder_text_tokenizer(opened: OpenedFolder) -> TextTokenizer | None:
    """Load the text tokenizer of a folder, if there is one; its ids must lie in the vocabulary's text range."""
    folder, vocabulary = opened.folder, opened.config.vocabulary
    if not any(folder.glob("*.tiktoken")) and not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = load_text_tokenizer(folder)
    if vocabulary is not None and tokenizer.vocab_size > vocabulary.text_size:
        raise InputError(
            f"{folder}: the text tokenizer has {tokenizer.vocab_size} tokens, the vocabulary has room for "
            f"{vocabulary.text_size}"
        )
    return tokenizer


def _filled(model: M, state: dict[str, torch.Tensor]) -> M:
    model.load_state_dict(state, strict=True, assign=True)
    on_meta = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not on_meta, on_meta
    return model.eval()
