"""Tokens per second of the plain loop against transformers' generate, on the same random 110 M weights.

Two tasks, in bfloat16 and float32: a guided picture under the grid constraint (theirs: see ``peer.py``), and unguided
text. Theirs runs with its dynamic and its static cache; the faster counts.
Usage: python benchmarks/generation.py [--new-tokens 256] [--repeats 5]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from medium import medium
from peer import draw_pictures, write_texts
from record import interleaved, median, save
from steps import AnyText, guided_picture

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.documents import formats
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.models.transformer import Transformer
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

WIDTH = 31
PROMPT = "a small red circle is left of the big blue square, and a green triangle is above them all."
TOP_K = 2048


def build(dtype: torch.dtype) -> tuple[Transformer, Grammar, Any]:
    """Return our model (packed), a grammar for it, and theirs with the same weights."""
    text_tokenizer = train_text_tokenizer([PROMPT], vocab_size=300)
    vocabulary = compact_vocabulary(text_size=7224, vision_size=32768)
    config = medium(vocabulary, max_seq_len=4096)
    model = Transformer(config)
    model.init_weights(seed=0)
    model = model.to(dtype).eval()
    checkpoint = Checkpoint(
        config=CheckpointConfig(transformer=config, vocabulary=vocabulary),
        transformer=model,
        text_tokenizer=text_tokenizer,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "hf", checkpoint, layout="hf")
        theirs = transformers.Emu3ForCausalLM.from_pretrained(Path(folder) / "hf", dtype=dtype).eval()
    theirs.generation_config.eos_token_id = None  # every run makes as many tokens
    known = Vocabulary(vocabulary)
    return model.pack(known.boundaries, alone=True), Grammar(known, text_tokenizer), theirs


def picture(model: Transformer, grammar: Grammar, theirs: Any, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """Return the sides of a guided picture of ``new_tokens`` codes and ends of line."""
    size = ImageSize(height=new_tokens // (WIDTH + 1), width=WIDTH)
    sampling = SamplingConfig(top_k=TOP_K, guidance_scale=3.0)
    request = guided_picture(grammar, PROMPT, size, sampling, negative="blurry", max_new_tokens=new_tokens)

    def peer(cache: str) -> Callable[[], Any]:
        return lambda: draw_pictures(theirs, grammar.vocabulary, [request], size, new_tokens, cache)

    return _sides(model, request, peer)


def text(model: Transformer, grammar: Grammar, theirs: Any, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """Return the sides of unguided text of ``new_tokens`` tokens."""
    prompt = grammar.render_prompt(formats.question_answering(None, PROMPT))
    request = Request(
        prompt=prompt.tolist(),
        constraint=AnyText(grammar, "text").start(prompt),
        max_new_tokens=new_tokens,
        sampling=SamplingConfig(top_k=50),
    )

    def peer(cache: str) -> Callable[[], Any]:
        return lambda: write_texts(theirs, grammar.vocabulary, [request], cache)

    return _sides(model, request, peer)


def _sides(
    model: Transformer, request: Request, peer: Callable[[str], Callable[[], Any]]
) -> dict[str, Callable[[], Any]]:
    return {
        "rhea": lambda: continue_prompts(model, [request]),
        "transformers, dynamic cache": peer("dynamic"),
        "transformers, static cache": peer("static"),
    }


def measure(sides: dict[str, Callable[[], Any]], new_tokens: int, repeats: int) -> dict[str, Any]:
    """Return tokens per second of each side, and ours over the faster of theirs."""
    rates = {name: new_tokens / median(times) for name, times in interleaved(sides, repeats).items()}
    best = max(rate for name, rate in rates.items() if name != "rhea")
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_the_fastest_peer": round(rates["rhea"] / best, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=256, help="a multiple of 32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, Any] = {"new_tokens": options.new_tokens, "repeats": options.repeats}
    for dtype in (torch.bfloat16, torch.float32):
        parts = build(dtype)
        results[str(dtype).removeprefix("torch.")] = {
            "guided picture": measure(picture(*parts, options.new_tokens), options.new_tokens, options.repeats),
            "text": measure(text(*parts, options.new_tokens), options.new_tokens, options.repeats),
        }
    save(__file__, results)


if __name__ == "__main__":
    main()
