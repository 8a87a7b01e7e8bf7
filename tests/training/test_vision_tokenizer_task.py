import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image
from tiny_runs import PixelLoader, vision_tokenizer_task

from rhea.errors import InputError
from rhea.models.vision.codebook_training import CodebookTrainingConfig
from rhea.models.vision.discriminator import DiscriminatorConfig
from rhea.models.vision.losses import ReconstructionConfig, psnr, reconstruction
from rhea.training.task import NonFiniteError
from rhea.training.trainer import Trainer
from rhea.training.vision_tokenizer import CODEBOOK, VisionTokenizerTask

PLAIN = {"discriminator": None, "codebook": CodebookTrainingConfig(revive_after=0)}


def still(task: VisionTokenizerTask) -> VisionTokenizerTask:
    """Take dropout and batch statistics out, so that losses add up over microbatches."""
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task.model.freeze_batch_norm()
    return task


def value(metrics: dict, name: str) -> float:
    return float(metrics[name].total) / float(metrics[name].weight)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def update(task: VisionTokenizerTask, loader: PixelLoader) -> dict:
    return task.train_microbatch(loader.next_batch()) | task.optimizer_step(1e-3)


def test_it_learns_to_reconstruct(tmp_path):
    config = dataclasses.replace(tiny_runs.TRAINER, total_steps=24, log_every=6, microbatches_per_step=1)
    loader = PixelLoader()
    loader.make = lambda number: PixelLoader.make(loader, 0)
    assert Trainer(config, vision_tokenizer_task(**PLAIN), loader, tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 2
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 1 < lines[-1]["perplexity"] <= 16
    assert 0 < lines[-1]["codes_used"] <= 1
    assert lines[-1]["frames"] == 24 * 10


def test_loss_is_the_frame_weighted_mean_of_its_parts():
    batch = PixelLoader().next_batch()
    task, model = (still(vision_tokenizer_task(**PLAIN)) for _ in range(2))
    metrics = task.train_microbatch(batch)
    model.model.load_state_dict(task.model.state_dict())  # with the codebook taken from the data
    losses, frames = [], []
    for name in ("pictures", "clips"):
        pixels = torch.from_numpy(batch[name]).movedim(-1, -3) / 127.5 - 1
        quantized = model.model.quantize(model.model.encode_latents(pixels))
        output = model.model.decode_latents(quantized.latents, image=name == "pictures")
        loss, _ = reconstruction(output, pixels, ReconstructionConfig())
        losses.append(loss + quantized.losses["codebook"] + 0.25 * quantized.losses["commitment"])
        frames.append(pixels[..., 0, 0, 0].numel())
        kind = "psnr" if name == "pictures" else "psnr_clips"
        assert value(metrics, kind) == pytest.approx(psnr(output, pixels).item(), rel=1e-4)
    assert frames == [2, 8]
    expected = (2 * losses[0] + 8 * losses[1]) / 10
    assert value(metrics, "loss") == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, parameter in model.model.named_parameters():
        ours = task.model.get_parameter(name).grad
        torch.testing.assert_close(ours / 10, parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: n + text)


def test_accumulated_microbatches_make_the_gradient_of_one_batch():
    first, second = PixelLoader().make(0), PixelLoader().make(1)
    del second["clips"]  # unequal weights: 10 frames and 2
    whole = {name: np.concatenate([first[name], second[name]]) for name in ("pictures",)} | {"clips": first["clips"]}
    found = []
    for microbatches in ([first, second], [whole]):
        task = still(vision_tokenizer_task(**PLAIN))
        task.codebook.initialized = True
        torch.nn.init.normal_(task.model.quantize.embedding.weight, generator=torch.Generator().manual_seed(1))
        for microbatch in microbatches:
            task.train_microbatch(microbatch)
        norm = task.optimizer.gradient_norm(task._weight)
        found.append((norm, gradients(task.model)))
    # The means over pictures and over clips are weighted by frames, so only the order of float32 sums differs.
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["pictures", "clips"])
def test_pictures_alone_and_clips_alone_train(kind):
    batch = PixelLoader().next_batch()
    task = vision_tokenizer_task(adversarial_start=0)
    metrics = task.train_microbatch({kind: batch[kind]}) | task.optimizer_step(1e-3)
    assert ("psnr" in metrics, "psnr_clips" in metrics) == (kind == "pictures", kind == "clips")


