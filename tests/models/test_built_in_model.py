"""The built-in model: its layout, velocities, prompts and files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from built_in_policies import TEXTS, inputs, kinds, look, move
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from flowward import models
from flowward.prompts.scenes import MAX_WORDS, prompts, vocabulary
from flowward.scenes.network import Networks, WordEncoder, new_autoencoder, new_transformer
from flowward.system import checkpoint


def test_the_transformer_is_that_of_sd3(tiny: str) -> None:
    with models.load(tiny, precision="float32").weights.network("policy") as network:
        assert type(network) is SD3Transformer2DModel
    assert isinstance(new_transformer(), SD3Transformer2DModel)
    assert isinstance(new_autoencoder(), AutoencoderKL)
    assert sorted(path.name for path in Path(tiny).iterdir()) == ["text_encoder", "transformer", "vae"]
    # diffusers reads the two folders by itself
    SD3Transformer2DModel.from_pretrained(Path(tiny) / "transformer")
    AutoencoderKL.from_pretrained(Path(tiny) / "vae")


def test_identity_is_architecture_base_and_kind_of_weights(tiny: str, tmp_path: Path) -> None:
    full = models.load(tiny, precision="float32").identity
    moved = models.load(shutil.copytree(tiny, str(tmp_path / "moved")), precision="float32").identity
    assert moved == full  # neither the path
    assert not any(key.startswith("_") for key in full["transformer"])  # nor the version of diffusers
    kinds = [models.load(tiny, rank, "float32").identity for rank in (None, 2, 4)]
    assert [kind["weights"] for kind in kinds] == ["full", "lora-2", "lora-4"]
    path = tmp_path / "moved/transformer/diffusion_pytorch_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    other = models.load(str(tmp_path / "moved"), precision="float32").identity
    assert {key for key in full if other[key] != full[key]} == {"base"}
    checkpoint.save(tmp_path / "copy.safetensors", full)
    assert checkpoint.load(tmp_path / "copy.safetensors") == full


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@kinds
def test_velocity_is_float32_and_deterministic(tiny: str, rank: int | None, precision: Any) -> None:
    policy = models.load(tiny, rank, precision)
    v = policy.velocity(*inputs(policy))
    assert v.dtype == torch.float32 and v.shape == (4, *policy.latent_shape)
    assert v.requires_grad and v.isfinite().all() and v.std() > 0.1
    assert torch.equal(v, policy.velocity(*inputs(policy)))
    images = policy.decode(inputs(policy)[0])
    assert images.dtype == torch.float32 and images.shape == (4, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad


def test_precisions_are_close_and_not_the_same(tiny: str) -> None:
    v, w = (look(models.load(tiny, None, precision)) for precision in ("float32", "bf16"))
    assert 0 < (v - w).abs().max() < 0.05


def test_velocity_depends_on_time_and_words(tiny: str) -> None:
    policy = models.load(tiny, None, "float32")
    x, t, condition = inputs(policy)
    with torch.no_grad():
        v = policy.velocity(x, t, condition)
        assert (policy.velocity(x, t * 0.5, condition) - v).abs().amax((1, 2, 3)).min() > 1e-4
        turned = condition[torch.tensor([1, 2, 3, 0])]
        assert (policy.velocity(x, t, turned) - v).abs().amax((1, 2, 3)).min() > 1e-4


@kinds
def test_velocity_does_not_depend_on_the_batch(tiny: str, rank: int | None) -> None:
    policy = models.load(tiny, rank, "float32")
    move(policy, by=0.01)
    x, t, condition = inputs(policy, 33)
    with torch.no_grad():
        whole = policy.velocity(x, t, condition)
        for rows in (torch.tensor([0]), torch.tensor([32, 5, 17]), torch.arange(16)):
            alone = policy.velocity(x[rows], t[rows], condition[rows])
            torch.testing.assert_close(alone, whole[rows], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@kinds
def test_sampling_and_training_ask_one_network(tiny: str, rank: int | None, precision: Any) -> None:
    """With a gradient or without, the same kernels: before an update every ratio is 1 and every distance 0, exactly."""
    policy = models.load(tiny, rank, precision)
    move(policy, by=0.01)
    policy.weights.add("old")
    x, t, condition = inputs(policy, 33)
    with_gradient = policy.velocity(x, t, condition)
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, t, condition), with_gradient.detach())
        assert torch.equal(policy.velocity(x, t, condition, "old"), with_gradient.detach())


def test_every_prompt_of_the_world_can_be_read() -> None:
    encoder = WordEncoder(vocabulary(), 8)
    texts = list(prompts())
    ids = encoder.tokenize(texts)
    assert ids.shape == (len(texts), MAX_WORDS)
    assert len({tuple(row) for row in ids.tolist()}) == len(texts)  # and told from every other


def test_prompts_are_read_in_order_and_one_by_one(tiny: str) -> None:
    policy = models.load(tiny, precision="float32")
    words = policy.encode(["a circle above a ring", "a ring above a circle", "A  Ring ABOVE a circle"]).tensors
    assert (words["pooled"][0] - words["pooled"][1]).abs().max() > 1e-4
    assert torch.equal(words["words"][1], words["words"][2])
    alone = policy.encode(["a ring above a circle"]).tensors
    torch.testing.assert_close(alone["pooled"][0], words["pooled"][1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a green zebra", "the built-in model does not know the word 'zebra' \\(prompt 'a green zebra'\\)"),
        ("a ring " * 5, "has 10 words; the built-in model reads at most 8"),
    ],
)
def test_prompts_that_cannot_be_read(tiny: str, prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.load(tiny, precision="float32").encode(["a circle", prompt])


def test_networks_survive_the_disk(tiny: str, tmp_path: Path) -> None:
    one = Networks.load(Path(tiny))
    shutil.copytree(Path(tiny) / "text_encoder", tmp_path / "text_encoder")
    one.transformer.half().save_pretrained(tmp_path / "transformer")
    one.autoencoder.half().save_pretrained(tmp_path / "vae")
    two = Networks.load(tmp_path)
    for name in ("transformer", "autoencoder", "text_encoder"):
        a, b = getattr(Networks.load(Path(tiny)), name), getattr(two, name)
        assert all(p.dtype == torch.float32 for p in b.parameters())
        for key, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[key]), (name, key)


def test_saving_rounds_the_copy_and_not_the_networks(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        one = Networks.new()
    one.autoencoder.register_to_config(shift_factor=0.25, scaling_factor=1.5)
    before = one.transformer.proj_out.weight.clone()
    one.save(tmp_path)
    assert torch.equal(one.transformer.proj_out.weight, before)
    two = Networks.load(tmp_path)
    assert torch.equal(two.transformer.proj_out.weight, before.half().float())
    assert (two.autoencoder.config.shift_factor, two.autoencoder.config.scaling_factor) == (0.25, 1.5)
    assert two.text_encoder.words == vocabulary()
    ids = two.text_encoder.tokenize(TEXTS)
    torch.testing.assert_close(two.text_encoder(ids)[1], one.text_encoder(ids)[1], rtol=0, atol=1e-2)


def test_guidance_is_a_line_through_two_velocities(tiny: str) -> None:
    policy = models.load(tiny, None, "float32")
    condition, empty = policy.encode(["a circle", "two rings"]), policy.encode([""])
    x, t = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    v = policy.velocity(x, t, condition)
    v_0 = policy.velocity(x, t, empty[torch.zeros(2, dtype=torch.long)])
    for scale in (0.0, 1.0, 4.5):
        guided = policy.under("policy", scale)(x, t, condition)
        torch.testing.assert_close(guided, v_0 + scale * (v - v_0), atol=1e-5, rtol=1e-4)
