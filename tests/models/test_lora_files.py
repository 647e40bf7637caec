"""A LoRA of another program is the same function here, trains from there, and is refused where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from built_in_policies import inputs, move
from diffusers.loaders.single_file_utils import swap_scale_shift
from lora_layouts import KOHYA, LAYOUTS, PEFT, _stabilised, answer, matrices, merge, write
from safetensors.torch import load_file, save_file
from tiny_pipelines import small
from tiny_pipelines import tiny as pipeline
from tiny_policies import SMALL, policy
from torch import Tensor

from flowward import models
from flowward.export import weights as export
from flowward.models import Adapters
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.lora import LoRA
from flowward.process.policy import Policy

ENDS = ("to_q", "to_out.0", "add_q_proj")


def load(tiny: str, start: Path | str, **more: Any) -> Policy:
    return models.load(tiny, precision="float32", adapters=Adapters(start=str(start), **more))


def network_of(tiny: str) -> Any:
    with models.load(tiny, precision="float32").weights.network("policy") as network:
        return network


def merged(tiny: str, lora: Any, scale: float) -> Tensor:
    one = models.load(tiny, precision="float32")
    with one.weights.network("policy") as network:
        merge(network, lora, scale)
    return answer(one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_the_same_function_here(tiny: str, tmp_path: Path, layout: str) -> None:
    scale, made = LAYOUTS[layout]
    lora = matrices(network_of(tiny), *ENDS)
    one = load(tiny, made(tmp_path, lora))
    weights = one.weights
    assert isinstance(weights, LoRA)
    assert (weights.adapters.rank, weights.adapters.alpha) == (2, 2 * scale)
    assert weights.adapters.targets == ("attn.add_q_proj", "attn.to_out.0", "attn.to_q")
    expected = merged(tiny, lora, scale)
    assert (expected - answer(models.load(tiny, precision="float32"))).abs().max() > 0.01
    torch.testing.assert_close(answer(one), expected, rtol=0, atol=1e-5)
    assert weights.start and weights.start.sha256 and f"rank 2, alpha {2 * scale:g}, {len(lora)} layers" in one.notes[0]


def test_the_scale_of_each_layer_is_kept(tiny: str, tmp_path: Path) -> None:
    """Where one layer has another alpha, or all are scaled by the root of the rank."""
    lora = matrices(network_of(tiny), *ENDS)
    one = load(tiny, _stabilised(tmp_path, lora))
    scaled = {name: (a, b * (2 if "add_q_proj" in name else 1)) for name, (a, b) in lora.items()}
    torch.testing.assert_close(answer(one), merged(tiny, scaled, 1.0), rtol=0, atol=1e-5)


def test_layers_of_different_ranks_get_the_largest(tiny: str, tmp_path: Path) -> None:
    """The function is the same, and the new rows can be trained: A is random there, and B is 0."""
    network = network_of(tiny)
    lora = {**matrices(network, "to_q", rank=1), **matrices(network, "to_v", rank=3)}
    one = load(tiny, write(tmp_path / "x.safetensors", lora, "transformer.", PEFT))
    torch.testing.assert_close(answer(one), merged(tiny, lora, 1.0), rtol=0, atol=1e-5)
    assert any("different ranks; all are trained with the largest, 3" in note for note in one.notes)
    one.velocity(*inputs(one)).square().mean().backward()
    grads = {name: tensor.grad for name, tensor in one.weights.tensors("policy").items()}
    assert all(bool((grad != 0).any(0).all()) for name, grad in grads.items() if "lora_B" in name and grad is not None)


def test_layers_that_only_their_whole_names_tell_apart(tiny: str, tmp_path: Path) -> None:
    """Of one block alone."""
    lora = {name: pair for name, pair in matrices(network_of(tiny), "to_q").items() if ".0." in name}
    one = load(tiny, write(tmp_path / "x.safetensors", lora, "transformer.", PEFT))
    names = {name.rpartition(".lora_")[0] for name in one.weights.tensors("policy")}
    assert names == {*lora}
    torch.testing.assert_close(answer(one), merged(tiny, lora, 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("reference", [None, "init", "base"])
def test_the_reference_is_the_start_or_the_base(tiny: str, tmp_path: Path, reference: Any) -> None:
    lora = matrices(network_of(tiny), *ENDS)
    one = load(tiny, write(tmp_path / "x.safetensors", lora, "transformer.", PEFT), reference=reference)
    start, base = answer(one), answer(models.load(tiny, precision="float32"))
    move(one)
    assert (answer(one) - start).abs().max() > 1e-3
    assert torch.equal(answer(one, "reference"), base if reference == "base" else start)
    with one.weights.still("reference"):
        assert torch.equal(answer(one, "reference"), base if reference == "base" else start)


FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv": (32, 96),
    "lora_unet_double_blocks_0_txt_attn_proj": (32, 32),
    "lora_unet_single_blocks_0_linear2": (160, 32),
}
WAN = {
    f"diffusion_model.blocks.0.{kind}_attn.{name}": (24, 24) for kind in ("self", "cross") for name in "qkvo"
} | {"diffusion_model.blocks.0.ffn.0": (24, 32)}  # fmt: skip
QWEN = {"lora_unet_transformer_blocks_0_attn_to_q": (32, 32), "lora_unet_transformer_blocks_1_img_mlp_net_2": (128, 32)}
Z_IMAGE = {"lora_unet_layers_0_attention_qkv": (32, 96), "lora_unet_layers_0_attention_out": (32, 32)}
FLUX2 = {
    "diffusion_model.double_blocks.0.img_attn.qkv": (32, 96),
    "diffusion_model.double_blocks.0.txt_attn.proj": (32, 32),
}
MUSUBI = {
    name.replace("diffusion_model.", "lora_unet_").replace(".", "_"): shape for name, shape in WAN.items()
} | {"lora_unet_blocks_0_ffn_2": (32, 24)}  # fmt: skip
OWN_NAMES: list[tuple[str, dict[str, tuple[int, int]], tuple[str, str]]] = [
    ("FluxPipeline", FLUX, KOHYA), ("WanPipeline", WAN, PEFT), ("QwenImagePipeline", QWEN, KOHYA),
    ("ZImagePipeline", Z_IMAGE, KOHYA), ("Flux2KleinPipeline", FLUX2, PEFT), ("WanPipeline", MUSUBI, KOHYA),
]  # fmt: skip


@pytest.mark.parametrize(("family", "layers", "ends"), OWN_NAMES, ids=[name for name, _, _ in OWN_NAMES])
def test_layouts_with_names_of_their_own_are_what_diffusers_makes_of_them(
    tmp_path: Path, family: str, layers: dict[str, tuple[int, int]], ends: tuple[str, str]
) -> None:
    draw, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for name, (wide, high) in layers.items():
        tensors[f"{name}.{ends[0]}.weight"] = 0.3 * torch.randn(2, wide, generator=draw)
        tensors[f"{name}.{ends[1]}.weight"] = 0.3 * torch.randn(high, 2, generator=draw)
        if ends == KOHYA:
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, file := tmp_path / "x.safetensors")
    one = DiffusersPolicy(
        "x", FAMILIES[family](pipeline(family), **small(family)), Adapters(start=str(file)), "float32"
    )
    other = policy(family, None)
    base = answer(other, texts=("a cat", "dog"))
    other.family.pipe.load_lora_weights(file)
    expected = answer(other, texts=("a cat", "dog"))
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(answer(one, texts=("a cat", "dog")), expected, rtol=0, atol=1e-5)


def test_a_layer_that_a_conversion_drops_is_refused(tmp_path: Path) -> None:
    """diffusers only warns of layers of FLUX.2 that it does not know."""
    draw, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for name in ("lora_unet_double_blocks_0_img_attn_proj", "lora_unet_double_blocks_0_unheard_of"):
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 32, generator=draw)
        tensors[f"{name}.lora_up.weight"] = torch.randn(32, 2, generator=draw)
    save_file(tensors, file := tmp_path / "x.safetensors")
    assert len(policy("Flux2KleinPipeline", None).family.convert_lora(tensors)) == 2
    with pytest.raises(ValueError, match="Flux2Transformer2DModel does not have"):
        policy("Flux2KleinPipeline", Adapters(start=str(file)))


def test_stable_diffusion_3_under_its_original_names(saved: Path, tmp_path: Path) -> None:
    """As kohya writes it: queries, keys and values are one layer, and the last text stream has scale before shift."""
    one, layers = policy("StableDiffusion3Pipeline", None), {
        "0_x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "0_context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "0_context_block_attn_proj": ("attn.to_add_out",), "1_x_block_mlp_fc2": ("ff.net.2",),
        "0_context_block_mlp_fc1": ("ff_context.net.0.proj",), "1_x_block_adaLN_modulation_1": ("norm1.linear",),
        "1_context_block_adaLN_modulation_1": ("norm1_context.linear",),
    }  # fmt: skip
    network, draw, tensors = one.family.pipe.transformer, torch.Generator().manual_seed(1), dict[str, Tensor]()
    for stem, names in layers.items():
        own = [network.transformer_blocks[int(stem[0])].get_submodule(name) for name in names]
        a = torch.randn(2, own[0].in_features, generator=draw)
        b = torch.randn(sum(layer.out_features for layer in own), 2, generator=draw) / 9
        tensors |= {
            f"lora_unet_joint_blocks_{stem}.{end}.weight": each for end, each in zip(KOHYA, (a, b), strict=True)
        }
        tensors[f"lora_unet_joint_blocks_{stem}.alpha"] = torch.tensor(1.0)
        delta = 0.5 * b @ a
        if names == ("norm1_context.linear",):
            delta = swap_scale_shift(delta, len(delta) // 2)
        for layer, part in zip(own, delta.chunk(len(own)), strict=True):
            layer.weight.data += part
    save_file(tensors, file := tmp_path / "x.safetensors")
    found = models.load(str(saved), precision="float32", loading=SMALL, adapters=Adapters(start=str(file)))
    expected = answer(one, texts=("a cat", "dog"))
    assert (expected - answer(policy("StableDiffusion3Pipeline", None), texts=("a cat", "dog"))).abs().max() > 1e-2
    torch.testing.assert_close(answer(found, texts=("a cat", "dog")), expected, rtol=0, atol=1e-5)


def test_two_transformers_start_from_two_files(tmp_path: Path) -> None:
    def two(adapters: Any) -> DiffusersPolicy:
        family = FAMILIES["WanPipeline"](pipeline("of two"), 32, 32, frames=5)
        return DiffusersPolicy("two", family, adapters, "float32")

    trained = two(Adapters(2, alpha=1))
    move(trained)
    export.lora(trained, tmp_path)
    one = two(Adapters(start=str(tmp_path)))
    assert torch.equal(answer(one, texts=("a", "dog")), answer(trained, texts=("a", "dog"))) and len(one.notes) == 1
    one = two(Adapters(start=str(tmp_path / "transformer_2" / models.LORA_FILE)))
    assert "has no layers of transformer_2, so that one is not trained" in one.notes[1]


@pytest.mark.parametrize("name", ["owner/name", "https://huggingface.co/owner/name"])
def test_a_lora_on_the_hub(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr("flowward.models.hub.folder", lambda name, patterns: (asked.append(name), tmp_path)[1])
    lora = matrices(network_of(tiny), "to_q")
    write(tmp_path / "lora" / "adapter_model.safetensors", lora, "base_model.model.", PEFT)
    torch.testing.assert_close(answer(load(tiny, name)), merged(tiny, lora, 1.0), rtol=0, atol=1e-5)
    assert asked == ["owner/name"]


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


def beside(file: Path, name: str) -> Path:
    """Something else in its folder, which is then given."""
    (file.parent / name).write_bytes(b"")
    return file.parent


def spoilt(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Path]:
    def made(file: Path) -> Path:
        tensors = load_file(file)
        save_file(change(tensors) or tensors, file)
        return file

    return made


FIRST = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoilt(lambda t: {f"{FIRST}.lora_A.wrong": torch.ones(2)}), "does not have, such as"),
        (spoilt(lambda t: t.update({"transformer.blok.lora_A.weight": torch.ones(2, 2)})), "'transformer.blok'"),
        (spoilt(lambda t: t.update({f"{FIRST}.dora_scale": torch.ones(2)})), "is a DoRA"),
        (spoilt(lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.ones(2)})), "is a DoRA"),
        (spoilt(lambda t: {"a.lokr_w1": torch.ones(2)}), "is a LoKr"),
        (spoilt(lambda t: {"a.hada_w1_a": torch.ones(2)}), "is a LoHa"),
        (spoilt(lambda t: {"transformer.weight": torch.ones(2)}), "is not a LoRA"),
        (spoilt(lambda t: t.update({f"{FIRST}.lora_B.bias": torch.ones(2)})), "changes more than a LoRA can"),
        (spoilt(without(f"{FIRST}.lora_B.weight")), "has only one of its two matrices"),
        (spoilt(lambda t: t.update({f"{FIRST}.alpha": torch.tensor(0.0)})), ".alpha = 0.0; it must be positive"),
        (spoilt(lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(())})), "was made for another model"),
        (spoilt(lambda t: t.update({f"{FIRST}.alpha": torch.ones(2)})), "does not have, such as"),
        (spoilt(lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(2, 7)})), "was made for another model"),
        (spoilt(lambda t: t.update({f"{FIRST}.lora_A.weight": torch.full((2, 32), torch.nan)})), "NaN or infinite"),
        (spoilt(lambda t: {"text_encoder.a.lora_A.weight": torch.ones(2, 2)}), "is a LoRA of text encoders alone"),
        (spoilt(lambda t: t.update({FIRST[12:] + ".lora_A.weight": torch.ones(2, 32)})), "does not have, such as"),
        (lambda file: beside(file, "x.safetensors") / "x.safetensors", "cannot be read"),
        (lambda file: file.with_suffix(".gone"), "there is no LoRA"),
        (lambda file: file.rename(file.with_suffix(".bin")), "is a pickle"),
        (lambda file: beside(file, "y.safetensors"), "several files; give one of them"),
        (lambda file: file.rename(file.with_suffix(".txt")).parent, "holds no LoRA"),
        (lambda file: beside(file, "config.yaml"), "is a run folder; write"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_from_is_refused_in_a_sentence(
    tiny: str, tmp_path: Path, spoil: Callable[[Path], Path], says: str
) -> None:
    lora = matrices(network_of(tiny), *ENDS)
    file = write(tmp_path / "x.safetensors", lora, "transformer.", PEFT)
    with pytest.raises(ValueError, match=says) as error:
        load(tiny, spoil(file))
    assert "\n" not in str(error.value)


def test_a_header_or_config_that_is_damaged_is_refused(tiny: str, tmp_path: Path) -> None:
    lora = matrices(network_of(tiny), "to_q")
    file = write(tmp_path / "adapter_model.safetensors", lora, "", PEFT)
    damaged = ("{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "alpha_pattern": {"[": 2}}')
    for text, says in (*((text, "is damaged") for text in damaged), ('{"use_dora": true}', "is a DoRA"),
                       ('{"lora_alpha": -4}', "the scale of layer .* must be positive")):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            load(tiny, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/flux"}))
    tensors = load_file(file)
    save_file({**tensors, "x.lora_A.weight": torch.ones(2, 2)}, file)
    with pytest.raises(ValueError, match="it was made for owner/flux"):
        load(tiny, tmp_path)


def test_text_encoders_are_left_as_they_are_and_a_note_says_so(tiny: str, tmp_path: Path) -> None:
    lora = matrices(network_of(tiny), *ENDS)
    file = write(tmp_path / "x.safetensors", lora, "lora_unet_", KOHYA, True, 2.0)
    save_file({**load_file(file), "lora_te1_a.lora_down.weight": torch.ones(2, 2)}, file)
    one = load(tiny, file)
    assert "the 1 tensors of" in one.notes[1] and "not used" in one.notes[1]
    torch.testing.assert_close(answer(one), merged(tiny, lora, 1.0), rtol=0, atol=1e-5)
