"""What a step of the engine allocates: late in a long picture no more than early, but for the mask over the keys.

The allocator's own events are counted, so temporaries inside kernels count too, and the figures are the same each time.
A picture whose rows are mostly given begins late: no test need draw thousands of tokens.
"""

import pytest
import torch
from test_plain import GRAMMAR
from torch.profiler import ProfilerActivity, profile

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer

SIDE = 60
EARLY, LATE = 2, 50
"""Rows that are given."""
SLOTS = 2
CONFIG = TransformerConfig(
    vocab_size=GRAMMAR.vocabulary.size,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,  # wide, so that a copy of keys would tower over the mask
    ffn_dim=48,
    max_seq_len=4096,
)


def model(dtype: torch.dtype) -> Transformer:
    transformer = Transformer(CONFIG)
    transformer.init_weights(seed=0)
    return transformer.to(dtype).eval().pack()


def guided_picture(given_rows: int) -> Request:
    size, vocabulary = ImageSize(height=SIDE, width=SIDE), GRAMMAR.vocabulary
    row = [vocabulary.vision[column % len(vocabulary.vision)] for column in range(SIDE)] + [vocabulary.eol]
    prompts = [GRAMMAR.render_prompt(formats.text_to_image(text), size).tolist() for text in ("two red", "")]
    prompt, negative = (each + given_rows * row for each in prompts)
    return Request(
        prompt=prompt,
        negative_prompt=negative,
        constraint=Constraint(GRAMMAR, "visual").start(prompt),
        max_new_tokens=SIDE,
        sampling=SamplingConfig(guidance_scale=2.0, top_k=8),
    )


def workspace(transformer: Transformer, window: int, given_rows: int) -> int:
    """Return the most bytes that one step holds beyond what was there before it."""
    engine = Engine(transformer, EngineConfig(slots=SLOTS, window=window))
    ticket = engine.submit(guided_picture(given_rows))
    while len(ticket.tokens) < 3:  # past the prompt, and warm
        engine.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        engine.step()
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    assert held[-1] < held.max(), "the allocator's events were not seen"
    return int(held.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 8])
def test_a_steps_workspace_grows_by_the_mask_alone(dtype: torch.dtype, window: int) -> None:
    transformer = model(dtype)
    early, late = (workspace(transformer, window, rows) for rows in (EARLY, LATE))
    keys = (LATE - EARLY) * (SIDE + 1)
    queries = SLOTS * window * CONFIG.num_heads // CONFIG.num_kv_heads
    # As booleans of the tokens and of the grouped queries, as numbers of the latter, and the positions compared with.
    mask_of_a_key = SLOTS * window + queries * (1 + torch.float32.itemsize) + torch.int64.itemsize
    keys_of_a_layer = SLOTS * CONFIG.num_kv_heads * CONFIG.head_dim * dtype.itemsize
    assert mask_of_a_key < keys_of_a_layer
    assert late - early <= keys * mask_of_a_key + 4096
