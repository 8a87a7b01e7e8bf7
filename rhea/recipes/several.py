"""Begin with several models: with the mean of some that are alike, or with all of them side by side in a wider one."""

from collections.abc import Sequence

import torch

from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.documents.loader import PackedLoader
from rhea.errors import InputError
from rhea.models.joining import join, joined_config
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer


def mean_checkpoint(paths: Sequence[str]) -> Checkpoint:
    """Load a checkpoint, or the first of several with their mean weights; InputError if those are not alike."""
    checkpoints = [load_checkpoint(path, dtype=torch.float32) for path in paths]
    if len(checkpoints) == 1:
        return checkpoints[0]
    transformers = [each.transformer for each in checkpoints if each.transformer is not None]
    first, alike = checkpoints[0], len(transformers) == len(checkpoints)
    for other in checkpoints[1:]:
        alike &= other.config.transformer == first.config.transformer
        alike &= other.config.vocabulary == first.config.vocabulary and spelling(other) == spelling(first)
    if not alike:
        raise InputError(f"a mean is taken of transformers of the same sizes and text tokenizer: {', '.join(paths)}")
    states = [each.state_dict() for each in transformers]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    transformers[0].load_state_dict(mean)
    return first


def load_parts(paths: Sequence[str], vision_tokenizer: VisionTokenizer) -> list[Checkpoint]:
    """Load whole checkpoints that share this vision tokenizer and a text tokenizer; InputError if they don't."""
    parts = [load_checkpoint(path, dtype=torch.float32) for path in paths]
    for part, path in zip(parts, paths, strict=True):
        if part.transformer is None or part.vision_tokenizer is None or part.text_tokenizer is None:
            raise InputError(f"{path} is not a whole model: one that is joined needs a transformer and its tokenizers")
        its, ours = (each.quantize.embedding.weight.float() for each in (part.vision_tokenizer, vision_tokenizer))
        if its.shape != ours.shape or not torch.allclose(its, ours, atol=1e-2):
            raise InputError(f"{path} has another vision tokenizer than this run: its codes mean something else")
        if spelling(part) != spelling(parts[0]):
            raise InputError(f"{path} has another text tokenizer than {paths[0]}: models that are joined share one")
    return parts


def join_from(parts: Sequence[Checkpoint], model: Transformer, loader: PackedLoader) -> None:
    """Write their transformers into ``model``; InputError that names the sizes that it must have, if it has others."""
    smaller = [part.transformer for part in parts if part.transformer is not None]
    wanted = joined_config([each.config for each in smaller])
    names = "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim"
    if any(getattr(wanted, name) != getattr(model.config, name) for name in names):
        sizes = " ".join(f"--model.{name.replace('_', '-')} {getattr(wanted, name)}" for name in names)
        raise InputError(f"the models that are joined make one of other sizes than this recipe's: {sizes}")
    batch = loader.next_batch()
    join(smaller, model, torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.document_ids).long())


def spelling(checkpoint: Checkpoint) -> list[str]:
    """Return the text of every text token."""
    tokenizer = checkpoint.text_tokenizer
    return [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)] if tokenizer is not None else []
