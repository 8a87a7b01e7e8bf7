"""Scores by networks: ours against torchmetrics' where it has one, published shapes and counts, sane values."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from rhea import media
from rhea.errors import InputError
from rhea.evaluation import networks, scores
from rhea.evaluation.networks import Inception, Lpips, resize_as_tensorflow

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_is_that_of_torchmetrics(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    torch.manual_seed(0)
    ours = Lpips(backbone)
    for number in range(5):
        ours.get_parameter(f"lin{number}.model.1.weight").data.abs_()
    save_file(ours.state_dict(), tmp_path / "lpips.safetensors")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: ours.features)
    reference = theirs._LPIPS(net=backbone, pretrained=False)
    reference.load_state_dict(
        {name: t for name, t in ours.state_dict().items() if name.startswith("lin")}, strict=False
    )
    first, second = RNG.integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)
    name, distance = scores.lpips(tmp_path / "lpips.safetensors")
    one, other = (torch.tensor(each).movedim(-1, 0)[None] / 127.5 - 1 for each in (first, second))
    assert name == f"LPIPS ({backbone})"
    assert distance(first, second) == pytest.approx(reference.eval()(one, other).item(), rel=1e-5)
    assert distance(first, second) > 1e-3
    assert distance(first, first) == 0
    assert math.isnan(distance(first[:31], second[:31]))


def test_inception_is_the_published_one() -> None:
    with torch.device("meta"):
        network = Inception()
    # 27,161,264 in all of torchvision's, less 3,326,696 of its auxiliary head and 2,049,000 of its classifier.
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_785_568
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_6c.branch7x7dbl_5.bn.running_var",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
    } < names
    kernels = {name: tuple(tensor.shape[2:]) for name, tensor in network.state_dict().items() if tensor.ndim == 4}
    assert kernels["Mixed_6b.branch7x7_2.conv.weight"] == (1, 7)
    assert kernels["Mixed_6b.branch7x7dbl_2.conv.weight"] == (7, 1)


def test_pictures_are_resized_from_the_corner() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize_as_tensorflow(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resize_as_tensorflow(ramp, 2)[0, 0], torch.tensor([[0.0, 2.0], [0.0, 2.0]]))
    assert resize_as_tensorflow(ramp.mT, 8)[0, 0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


class Means(torch.nn.Module):
    """Stands in for Inception: four features that a person can compute."""

    num_features = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x.float(), (2, 2)).mean(1).flatten(1)


def test_fid_is_the_distance_of_two_gaussians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "load_inception", lambda *_: Means())
    features: dict[str, Any] = {"real": [], "drawn": []}
    for side, low in (("real", 0), ("drawn", 60)):
        for number in range(12):
            pixels = np.kron(RNG.integers(low, 180, (2, 2, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
            media.write_picture(tmp_path / side / f"{number}.png", pixels)
            features[side].append(Means()(torch.tensor(pixels).movedim(-1, 0)[None])[0].double().numpy())
    (mean, cov), (other, other_cov) = ((np.mean(each, 0), np.cov(each, rowvar=False)) for each in features.values())
    root = np.sqrt(np.linalg.eigvals(cov @ other_cov)).real.sum()
    expected = np.square(mean - other).sum() + np.trace(cov) + np.trace(other_cov) - 2 * root
    measured = scores.fid(tmp_path / "real", tmp_path / "drawn", tmp_path / "any")
    assert measured == pytest.approx(expected, rel=1e-4)
    assert scores.fid(tmp_path / "real", tmp_path / "real", tmp_path / "any") == pytest.approx(0, abs=1e-3)
    report = scores.score_folder(tmp_path / "drawn", reference=tmp_path / "real", fid_weights=tmp_path / "any")
    assert report.figure("pictures", "FID").value == measured
    with pytest.raises(InputError, match="say what to measure"):
        scores.score_folder(tmp_path / "drawn", reference=tmp_path / "real")
    (tmp_path / "one").mkdir()
    media.write_picture(tmp_path / "one" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="at least two pictures"):
        scores.fid(tmp_path / "real", tmp_path / "one", tmp_path / "any")
    with pytest.raises(InputError, match="holds no pictures"):
        scores.fid(tmp_path / "real", tmp_path / "none", tmp_path / "any")


def tiny_clip(folder: Path) -> Path:
    """Write a random CLIP with a vocabulary of bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(
        text_config={**size, **ends, "vocab_size": 514, "max_position_embeddings": 77},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **crop}))
    return folder


def test_clip_score_is_the_cosine(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    clip = tiny_clip(tmp_path / "clip")
    prompts, files = ["a red star", "a dog"], [tmp_path / "0.png", tmp_path / "1.png"]
    for file in files:
        media.write_picture(file, RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    measured = scores.clip_score(files, prompts, str(clip))
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for file, prompt, score in zip(files, prompts, measured, strict=True):
        inputs = processor(text=[prompt], images=[media.read_picture(file)], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        cosine = F.cosine_similarity(outputs.image_embeds, outputs.text_embeds).item()
        assert score == pytest.approx(max(0.0, 100 * cosine), rel=1e-4)
    assert len({round(score, 3) for score in measured}) == 2
    prompt_file, drawn = tmp_path / "color.txt", tmp_path / "drawn" / "samples"
    prompt_file.write_text("\n".join(prompts))
    (tmp_path / "drawn.json").write_text('{"samples": 1, "checkpoint": "abc"}')
    for number, (file, prompt) in enumerate(zip(files, prompts, strict=True)):
        media.write_picture(drawn / f"{prompt}_{number:06}.png", media.read_picture(file))
    report = scores.score_folder(tmp_path / "drawn", clip=str(clip), suite="t2i-compbench", prompts=prompt_file)
    assert report.checkpoint_hash == "abc"
    assert report.figure("pictures", "CLIP score").value == pytest.approx(np.mean(measured))
    with pytest.raises(InputError, match=r"no CLIP in .*: download model"):
        scores.clip_score(files, prompts, str(tmp_path / "nothing"))


def test_missing_weights_say_what_to_download(tmp_path: Path) -> None:
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x02}q\x00.")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for load, said in ((networks.load_inception, "pt_inception-2015-12-05"), (networks.load_lpips, "alexnet-owt")):
        for name, why in (
            ("none", "no such file"),
            ("pickle.pth", "is no safetensors"),
            ("other.safetensors", "not hold"),
        ):
            with pytest.raises(InputError, match=f"{why}.*{said}.*weights_only=True"):
                load(tmp_path / name)
