"""The engine on quantized weights and caches: the same tokens for any window and schedule, as with full precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plain import MIXED, MODEL, tiny_parts

from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.plain import continue_prompts
from rhea.models.quantized import quantize
from rhea.models.slot_cache import CacheStorage

INT8, _ = tiny_parts()
quantize(INT8, "int8")
WIDE, _ = tiny_parts()
WIDE.double()
"""In float32 a sum in another order may move a value over an edge between two codes of the cache."""
with torch.no_grad():
    for layer in WIDE.layers:
        layer.attention.q_proj.weight.mul_(8)  # type: ignore[union-attr, operator]  # so sharp that rounding tells
REQUESTS = [MIXED[name] for name in ("picture", "film", "answer", "cool answer")]


@pytest.mark.parametrize("window", [1, 8])
def test_int8_weights_give_the_plain_loops_tokens(window: int) -> None:
    requests = list(MIXED.values())
    alone = [continue_prompts(INT8, [request])[0] for request in requests]
    assert Engine(INT8, EngineConfig(window=window)).run(requests) == alone
    assert alone != [continue_prompts(MODEL, [request])[0] for request in requests], "rounding changed nothing"


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_a_cache_of_eight_bits_gives_one_result_for_any_schedule(storage: CacheStorage) -> None:
    alone = [Engine(WIDE, EngineConfig(window=1, slots=2, cache=storage)).run([request])[0] for request in REQUESTS]
    assert alone != [continue_prompts(WIDE, [request])[0] for request in REQUESTS], "nothing was rounded"

    @settings(max_examples=6, deadline=None)
    @given(slots=st.integers(2, 9), chunk=st.integers(1, 40), window=st.sampled_from([1, 3, 16]))
    def check(slots: int, chunk: int, window: int) -> None:
        config = EngineConfig(slots=slots, prefill_chunk=chunk, window=window, cache=storage)
        assert Engine(WIDE, config).run(REQUESTS) == alone

    check()
