"""int8 layers: how far rounding may go, what is exact, and that nothing but the matrices of the layers is touched."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_checkpoint
from torch import Tensor, nn

import rhea
from rhea.checkpoints.save import save_checkpoint
from rhea.cli_options import ModelOptions
from rhea.documents import formats
from rhea.documents.document import ImageSize
from rhea.errors import InputError
from rhea.models import quantized
from rhea.models.quantized import QuantizedLinear, int8_linear, quantize
from rhea.models.rounding import to_fp8, to_int8
from rhea.models.transformer import Transformer

# An activation keeps 1 / (2 * 127 * 254) of its row's largest value; beside it float32 sums in another order.
ACTIVATION_ERROR = 1 / (2 * 127 * 254) + 1e-6
PATHS = pytest.mark.parametrize("integers", [True, False], ids=["digits", "widened"])


def tiny_model() -> Transformer:
    model = tiny_checkpoint().transformer
    assert model is not None
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def choose(monkeypatch: pytest.MonkeyPatch, integers: bool) -> None:
    if integers and not quantized._has_integer_products():
        pytest.skip("this CPU has no integer dot products")
    monkeypatch.setattr(quantized, "_has_integer_products", lambda: integers)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=9), st.integers(-60, 60))
def test_rounding_is_off_by_half_a_scale_at_most(values: list[int], exponent: int) -> None:
    row = torch.tensor([values]) * 2.0**exponent
    codes, scale = to_int8(row)
    assert codes.dtype == torch.int8
    assert codes.min() >= -127
    error = (codes * scale.double() - row).abs()
    assert (error <= (0.5 + 1e-4) * scale).all()
    negated, same = to_int8(-row)
    assert torch.equal(negated, -codes)
    assert torch.equal(same, scale)


def test_what_eight_bits_hold_is_exact() -> None:
    on_the_grid = torch.tensor([[127.0, -64.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, -63.5, 0.0, 1.0]])
    codes, scale = to_int8(on_the_grid)
    assert torch.equal(codes * scale, on_the_grid)
    assert scale.flatten().tolist() == [1.0, 0.0, 0.5]
    assert to_int8(torch.tensor([[1.0, float("nan")]]))[1].isnan().all(), "damage must not be hidden"


def test_fp8_keeps_three_bits_and_saturates() -> None:
    x = normal(1000).abs() + 2**-6
    assert ((to_fp8(x).float() - x).abs() <= x / 16).all()
    large = torch.tensor([1e9, -449.0, 448.0, float("nan")])
    assert to_fp8(large).float().tolist()[:3] == [448.0, -448.0, 448.0]
    assert to_fp8(large).float()[3].isnan()


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_is_its_rounded_matrix(monkeypatch: pytest.MonkeyPatch, integers: bool, dtype: torch.dtype) -> None:
    choose(monkeypatch, integers)
    linear = nn.Linear(40, 24, bias=False).requires_grad_(False)
    linear.weight.copy_(normal(24, 40))
    layer, x = QuantizedLinear(linear), 10 * normal(3, 5, 40, seed=1).to(dtype)
    matrix = layer.weight * layer.scale[:, None]
    assert ((matrix - linear.weight).abs() <= 0.5001 * layer.scale[:, None]).all()
    assert (layer.scale - linear.weight.abs().amax(1) / 127).abs().max() < 1e-9
    output, expected = layer(x), x.double() @ matrix.double().T
    assert output.dtype == dtype
    rounding = 0.0 if dtype == torch.float32 else 2**-7  # of sums and products in bfloat16
    bound = ACTIVATION_ERROR * x.double().abs().amax(-1, keepdim=True) * matrix.double().abs().sum(1)
    bound += rounding * (x.double().abs() @ matrix.double().abs().T)
    assert ((output - expected).abs() <= bound).all()


@PATHS
def test_zeros_and_single_entries_are_exact(monkeypatch: pytest.MonkeyPatch, integers: bool) -> None:
    choose(monkeypatch, integers)
    weight, scale = torch.zeros(3, 8, dtype=torch.int8), torch.tensor([1.0, 2.0, 0.0])
    weight[0, 2], weight[1] = 127, torch.arange(-4, 4)
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 3] = 127.0, -127.0
    expected = torch.tensor([[0.0, 0.0, 0.0], [127.0 * 127, -2.0 * 2 * 127, 0.0], [0.0, 1.0 * 2 * 127, 0.0]])
    assert torch.equal(int8_linear(x, weight, scale), expected)


def test_activations_keep_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, True)
    x = normal(20, 64) * 10 ** normal(20, 1, seed=1)
    back = int8_linear(x, 127 * torch.eye(64, dtype=torch.int8), torch.full((64,), 1 / 127))
    assert ((back - x).abs() <= ACTIVATION_ERROR * x.abs().amax(1, keepdim=True)).all()


def test_a_row_depends_on_no_other_to_the_last_bit() -> None:
    if not quantized._has_integer_products():
        pytest.skip("this CPU has no integer dot products")
    layer, x = QuantizedLinear(nn.Linear(96, 64, bias=False)), normal(33, 96)
    whole = layer(x)
    assert all(
        torch.equal(layer(x[start : start + count]), whole[start : start + count])
        for start, count in ((0, 1), (7, 2), (20, 13))
    )


def test_only_the_matrices_of_the_layers_change() -> None:
    model, plain = tiny_model(), tiny_model().state_dict()
    matrices = {
        f"layers.{i}.{part}_proj.weight"
        for i in range(2)
        for part in ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
    }
    assert quantize(model, "int8") is model
    state = model.state_dict()
    assert {name for name, tensor in state.items() if tensor.dtype == torch.int8} == matrices
    assert set(state) == set(plain) | {name.replace("weight", "scale") for name in matrices}
    for name, tensor in plain.items():
        assert name in matrices or torch.equal(state[name], tensor), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("pack", ["before", "after", "never"])
def test_packing_before_or_after_makes_no_difference(pack: str) -> None:
    model, tokens = tiny_model(), torch.arange(12)[None]
    separate = quantize(copy.deepcopy(model), "int8")
    for layer in separate.layers:
        layer.attention.packed = layer.mlp.packed = None  # type: ignore[union-attr, assignment]
    if pack == "before":
        model.pack()
        model(tokens)
    quantize(model, "int8")
    if pack == "after":
        model.pack()
    torch.testing.assert_close(model(tokens), separate(tokens))
    assert not torch.allclose(model(tokens), tiny_model()(tokens), atol=1e-4), "nothing was rounded"


@torch.no_grad()
def test_moved_cast_and_loaded_weights_are_noticed() -> None:
    tokens, model, other = torch.arange(12)[None], quantize(tiny_model(), "int8"), tiny_model()
    other.init_weights(seed=9)
    expected = quantize(other, "int8")(tokens)
    model.to(torch.float64).to(torch.float32)
    with torch.inference_mode():
        model(tokens)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(tokens), expected)
    model.load_state_dict({name: tensor.clone() for name, tensor in tiny_model_int8().items()}, assign=True)
    assert torch.equal(model(tokens), quantize(tiny_model(), "int8")(tokens))
    model.to(torch.float64).to(torch.float32)
    assert torch.equal(copy.deepcopy(model)(tokens), quantize(tiny_model(), "int8")(tokens))
    attention: Any = model.layers[0].attention
    storages = {each.weight.untyped_storage().data_ptr() for each in (attention.q_proj, attention.k_proj)}
    assert len(storages) == 1, "the fused matrix is a second copy"


def tiny_model_int8() -> dict[str, Tensor]:
    return quantize(tiny_model(), "int8").state_dict()


def test_training_is_refused() -> None:
    model = quantize(tiny_model(), "int8")
    model.embed_tokens.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="cannot be trained"):
        model(torch.arange(4)[None])


def test_formats_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not one of int8, fp8"):
        quantize(tiny_model(), "int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"GPU of compute capability 8\.9"):
        quantize(tiny_model(), "fp8")


def test_fp8_takes_torchao_and_the_matrices_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is asked of torchao, and what is said where it or bfloat16 is missing."""
    monkeypatch.setattr(quantized, "_check_gpu", lambda device: None)
    with pytest.raises(InputError, match="in bfloat16, not float32"):
        quantize(tiny_model(), "fp8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match="pip install torchao"):
        quantize(tiny_model().bfloat16(), "fp8")
    chosen: list[str] = []

    def quantize_(model: nn.Module, config: Any, filter_fn: Any) -> None:
        assert config == {"granularity": "rows"}
        chosen.extend(name for name, module in model.named_modules() if filter_fn(module, name))

    fake = SimpleNamespace(
        quantize_=quantize_, PerRow=lambda: "rows", Float8DynamicActivationFloat8WeightConfig=lambda **kw: kw
    )
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    model = quantize(tiny_model().pack().bfloat16(), "fp8")
    assert all(layer.attention.packed is None for layer in model.layers), "the old matrices are still used"
    assert len(chosen) == 2 * 7
    assert all(name.startswith("layers.") and name.endswith("_proj") for name in chosen)


@torch.no_grad()
def test_loading_the_default_model_in_eight_bits() -> None:
    plain, loaded = rhea.load(device="cpu"), ModelOptions(device="cpu", weights="int8").load()
    transformer = loaded.completer.transformer
    layers = [each for each in transformer.modules() if isinstance(each, QuantizedLinear)]
    assert len(layers) == 7 * transformer.config.num_layers
    assert loaded.codec is not None
    assert not any(isinstance(each, QuantizedLinear) for each in loaded.codec.model.modules())
    tokens = loaded.completer.grammar.render_prompt(formats.text_to_image("a red circle"), ImageSize(height=8, width=8))
    logits = transformer(torch.from_numpy(tokens)[None]).log_softmax(-1)
    expected = plain.completer.transformer(torch.from_numpy(tokens)[None]).log_softmax(-1)
    divergence = F.kl_div(logits, expected, log_target=True, reduction="none").sum(-1)
    assert 0 < divergence.mean() < 0.02
    assert loaded.generate("a large red circle")[0].pixels.shape == (64, 64, 3)
    with pytest.raises(InputError, match="GPU"):
        rhea.load(weights="fp8", device="cpu")


def test_without_a_transformer_there_is_nothing_to_quantize(tmp_path: Path) -> None:
    checkpoint = replace(tiny_checkpoint(), transformer=None)
    save_checkpoint(tmp_path / "vision", checkpoint)
    with pytest.raises(InputError, match="no transformer to quantize"):
        rhea.load(tmp_path / "vision", weights="int8", device="cpu")


def test_quantized_weights_are_not_saved(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    assert checkpoint.transformer is not None
    quantize(checkpoint.transformer, "int8")
    with pytest.raises(InputError, match="quantize it on loading"):
        save_checkpoint(tmp_path / "folder", checkpoint)
    assert not (tmp_path / "folder").exists()