def test_a_microbatch_without_pixels_is_refused():
    with pytest.raises(InputError, match="pictures, clips"):
        vision_tokenizer_task().train_microbatch({"films": np.zeros((1, 4, 16, 16, 3), np.uint8)})


def test_describe_and_count():
    task, batch = vision_tokenizer_task(), PixelLoader().next_batch()
    assert task.count(batch) == 10
    assert task.describe(batch) == "toy pictures 0"
    del batch["description"]
    assert task.describe(batch) == "pictures (2, 16, 16, 3) and clips (2, 4, 16, 16, 3)"


def test_discriminator_does_not_run_before_its_start():
    task, loader, calls = vision_tokenizer_task(adversarial_start=2), PixelLoader(), []
    task.discriminator.register_forward_hook(lambda *arguments: calls.append(task.updates))
    before = {name: tensor.clone() for name, tensor in task.discriminator.state_dict().items()}
    for _ in range(2):
        metrics = update(task, loader)
        assert "adversarial" not in metrics
    assert calls == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.discriminator.state_dict().items())
    metrics = update(task, loader)
    assert {"adversarial", "discriminator", "discriminator_gradient_norm"} <= metrics.keys()
    assert calls == [2, 2, 2, 2]  # pictures and clips, once for each side
    assert not torch.equal(task.discriminator.layers[0].bias, before["layers.0.bias"])


def test_neither_side_leaks_gradients_into_the_other():
    """The generator's gradients are those of its own loss with a fixed critic, the critic's those of its own loss."""
    batch = PixelLoader().next_batch()
    both = still(vision_tokenizer_task(adversarial_start=0, adversarial_weight=0.5))
    generator_only = still(vision_tokenizer_task(adversarial_start=0, adversarial_weight=0.5))
    generator_only._discriminate = lambda *arguments: None
    both.train_microbatch(batch)
    generator_only.train_microbatch(batch)
    assert all(gradient is None for gradient in gradients(generator_only.discriminator).values())
    assert all(gradient is not None for gradient in gradients(both.discriminator).values())
    for name, gradient in gradients(both.model).items():
        assert torch.equal(gradient, generator_only.model.get_parameter(name).grad)
    without = still(vision_tokenizer_task(**PLAIN))
    without.train_microbatch(batch)
    conv_out = "decoder.conv_out.weight"
    assert not torch.equal(both.model.get_parameter(conv_out).grad, without.model.get_parameter(conv_out).grad)


def test_discriminator_learns_to_tell_real_from_reconstructed():
    task, loader = vision_tokenizer_task(adversarial_start=0, adversarial_weight=0.0), PixelLoader()
    losses = [value(update(task, loader), "discriminator") for _ in range(15)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


@pytest.mark.parametrize(
    "changes", [{"adaptive": True}, {"discriminator": DiscriminatorConfig(base_channels=8, temporal=True)}]
)
def test_other_kinds_of_critics_run(changes):
    metrics = update(vision_tokenizer_task(adversarial_start=0, **changes), PixelLoader())
    assert all(np.isfinite(float(mean.total)) for mean in metrics.values())


def test_perceptual_loss_takes_part_only_with_a_weight():
    batch = PixelLoader().next_batch()
    assert vision_tokenizer_task(**PLAIN).perceptual is None
    metrics = still(vision_tokenizer_task(**PLAIN, perceptual_weight=1.0)).train_microbatch(batch)
    plain = still(vision_tokenizer_task(**PLAIN)).train_microbatch(batch)
    assert value(metrics, "loss") == pytest.approx(value(plain, "loss") + value(metrics, "perceptual"), rel=1e-4)


def test_a_critic_gone_wrong_leaves_the_generator_untouched():
    task, loader = vision_tokenizer_task(adversarial_start=0), PixelLoader()
    task.train_microbatch(loader.next_batch())
    before = {name: tensor.clone() for name, tensor in task.model.named_parameters()}
    task.discriminator.score.bias.grad[0] = float("nan")
    with pytest.raises(NonFiniteError):
        task.optimizer_step(1e-3)
    assert all(torch.equal(parameter, before[name]) for name, parameter in task.model.named_parameters())
    assert all(parameter.grad is None for parameter in task.discriminator.parameters())


def test_first_latents_become_the_codebook_and_dead_codes_are_revived():
    task, loader = vision_tokenizer_task(codebook=CodebookTrainingConfig(revive_after=2)), PixelLoader()
    weight = task.model.quantize.embedding.weight
    before = weight.detach().clone()
    task.train_microbatch(loader.next_batch())
    assert task.codebook.initialized
    assert not torch.equal(weight, before)
    task.optimizer_step(1e-3)
    with torch.no_grad():
        weight[3] = 1e3  # nothing will ever choose it
    update(task, loader)
    metrics = update(task, loader)
    assert value(metrics, "codes_revived") >= 1
    assert weight[3].abs().max() < 100
    moments = task.optimizer.state_tensors("")
    assert (moments[f"exp_avg.{CODEBOOK}"][3] == 0).all()
    assert torch.equal(task.average.tensors[CODEBOOK][3], weight[3])


def test_bfloat16_stays_close_and_keeps_float32_weights():
    batch = PixelLoader().next_batch()
    found = [
        value(still(vision_tokenizer_task(**PLAIN, precision=precision)).train_microbatch(batch), "loss")
        for precision in ("float32", "bfloat16")
    ]
    assert found[1] == pytest.approx(found[0], rel=2e-2)  # bf16 has 8 bits of mantissa, and near ties change codes
    task = vision_tokenizer_task(adversarial_start=0, precision="bfloat16")
    update(task, PixelLoader())
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}


