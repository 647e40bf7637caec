"""A palette of adapters: one adapter per objective, added up with weights of their own in every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from edit_sets import paint
from tiny_pipelines import tiny
from tiny_policies import policy
from torch import Tensor

from flowward import models
from flowward.export import weights
from flowward.models import Adapters
from flowward.models.compiling import compile_blocks
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.mixture import normalised, parsed
from flowward.process.policy import MIXTURE, Condition
from flowward.prompts import Edit, Prompt

SD3 = "StableDiffusion3Pipeline"
NAMES = ("strict", "balance", "third")
PROMPT = "a red cat"


def painted(
    rank: int = 2, names: tuple[str, ...] = NAMES, seed: int = 0, alpha: float | None = None, family: str = SD3
) -> Any:
    """A tiny pipeline whose palette has random adapters."""
    made = policy(family, Adapters(rank, alpha, palette=names))
    stream = torch.Generator().manual_seed(seed)
    for tensor in made.weights.tensors("policy").values():
        tensor.data.copy_(0.1 * torch.randn(tensor.shape, generator=stream))
    return made


def rows(made: DiffusersPolicy, many: int, prompt: Prompt = PROMPT) -> tuple[Tensor, Tensor, Condition]:
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(many, *made.latent_shape, generator=stream)
    return x, torch.full((many,), 0.4), made.encode([prompt])[torch.zeros(many, dtype=torch.long)]


def at(condition: Condition, mixture: Any) -> Condition:
    return Condition({**condition.tensors, MIXTURE: torch.tensor(mixture)})


def single(made: Any, w: tuple[float, ...]) -> Any:
    """The same network with one adapter, whose A are stacked and whose B are scaled by w."""
    rank = made.weights.adapters.rank
    one = policy(SD3, Adapters(rank * len(w), 2.0 * rank * len(w)))
    scale = torch.tensor(w).repeat_interleave(rank)
    for key, tensor in one.weights.tensors("policy").items():
        own = made.weights.tensors("policy")[key].detach()
        tensor.data.copy_(own * scale if ".lora_B" in key else own)
    return one


def test_a_row_has_the_adapters_of_its_own_mixture() -> None:
    """v(x; theta + sum_k w_k B_k A_k), row by row, and for the default mixture where rows do not say."""
    made = painted()
    x, t, condition = rows(made, 3)
    every = ((1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.0, 0.0, 1.0))
    with torch.no_grad():
        found = made.velocity(x, t, at(condition, every))
        for number, w in enumerate(every):
            expected = single(made, w).velocity(x, t, condition)
            torch.testing.assert_close(found[number], expected[number], atol=1e-5, rtol=1e-5)
            assert (expected[number] - found[number - 1]).abs().max() > 1e-3
        torch.testing.assert_close(
            made.velocity(x, t, condition), single(made, (1 / 3,) * 3).velocity(x, t, condition), atol=1e-5, rtol=1e-5
        )
        made.weights.mixture.default = (0.0, 0.0, 1.0)
        torch.testing.assert_close(made.velocity(x, t, condition)[2], found[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_every_family_have_their_own_mixture(name: str, tmp_path: Path) -> None:
    """A batch is its rows, one by one; compiled blocks say the same. A source to edit has the mixture of its row."""
    torch._dynamo.reset()
    made = painted(family=name)
    edit = Edit(PROMPT, paint(tmp_path / "a.png", 0.8))
    x, t, condition = rows(made, 2, edit if 0 not in FAMILIES[name].sources else PROMPT)
    every = at(condition, [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    with torch.no_grad():
        found = made.velocity(x, t, every)
        alone = torch.cat([made.velocity(x[k : k + 1], t[k : k + 1], every[k : k + 1]) for k in range(2)])
        even = made.velocity(x, t, condition)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        assert (found - even).abs().flatten(1).amax(1).min() > 1e-5
        if name == SD3:
            compile_blocks(made.family.network, "eager")
            torch.testing.assert_close(made.velocity(x, t, every), found, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(made.velocity(x, t, condition), even, atol=1e-5, rtol=1e-4)


def test_two_transformers_share_no_palette() -> None:
    family: Any = FAMILIES["WanPipeline"](tiny("of two"), 32, 32, frames=5)
    with pytest.raises(ValueError, match="has 2 transformers that share the rows of a pass"):
        DiffusersPolicy("two", family, Adapters(2, palette=NAMES), "float32")


def test_t56_a_corner_trains_its_own_adapter_alone() -> None:
    """T56: at w = e_k all gradients of the other adapters are exactly 0."""
    made = painted()
    x, t, condition = rows(made, 2)
    for k in range(3):
        w = [float(k == j) for j in range(3)]
        made.velocity(x, t, at(condition, [w, w])).square().sum().backward()
        moved = torch.zeros(3, dtype=torch.long)
        for key, tensor in made.weights.tensors("policy").items():
            parts = tensor.grad.chunk(3, 0 if ".lora_A" in key else 1)
            moved += torch.tensor([part.any() for part in parts])
            tensor.grad = None
        assert [bool(count) for count in moved] == [k == j for j in range(3)]


def test_the_adapters_of_a_palette_begin_as_adapters_of_their_rank() -> None:
    one, many = (policy(SD3, Adapters(4, palette=names)) for names in ((), NAMES))
    spread = [torch.cat([a.flatten() for key, a in each.weights.tensors("policy").items() if ".lora_A" in key]).std()
              for each in (one, many)]  # fmt: skip
    assert spread[1].item() == pytest.approx(spread[0].item(), rel=0.05)
    assert all(not b.any() for key, b in many.weights.tensors("policy").items() if ".lora_B" in key)
    assert "+".join(NAMES) in many.identity["weights"]
    with pytest.raises(ValueError, match="another model"):
        many.weights.load("policy", one.weights.tensors("policy"))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_layers_that_are_computed_again_have_the_mixture_of_their_pass(guidance: float) -> None:
    """Gradient checkpointing, guidance, and a pass of an anchor between forward and backward: the same gradients."""
    found = []
    for checkpointing in (False, True):
        made = painted()
        made.weights.add("old")
        x, t, condition = rows(made, 2)
        if checkpointing:
            made.family.pipe.transformer.enable_gradient_checkpointing()
        loss = made.under("policy", guidance)(x, t, at(condition, [[1.0, 0.0, 0.0], [0.5, 0.2, 0.3]])).square().sum()
        with torch.no_grad():
            made.under("old")(x, t, at(condition, [[0.0, 0.0, 1.0]] * 2))
        made.under("old")(x[:1], t[:1], condition[:1])  # a copy never has gradients, whoever asks
        loss.backward()
        found.append([tensor.grad for tensor in made.weights.tensors("policy").values()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


def test_the_prompt_is_taken_from_a_row_and_its_mixture_stays() -> None:
    made = painted()
    x, t, condition = rows(made, 2)
    mixed = at(condition, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    blank = made.blank()(mixed)
    assert torch.equal(blank.tensors[MIXTURE], mixed.tensors[MIXTURE])
    with torch.no_grad():
        torch.testing.assert_close(made.under("policy", 0.0)(x, t, mixed), made.velocity(x, t, blank))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"palette": ("one",)}, "2 to 8 of them, not 1"),
        ({"palette": tuple("abcdefghi")}, "2 to 8 of them, not 9"),
        ({"palette": ("a", "a")}, "a name of its own"),
        ({"palette": ("a", "b"), "rank": 4000}, "have rank 8000 together, and at most 4096"),
    ],
)
def test_impossible_palettes(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Adapters(**{"rank": 2, **how})


def test_a_palette_cannot_be_merged(saved: Any) -> None:
    loading = models.Loading(size=(32, 32), device="cpu", merge_lora="always")
    with pytest.raises(ValueError, match="cannot be merged: leave out --merge-lora"):
        models.load(str(saved), loading=loading, adapters=Adapters(2, palette=("a", "b")))


def test_layers_with_other_rows_are_named() -> None:
    made = painted()
    made.weights.meet({MIXTURE: torch.ones(3, 3)})
    with pytest.raises(ValueError, match="a layer has 5 rows, but 3 samples have weights"):
        made.weights.mixture.of(5, 6)


def test_mixtures_in_words() -> None:
    assert parsed(["balance=3", "strict=1"], NAMES) == (0.25, 0.75, 0)
    for words, said in (
        (["strikt=1"], "unknown adapter 'strikt'; did you mean 'strict'"),
        (["strict"], "write it as name=weight"),
        (["strict=1", "strict=2"], "named twice"),
        (["strict=x"], "must be a number, not 'x'"),
        (["strict=-1", "balance=2"], "weights of 0 or more"),
        (["strict=0"], "one above 0"),
        (["strict=nan"], "one above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            parsed(words, NAMES)
    assert normalised([2, 2]) == (0.5, 0.5)


def test_diffusers_mixes_an_exported_palette_to_the_same_velocity(tmp_path: Path) -> None:
    """`set_adapters(names, weights)` on the exported files is v(x; theta + sum_k w_k B_k A_k)."""
    made = painted(names=("scenes-strict", "r.py:own", "balance"), alpha=3.0)
    file = weights.lora(made, tmp_path, {"base_model": "tiny"})
    names = list(weights.files_of(made.weights.palette).values())
    assert file.name == "flowward.json" and names[1] == "r_py_own.safetensors"
    pipe: Any = tiny(SD3)
    for name in names:
        pipe.load_lora_weights(tmp_path, weight_name=name, adapter_name=Path(name).stem)
    x, t, condition = rows(made, 2)
    for w in ((0.7, 0.1, 0.2), (0.0, 1.0, 0.0), (1.0, 1.0, 0.5)):
        pipe.set_adapters([Path(name).stem for name in names], list(w))
        with torch.no_grad():
            found = made.family.velocity(pipe.transformer, x, t, condition.tensors, 1.0)
            torch.testing.assert_close(made.velocity(x, t, at(condition, [w] * 2)), found, atol=1e-5, rtol=1e-5)
            pipe.disable_lora()
            assert (made.family.velocity(pipe.transformer, x, t, condition.tensors, 1.0) - found).abs().max() > 1e-3
            pipe.enable_lora()
