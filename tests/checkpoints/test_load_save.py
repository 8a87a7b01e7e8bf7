"""Checkpoints written and read: the same bits in every layout, any dtype, one error for everything that is wrong."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    in_memory_names,
    same_bits,
    small_checkpoint,
    small_config,
    states,
    write_official,
    write_sharded,
)
from safetensors.torch import load_file, save_file

from rhea.checkpoints import weights
from rhea.checkpoints.configs import read_config
from rhea.checkpoints.hub import INSTALLED, resolve
from rhea.checkpoints.load import Checkpoint, load_checkpoint, open_folder
from rhea.checkpoints.save import convert_checkpoint, save_checkpoint
from rhea.errors import InputError


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint()


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    save_checkpoint(tmp_path / "saved", checkpoint)
    return tmp_path / "saved"


def refused(folder: Path | str, *words: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["rhea", "hf"])
@pytest.mark.parametrize("shard_bytes", [10**9, 90_000])
def test_save_and_load_gives_the_same_bits(
    tmp_path: Path, checkpoint: Checkpoint, layout: str, shard_bytes: int
) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout=layout, shard_bytes=shard_bytes)
    again = load_checkpoint(tmp_path / "a")
    assert same_bits(states(checkpoint), states(again))
    assert again.config == checkpoint.config
    assert again.vocabulary.size == checkpoint.vocabulary.size
    assert again.policy == checkpoint.config.pixels
    assert again.text_tokenizer.encode("a red circle") == checkpoint.text_tokenizer.encode("a red circle")
    assert not again.transformer.training
    assert not again.vision_tokenizer.training
    assert all(parameter.requires_grad for parameter in again.transformer.parameters())
    shards = list((tmp_path / "a").glob("*-of-*.safetensors"))
    assert len(shards) == 0 if shard_bytes == 10**9 else len(shards) > 8
    assert all(shard.stat().st_size < 100_000 or len(load_file(shard)) == 1 for shard in shards)
    tokens = torch.arange(6)[None]
    assert torch.equal(again.transformer(tokens), checkpoint.transformer(tokens))


@pytest.mark.parametrize("parts", [("transformer",), ("vision_tokenizer",)])
@pytest.mark.parametrize("layout", ["rhea", "hf"])
def test_one_part_alone(tmp_path: Path, checkpoint: Checkpoint, layout: str, parts: tuple[str, ...]) -> None:
    one = Checkpoint(config=checkpoint.config, **{part: getattr(checkpoint, part) for part in parts})
    save_checkpoint(tmp_path / "a", one, layout=layout)
    again = load_checkpoint(tmp_path / "a")
    assert same_bits(states(one), states(again))
    assert [part for part in ("transformer", "vision_tokenizer") if getattr(again.config, part)] == list(parts)
    other = ({"transformer", "vision_tokenizer"} - set(parts)).pop()
    refused(tmp_path / "a", f"holds no {other}", parts=[other])


def test_only_the_wanted_part_is_loaded(folder: Path, checkpoint: Checkpoint) -> None:
    loaded = load_checkpoint(folder, parts=["vision_tokenizer"])
    assert loaded.transformer is None
    assert loaded.text_tokenizer is None
    assert same_bits(states(loaded), {k: v for k, v in states(checkpoint).items() if k.startswith("vision")})
    with pytest.raises(InputError, match="no part is called 'audio'"):
        load_checkpoint(folder, parts=["audio"])


def test_the_released_folders(tmp_path: Path, checkpoint: Checkpoint) -> None:
    language, vision = write_official(tmp_path, checkpoint)
    text, image = load_checkpoint(language), load_checkpoint(vision)
    assert text.vision_tokenizer is None
    assert image.transformer is None
    assert text.config.transformer == checkpoint.config.transformer
    assert text.config.vocabulary == checkpoint.config.vocabulary
    assert text.config.generation == {"image_area": 4096}
    assert image.config.vision_tokenizer == checkpoint.config.vision_tokenizer
    assert same_bits(states(text) | states(image), states(checkpoint))
    both = text.with_vision_tokenizer(image)
    assert both.config.vision_tokenizer == checkpoint.config.vision_tokenizer
    with pytest.raises(InputError, match="holds no vision tokenizer"):
        image.with_vision_tokenizer(text)


@pytest.mark.parametrize("layout", ["rhea", "hf"])
def test_converting_the_released_folders_into_one(tmp_path: Path, checkpoint: Checkpoint, layout: str) -> None:
    language, vision = write_official(tmp_path, checkpoint)
    (language / "README.md").write_text("the released card")
    checkpoint.text_tokenizer.save(language)
    convert_checkpoint(language, tmp_path / "one", layout, vision_tokenizer=vision)
    again = load_checkpoint(tmp_path / "one")
    assert same_bits(states(again), states(checkpoint))
    assert again.text_tokenizer is not None
    assert (tmp_path / "one" / "README.md").read_text() == "the released card"
    with pytest.raises(InputError, match="holds no vision tokenizer"):
        convert_checkpoint(language, tmp_path / "two", layout, vision_tokenizer=language)
    assert not (tmp_path / "two").exists()


def test_import_then_export_gives_the_same_file(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "hf", checkpoint, layout="hf")
    convert_checkpoint(tmp_path / "hf", tmp_path / "rhea", "rhea")
    convert_checkpoint(tmp_path / "rhea", tmp_path / "hf2", "hf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "hf2" / name).read_bytes()


def test_in_memory_names_are_read_too(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "hf", checkpoint, layout="hf")
    in_memory_names(tmp_path / "hf")
    assert same_bits(states(load_checkpoint(tmp_path / "hf")), states(checkpoint))


@pytest.mark.parametrize(
    ("dtype", "vision_dtype"),
    [(torch.bfloat16, None), (torch.float16, torch.bfloat16), (None, torch.float64), (torch.float64, torch.float16)],
)
def test_any_dtype_to_any_dtype(
    tmp_path: Path, checkpoint: Checkpoint, dtype: torch.dtype | None, vision_dtype: torch.dtype | None
) -> None:
    originals = states(checkpoint)
    save_checkpoint(tmp_path / "a", checkpoint)
    convert_checkpoint(tmp_path / "a", tmp_path / "b", dtype=dtype, vision_dtype=vision_dtype)
    for loaded in (
        load_checkpoint(tmp_path / "a", dtype=dtype, vision_dtype=vision_dtype),
        load_checkpoint(tmp_path / "b"),
    ):
        for name, tensor in states(loaded).items():
            original = originals[name]
            wanted = (dtype if name.startswith("transformer") else vision_dtype) or torch.float32
            wanted = wanted if original.is_floating_point() else torch.int64
            assert tensor.dtype == wanted
            assert torch.equal(tensor, original.to(wanted))
    back = load_checkpoint(tmp_path / "b", dtype=torch.float32)
    assert back.transformer.norm.weight.dtype == torch.float32


def test_blocks_and_windows_leave_no_seam(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "a", checkpoint)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 500)
    monkeypatch.setattr(weights, "WINDOW_BYTES", 1200)
    assert same_bits(states(load_checkpoint(tmp_path / "a")), states(checkpoint))


def test_a_loaded_model_does_not_depend_on_its_file(folder: Path, checkpoint: Checkpoint) -> None:
    loaded = load_checkpoint(folder)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert same_bits(states(loaded), states(checkpoint))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped where")
def test_on_request_weights_stay_in_their_file_until_they_are_used_or_written(
    folder: Path, checkpoint: Checkpoint
) -> None:
    def is_mapped(weight: torch.Tensor) -> bool:
        mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
        ranges = [(int(end, 16) for end in line[0].split("-")) for line in mapped]
        return any(first <= weight.data_ptr() < last for first, last in ranges)

    def weights(loaded: Checkpoint) -> list[torch.Tensor]:
        return [*loaded.vision_tokenizer.parameters(), *loaded.transformer.parameters()]

    loaded = load_checkpoint(folder, mapped=True)
    assert all(is_mapped(weight) for weight in weights(loaded))
    copies = (
        load_checkpoint(folder),
        load_checkpoint(folder, mapped=True, dtype=torch.bfloat16, vision_dtype=torch.bfloat16),
    )
    assert not any(is_mapped(weight) for copied in copies for weight in weights(copied))
    for weight in weights(loaded):
        weight.data.zero_()
    assert same_bits(states(load_checkpoint(folder)), states(checkpoint))


def test_weights_in_another_memory_format_are_saved(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    before = {name: tensor.clone() for name, tensor in states(checkpoint).items()}
    for module in checkpoint.vision_tokenizer.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    for layout in ("rhea", "hf"):
        save_checkpoint(tmp_path / layout, checkpoint, layout=layout)
        assert same_bits(states(load_checkpoint(tmp_path / layout)), before)


def test_qk_norm_is_kept_by_ours_and_refused_by_hf(tmp_path: Path) -> None:
    checkpoint = small_checkpoint(small_config(qk_norm=True))
    save_checkpoint(tmp_path / "a", checkpoint)
    assert same_bits(states(load_checkpoint(tmp_path / "a")), states(checkpoint))
    with pytest.raises(InputError, match="QK-norm"):
        save_checkpoint(tmp_path / "b", checkpoint, layout="hf")
    assert not (tmp_path / "b").exists()


# --- writing ----------------------------------------------------------------------------------------------------------


def test_existing_folders_are_safe(tmp_path: Path, checkpoint: Checkpoint) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letters.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="name a new folder"):
            save_checkpoint(precious, checkpoint, overwrite=overwrite)
    assert (precious / "letters.txt").exists()
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", checkpoint)
    with pytest.raises(InputError, match="exists and is not empty"):
        save_checkpoint(tmp_path / "empty", checkpoint)
    save_checkpoint(tmp_path / "empty", checkpoint, card="# new", overwrite=True)
    assert (tmp_path / "empty" / "README.md").read_text() == "# new"
    with pytest.raises(InputError, match="no layout is called 'gguf'"):
        save_checkpoint(tmp_path / "x", checkpoint, layout="gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "home"]


def test_our_folder_has_the_expected_files(folder: Path) -> None:
    names = {"README.md", "config.json", "tokenizer.json", "transformer.safetensors", "vision_tokenizer.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    assert "nothing at all" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"]) == ("rhea", 1)


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    refused(folder / "config.json", "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no checkpoint", "config.json")
    (tmp_path / "empty" / "config.json").write_text("{")
    refused(tmp_path / "empty", "not valid JSON")
    for content in ("[]", "{}", '{"hidden_size": 3}'):
        (tmp_path / "empty" / "config.json").write_text(content)
        refused(tmp_path / "empty", "no checkpoint")


def test_another_models_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 3}')
    refused(folder, "another model", "'llama'", "emu3")


def test_a_config_of_ours_is_read_strictly(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["transformer"]["num_layres"] = 2
    (folder / "config.json").write_text(json.dumps(content))
    refused(folder, "transformer: unknown keys ['num_layres']")
    edit_json(folder / "config.json", version=2, transformer=None)
    refused(folder, "version: 2 is not one of [1]")


def test_parts_that_do_not_belong_together(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["vision_tokenizer"]["codebook_size"] = 128
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="128 codes, the vocabulary has 64"):
        load_checkpoint(folder)
    content["vision_tokenizer"], content["transformer"]["vocab_size"] = None, 5
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="5 vocabulary rows, the vocabulary has 332 ids"):
        load_checkpoint(folder)


JUNK = [None, "x", 0, -1, 2.5, [3], {}, 10**30]


@pytest.mark.parametrize("kind", ["rhea", "hf", "language", "vision"])
def test_no_value_of_a_config_ends_in_another_error(tmp_path: Path, checkpoint: Checkpoint, kind: str) -> None:
    if kind in ("rhea", "hf"):
        save_checkpoint(tmp_path / kind, checkpoint, layout=kind)
    else:
        write_official(tmp_path, checkpoint)
    folder = tmp_path / kind
    whole = json.loads((folder / "config.json").read_text())
    whole.pop("vocabulary_map", None)
    places = [(key,) for key in whole] + [
        (key, inner) for key, value in whole.items() if isinstance(value, dict) for inner in value
    ]
    for index, place in enumerate(places):
        content = json.loads(json.dumps(whole))
        (content if len(place) == 1 else content[place[0]])[place[-1]] = JUNK[index % len(JUNK)]
        (folder / "config.json").write_text(json.dumps(content))
        with contextlib.suppress(InputError):
            open_folder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"num_hidden_layers": "2"}, "num_layers: expected int, got '2'"),
        ({"hidden_size": "32"}, "no config of a released Emu3 language model"),
        ({"num_attention_heads": 0}, "no config of a released Emu3 language model"),
        ({"eol_token_id": None}, "no ids are given for eol"),
    ],
)
def test_released_configs_that_mean_something_else(
    tmp_path: Path, checkpoint: Checkpoint, changes: dict, message: str
) -> None:
    language, _ = write_official(tmp_path, checkpoint, changes)
    refused(language, message)


def test_every_misfit_is_named_in_one_error(folder: Path) -> None:
    file = folder / "transformer.safetensors"
    tensors = load_file(file)
    del tensors["norm.weight"], tensors["layers.0.mlp.up_proj.weight"]
    tensors["norm.bias"] = torch.zeros(32)
    tensors["lm_head.weight"] = torch.zeros(3, 32)
    save_file(tensors, file)
    message = refused(folder, "2 missing: ", "norm.weight", "layers.0.mlp.up_proj.weight", "1 unexpected: norm.bias")
    assert "1 of another shape: lm_head.weight [3, 32] instead of [332, 32]" in message


def test_a_long_list_of_misfits_is_cut(folder: Path) -> None:
    save_file({"norm.weight": torch.ones(32)}, folder / "transformer.safetensors")
    message = refused(folder, "20 missing", "and 16 more")
    assert len(message) < 500


def test_the_misfits_of_both_parts_are_named_in_one_error(folder: Path) -> None:
    for part, name in (("transformer", "norm.weight"), ("vision_tokenizer", "quantize.embedding.weight")):
        tensors = load_file(folder / f"{part}.safetensors")
        del tensors[name]
        save_file(tensors, folder / f"{part}.safetensors")
    message = refused(folder, "the transformer that its config.json describes: 1 missing: norm.weight; ")
    assert "the vision_tokenizer that its config.json describes: 1 missing: quantize.embedding.weight" in message


def test_what_belongs_to_no_part_is_named_once_beside_other_misfits(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout="hf")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    missing = next(name for name in tensors if name.endswith("embedding.weight"))
    save_file({name: t for name, t in tensors.items() if name != missing} | {"stale": torch.zeros(1)}, file)
    message = refused(tmp_path / "a", "does not hold the vision_tokenizer", "1 missing: ")
    assert message.count("1 tensors unexpected: stale") == message.count("stale") == 1


def test_a_part_without_its_file_or_config(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "b")
    (folder / "vision_tokenizer.safetensors").unlink()
    refused(folder, "does not hold the vision_tokenizer", "missing")
    edit_json(folder.parent / "b" / "config.json", vision_tokenizer=None)
    refused(folder.parent / "b", "vision_tokenizer that its config.json does not describe")


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_files(folder: Path, keep: int) -> None:
    file = folder / "transformer.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "transformer.safetensors", "damaged")


def test_both_damaged_files_are_named_in_one_error(folder: Path) -> None:
    files = [folder / "transformer.safetensors", folder / "vision_tokenizer.safetensors"]
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    message = refused(folder, *(f"{file} is cut off, damaged" for file in files))
    assert "missing" not in message, "a damaged file's tensors are not told as missing besides"


def test_a_damaged_file_hides_no_misfit_of_the_other_part(folder: Path) -> None:
    (folder / "vision_tokenizer.safetensors").unlink()
    (folder / "transformer.safetensors").write_bytes(b"")
    message = refused(folder, "transformer.safetensors is cut off", "does not hold the vision_tokenizer")
    assert "does not hold the transformer" not in message


def test_a_long_list_of_damaged_shards_is_cut(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout="hf")
    write_sharded(tmp_path / "a", load_file(tmp_path / "a" / "model.safetensors"), 10)
    shards = sorted((tmp_path / "a").glob("model-*"))
    for shard in shards:
        shard.write_bytes(b"")
    message = refused(tmp_path / "a", *(shard.name for shard in shards[:8]), "and 2 more")
    assert shards[8].name not in message


@pytest.mark.parametrize("position", [0, 8, 20, 200])
def test_corrupt_headers(folder: Path, position: int) -> None:
    file = folder / "transformer.safetensors"
    data = bytearray(file.read_bytes())
    data[position : position + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    refused(folder)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("-inf"), torch.float32),
        (float("inf"), torch.bfloat16),
        (float("nan"), torch.float16),
        (float("-inf"), torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "lm_head.weight"), ("vision_tokenizer", "decoder.conv_in.weight")]
)
def test_weights_with_nan_in_a_late_block(
    folder: Path, value: float, dtype: torch.dtype, part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", 2000)
    file = folder / f"{part}.safetensors"
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(file).items()}
    late = tensors[name].float()
    late[-1] = value
    tensors[name] = late.to(dtype)
    save_file(tensors, file)
    refused(folder, "1 tensors hold NaN or infinity", name)
    with pytest.raises(InputError, match=f"1 tensors hold NaN or infinity: {name}"):
        load_checkpoint(folder, mapped=True)
    assert getattr(load_checkpoint(folder, check_finite=False), part) is not None
    with pytest.raises(InputError, match="NaN"):
        convert_checkpoint(folder, folder.parent / "b")
    assert not (folder.parent / "b").exists()


def test_nan_in_both_parts_is_named_in_one_error(folder: Path) -> None:
    names = {"transformer": "norm.weight", "vision_tokenizer": "quantize.embedding.weight"}
    for part, name in names.items():
        tensors = load_file(folder / f"{part}.safetensors")
        tensors[name][0] = float("nan")
        save_file(tensors, folder / f"{part}.safetensors")
    message = refused(folder, *(f"1 tensors hold NaN or infinity: {name}" for name in names.values()))
    assert message.count("1 tensors hold NaN") == 2


def test_a_cast_that_overflows_is_no_silent_infinity(folder: Path) -> None:
    file = folder / "transformer.safetensors"
    tensors = load_file(file)
    tensors["norm.weight"][0] = 1e5
    save_file(tensors, file)
    assert load_checkpoint(folder).transformer is not None
    refused(folder, "as torch.float16", "norm.weight", dtype=torch.float16)


def test_shards(tmp_path: Path, checkpoint: Checkpoint) -> None:
    language, _ = write_official(tmp_path, checkpoint)
    (language / "model-00002-of-00003.safetensors").unlink()
    refused(language, "1 of 3 shards are missing: model-00002-of-00003.safetensors")
    index = language / "model.safetensors.index.json"
    for content in ("[]", '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        refused(language, "no index of shards")
    index.write_text('{"weight_map": {"a": "../../etc/secret.safetensors"}}')
    refused(language, "outside its folder")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    language, _ = write_official(tmp_path, checkpoint)
    tensors = load_file(language / "model-00001-of-00003.safetensors")
    tensors |= {k: v for k, v in load_file(language / "model-00002-of-00003.safetensors").items() if "norm" in k}
    save_file(tensors, language / "model-00001-of-00003.safetensors")
    refused(language, "there twice")


def test_pickled_weights_are_never_opened(tmp_path: Path, folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    refused(folder, "no safetensors weights")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    refused(folder, "pytorch_model.bin", "convert them to safetensors")


def test_a_text_tokenizer_too_large_for_its_vocabulary(folder: Path) -> None:
    specification = json.loads((folder / "tokenizer.json").read_text())
    specification["model"]["vocab"]["abc"] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(specification))
    refused(folder, "text tokenizer has 1000001 tokens", "room for 260")


def test_models_of_the_package_have_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("default", "rich"):
        assert resolve(name) == INSTALLED / name
        assert (resolve(name) / "transformer.safetensors").is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rich").mkdir()
    assert resolve("rich") == Path("rich")  # what is here goes first
    refused("richer", "no such folder", "default, rich")


def test_hub_ids_give_one_plain_line_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    refused("BAAI/Emu3-Gen-not-there", "no folder", "Hugging Face hub")
    refused("a/b/c", "no such folder")
    refused("../nowhere", "no such folder")


def test_a_hub_id_is_fetched_without_pickles(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = {}

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert load_checkpoint("somebody/model").transformer is not None
    assert asked["name"] == "somebody/model"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["patterns"])


# --- released configs -------------------------------------------------------------------------------------------------


def test_sparse_configs_are_filled_with_the_released_values(tmp_path: Path) -> None:
    """transformers writes only what differs from its defaults."""
    file = tmp_path / "config.json"
    text = {"max_position_embeddings": 131072, "model_type": "emu3_text_model"}
    file.write_text(json.dumps({"model_type": "emu3", "text_config": text, "vq_config": {"model_type": "emu3_vqgan"}}))
    _, config = read_config(tmp_path)
    assert config.transformer.max_seq_len == 131072
    assert (config.transformer.dim, config.transformer.num_layers, config.transformer.vocab_size) == (4096, 32, 184622)
    assert config.transformer.dropout == 0.1
    assert config.vocabulary.num_special == 211
    assert (config.vision_tokenizer.base_channels, config.vision_tokenizer.codebook_size) == (256, 32768)
    assert (config.pixels.min_pixels, config.pixels.max_pixels, config.pixels.factor) == (262144, 1048576, 8)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 4096, "max_pixels": 9999}))
    assert read_config(tmp_path)[1].pixels.max_pixels == 9999


def test_vocabulary_of_a_foreign_combined_folder(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout="hf")
    content = json.loads((tmp_path / "a" / "config.json").read_text())
    del content["rhea"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(content))
    again = load_checkpoint(tmp_path / "a")
    assert again.config.vocabulary == checkpoint.config.vocabulary
    assert np.array_equal(states(again)["transformer.norm.weight"], states(checkpoint)["transformer.norm.weight"])


def test_single_file_beside_the_shards_is_not_mixed_in(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout="hf")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    write_sharded(tmp_path / "a", tensors, 2)
    save_file({"stale": torch.zeros(1)}, tmp_path / "a" / "model.safetensors")
    assert same_bits(states(load_checkpoint(tmp_path / "a")), states(checkpoint))


def test_a_model_packed_for_generation_is_not_saved(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "first", checkpoint)
    loaded = load_checkpoint(tmp_path / "first")
    assert loaded.transformer is not None
    loaded.transformer.pack(alone=True)
    with pytest.raises(InputError, match="packed for generation"):
        save_checkpoint(tmp_path / "second", loaded)
    assert not (tmp_path / "second").exists()