def test_samples_show_originals_above_reconstructions_by_the_averaged_model(tmp_path):
    task, loader = vision_tokenizer_task(), PixelLoader()
    task.sample(tmp_path, 0)  # nothing to show yet
    assert not list(tmp_path.iterdir())
    update(task, loader)
    live = task.model.decoder.conv_out.weight.detach().clone()
    task.sample(tmp_path, 1)
    assert torch.equal(task.model.decoder.conv_out.weight, live)
    pictures = np.asarray(Image.open(tmp_path / "step-00000001-pictures.png"))
    assert pictures.shape == (32, 2 * 16, 3)
    batch = PixelLoader().make(0)
    assert np.array_equal(pictures[:16], np.concatenate(list(batch["pictures"]), axis=1))
    clips = np.asarray(Image.open(tmp_path / "step-00000001-clips.png"))
    assert clips.shape == (32, 8 * 16, 3)


def test_given_samples_are_shown_again_and_again(tmp_path):
    shown: dict[str, Any] = PixelLoader().make(7)
    base = vision_tokenizer_task()
    task = VisionTokenizerTask(base.config, base.model, samples=shown)
    for step in (1, 2):
        update(task, PixelLoader())
        task.sample(tmp_path, step)
    originals = [np.asarray(Image.open(tmp_path / f"step-0000000{step}-pictures.png"))[:16] for step in (1, 2)]
    assert np.array_equal(originals[0], originals[1])
    assert np.array_equal(originals[0], np.concatenate(list(shown["pictures"]), axis=1))


def test_a_trained_codebook_is_not_taken_from_the_data_again():
    base = vision_tokenizer_task(**PLAIN)
    task = VisionTokenizerTask(base.config, base.model, codebook_initialized=True)
    before = task.model.quantize.embedding.weight.detach().clone()
    task.train_microbatch(PixelLoader().next_batch())
    assert torch.equal(task.model.quantize.embedding.weight, before)


def test_locality_is_learned_and_repeats_from_seed_and_step():
    batch = PixelLoader().next_batch()
    config = {**PLAIN, "locality_weight": 10.0}
    task, same = (still(vision_tokenizer_task(**config)) for _ in range(2))
    first = value(task.train_microbatch(batch), "locality")
    task.optimizer_step(1e-3)
    same.load_state(task.state())
    assert value(task.train_microbatch(batch), "locality") == value(same.train_microbatch(batch), "locality")
    for _ in range(20):
        task.optimizer_step(1e-3)
        metrics = task.train_microbatch(batch)
    assert value(metrics, "locality") < first / 2
    assert "locality" not in still(vision_tokenizer_task(**PLAIN)).train_microbatch(batch)
