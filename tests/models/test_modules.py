"""flowward.policies.of: any torch module that predicts a velocity is a policy, in its own convention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_flows import GOALS, SHAPE, Gaussian, Net, Turned, net, policy
from torch import Tensor, nn

from flowward import policies
from flowward.models import plots
from flowward.models.lora import LoRA
from flowward.process.noise import Noise
from flowward.process.rollout import Sampler
from flowward.prompts import Edit

TEXTS = list(GOALS)


def inputs(one: Any, count: int = 4) -> tuple[Tensor, Tensor, Any]:
    x = torch.randn(count, *one.latent_shape, generator=torch.Generator().manual_seed(3))
    return x, torch.linspace(0, 1, count), one.encode([TEXTS[k % len(TEXTS)] for k in range(count)])


@pytest.mark.parametrize(
    ("time", "predicts", "sign"),
    [((1, 0), "noise - data", 1), ((0, 1), "data - noise", -1), ((1000, 0), "noise - data", 1),
     ((0, 1), "noise - data", 1)],
)  # fmt: skip
def test_every_convention_is_the_same_flow(time: tuple[float, float], predicts: Any, sign: float) -> None:
    module = Turned(Gaussian(), *time, sign)
    one, other = policies.of(module, (3,), time=time, predicts=predicts), policies.of(Gaussian(), (3,))
    x, t, condition = inputs(other)
    assert torch.allclose(one.velocity(x, t, condition), other.velocity(x, t, condition), atol=1e-5)
    assert one.remarks_on([""]) == []
    noise = Noise((3,), tuple(("key", number) for number in range(4000)))
    x0 = Sampler(steps=40)(one.under("policy"), one.encode([""] * 4000), noise).x0
    assert x0.mean().item() == pytest.approx(2.0, abs=0.03) and x0.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("wrong", [{"predicts": "data - noise"}, {"time": (0, 1)}])
def test_a_wrong_sign_or_time_is_warned_of(wrong: Any) -> None:
    (said,) = policies.of(Gaussian(), (3,), **wrong).remarks_on([""])
    assert "points away from the noise (slope -1.00" in said and "check `time` and `predicts`" in said


class Heard(nn.Module):
    """Remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(())), list[Any]()

    def forward(self, x: Tensor, t: Tensor, *given: Tensor, **named: Tensor) -> Tensor:
        self.calls.append((given, named))
        return self.weight * x


def test_how_a_module_is_called() -> None:
    for condition, expected in (
        (None, ((), {})),
        ({"a": torch.tensor([1.0, 2.0])}, ((torch.tensor([[1.0, 2.0]]),), {})),
        ({"a": {"kind": 3, "goal": [0.5]}}, ((), {"kind": torch.tensor([3]), "goal": torch.tensor([[0.5]])})),
        (lambda prompts: {"size": torch.tensor([float(len(each)) for each in prompts])}, ((), {"size": torch.ones(1)})),
    ):
        module = Heard()
        one = policies.of(module, (2,), condition)
        one.velocity(torch.zeros(1, 2), torch.ones(1), one.encode(["a"]))
        given, named = module.calls[-1]
        assert all(torch.equal(a, b) for a, b in zip(given, expected[0], strict=True))
        assert named.keys() == expected[1].keys() and all(torch.equal(named[key], expected[1][key]) for key in named)


class At(nn.Module):
    """x times a weight, with something that goes wrong at one time."""

    def __init__(self, wrong: Any):
        super().__init__()
        self.weight, self.wrong = nn.Parameter(torch.ones(())), wrong

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.wrong(self.weight, x, t[:, None])


BAD: dict[str, tuple[Any, str]] = {
    "shape": (lambda w, x, t: w * x[:, :1], r"At returned \[2, 1\] for samples \[2, 3\]: a velocity has the shape"),
    "nan at 0": (lambda w, x, t: w * x / t, r"velocity of At is NaN or infinite at t = 0: repair"),
    "nan at 1": (lambda w, x, t: w * x * (1 - t).log(), r"velocity of At is NaN or infinite at t = 1: repair"),
    "gradient": (lambda w, x, t: (w * t).sqrt() * x, r"gradient of a loss of At is NaN or infinite at t = 0, although"),
    "unused": (lambda w, x, t: x * t, "velocity of At does not depend on its trainable weights"),
    "raises": (lambda w, x, t: w * x @ x, r"At cannot be called with x \[2, 3\], t \[2\]: RuntimeError"),
    "asserts": (lambda w, x, t: exec("assert 0"), r"At cannot be called with x \[2, 3\], t \[2\]: AssertionError"),
    "tuple": (lambda w, x, t: (w * x,), r"At returned tuple for samples \[2, 3\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_module_that_cannot_be_trained_is_refused(name: str) -> None:
    wrong, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        policies.of(At(wrong), (3,))
    late = policies.of(At(lambda w, x, t: w * x), (3,), lambda prompts: torch.zeros(len(prompts), 1))
    with pytest.raises(ValueError, match="At cannot be called with x"):  # with a function: when prompts are known
        late.refuse(["a"])


def test_the_end_of_its_own_time_is_named_too() -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite at t = 1 \(its own time 0\)"):
        policies.of(At(lambda w, x, t: w * x / t), (3,), time=(0, 1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"module": "net"}, "give a torch module"),
        ({"module": nn.Linear(2, 2).requires_grad_(False)}, "Linear has no trainable weights"),
        ({"module": nn.ReLU()}, "ReLU has no trainable weights"),
        ({"shape": ()}, "shape must be the positive sides"),
        ({"shape": 6}, "shape must be the positive sides"),
        (
            {"condition": {"a": [1.0], "b": [1.0, 2.0]}},
            r"values of `condition` for .* do not make tensors of equal shape",
        ),
        ({"condition": {"a": {"x": 1.0}, "b": {"y": 1.0}}}, "do not make tensors of equal shape: KeyError"),
        ({"condition": {"a": "left", "b": "right"}}, "do not make tensors of equal shape"),
        ({"draw": lambda sample, prompt: 1 / 0}, "`draw` cannot make a picture of a sample: ZeroDivisionError"),
        ({"shape": (6, 0)}, "shape must be the positive sides"),
        ({"condition": {}}, "condition must be a function of a list of prompts, or a mapping"),
        ({"condition": "goal"}, "condition must be a function"),
        ({"time": (1, 1)}, "time must be the module's time at noise and at data"),
        ({"time": "noise at 1"}, "time must be the module's time"),
        ({"predicts": "noise"}, "velocity to predict 'noise'"),
        ({"module": Gaussian(), "condition": None, "lora_rank": 2}, "Gaussian has no nn.Linear layer for LoRA"),
    ],
)
def test_bad_arguments_get_a_sentence(given: dict[str, Any], said: str) -> None:
    arguments = {"module": net(), "shape": SHAPE, "condition": GOALS, **given}
    with pytest.raises(ValueError, match=said):
        policies.of(**arguments)


def test_conditions_have_one_row_per_prompt() -> None:
    def one(condition: Any) -> Any:
        return policies.of(net(), SHAPE, condition)

    with pytest.raises(ValueError, match=r"returned a tensor of shape \[3, 2\] for 4 prompts: return one row"):
        one(lambda prompts: torch.zeros(3, 2)).encode(TEXTS)
    with pytest.raises(ValueError, match=r"returned 'goal' of shape \[\] for 4 prompts"):
        one(lambda prompts: {"goal": torch.tensor(1.0)}).encode(TEXTS)
    with pytest.raises(ValueError, match="returned an empty dict"):
        one(lambda prompts: {}).encode(TEXTS)
    with pytest.raises(ValueError, match=r"condition cannot encode the prompts \['goal 0', 'goal 1'\]: KeyError"):
        one(lambda prompts: {}["x"]).encode(TEXTS)
    with pytest.raises(ValueError, match="must return a tensor or a dict of tensors, not list"):
        one(lambda prompts: prompts).encode(TEXTS)
    with pytest.raises(ValueError, match="unknown prompt 'gaol 1'; did you mean 'goal 1'"):
        one(GOALS).encode(["gaol 1"])
    with pytest.raises(ValueError, match="guidance needs the condition of the empty prompt ''"):
        one(GOALS).under("policy", 2.0)
    with pytest.raises(ValueError, match="cannot edit images"):
        one(GOALS).refuse([Edit("goal 1", "a.png")])  # type: ignore[arg-type]


def test_frozen_weights_stay_frozen() -> None:
    module = net()
    module.inner.requires_grad_(False)
    one = policies.of(module, SHAPE, GOALS)
    one.weights.add("old")
    assert [*one.weights.tensors("policy")] == ["outer.weight", "outer.bias"] == [*one.weights.tensors("old")]
    one.velocity(*inputs(one)).sum().backward()
    assert module.inner.weight.grad is None and module.outer.weight.grad is not None


def moved(one: Any) -> None:
    with torch.no_grad():
        for tensor in one.weights.tensors("policy").values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rank", [None, 2])
def test_written_weights_are_those_of_the_plain_module(rank: int | None, tmp_path: Any) -> None:
    one = policy(lora_rank=rank)
    assert isinstance(one.weights, LoRA) == (rank is not None)
    one.weights.add("reference")
    before = one.velocity(*inputs(one), "reference")
    moved(one)
    expected = one.velocity(*inputs(one))
    assert not torch.allclose(expected, before)
    assert torch.equal(one.velocity(*inputs(one), "reference"), before)
    (file,) = one.written(tmp_path, {})
    fresh = net(seed=1)
    fresh.load_state_dict(load_file(file))
    again = policies.of(fresh, SHAPE, GOALS)
    assert torch.allclose(again.velocity(*inputs(again)), expected, atol=1e-6)


def test_identity_tells_modules_apart() -> None:
    own = policy().identity
    assert policy().identity == own
    assert policy(seed=1).unlike(own) == ["base"]
    assert policy(time=(0, 1)).unlike(own) == ["time"] and policy(predicts="data - noise").unlike(own) == ["predicts"]
    assert "weights" in policy(lora_rank=2).unlike(own)
    assert {"base", "architecture"} <= {*policies.of(net(width=8), SHAPE, GOALS).unlike(own)}


class Attends(nn.Module):
    """A layer of torch's own transformer over the rows of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = torch.cat([x, t.view(-1, 1, 1).expand(*x.shape[:2], 1)], 2)
        return self.outer(self.layer(self.inner(told)))


@pytest.mark.parametrize("rank", [None, 2])
def test_rollouts_and_training_pass_through_the_same_attention(rank: int | None) -> None:
    """Torch's fast path without gradients would ignore adapters; dropout is off."""
    torch.manual_seed(0)
    one = policies.of(Attends(), (5, 2), lora_rank=rank)
    moved(one)
    x, t, condition = inputs(one)
    with torch.no_grad():
        drawn = one.velocity(x, t, condition)
    trained = one.velocity(x, t, condition)
    assert torch.equal(drawn, trained.detach())
    trained.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in one.weights.tensors("policy").values()
               if rank or each.ndim > 1)  # fmt: skip


def test_plots_of_like_samples_have_like_scales() -> None:
    import numpy as np

    for most, expected in ((0.0, 1), (0.9, 1), (1.0, 1), (1.01, 2), (4.9, 5), (7, 10), (0.03, 0.05)):
        assert plots.limit(np.array([[most, -most]], np.float32)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(9,), (9, 2), (2, 9), (20, 30), (2, 3, 4), (2, 2, 2, 5), (1,)])
def test_samples_of_any_shape_have_a_picture(shape: tuple[int, ...]) -> None:
    found = plots.plotted(torch.randn(3, *shape), ["a"] * 3)
    assert found.shape == (3, 3, plots.HEIGHT, plots.WIDTH) and 0 <= found.min() < 0.9 and found.max() == 1


def test_a_curve_lies_where_its_values_are() -> None:
    """A constant of half the scale is drawn halfway between the middle and the top."""
    (picture,) = plots.plotted(torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5, 0.5]]), ["a"])
    blue = (picture[2] - picture[0])[:, 150:230].mean(1)
    top, bottom = plots.TOP, plots.HEIGHT - plots.BOTTOM
    assert abs(int(blue.argmax()) - (top + (bottom - top) / 4)) <= 2


def test_a_users_picture_is_taken_or_refused() -> None:
    drawn = plots.by(lambda sample, prompt: torch.full((4, 5, 3), len(prompt), dtype=torch.uint8).numpy())
    found = drawn(torch.zeros(2, 1), ["a", "bcd"])
    assert found.shape == (2, 3, 4, 5) and found[1].unique().tolist() == pytest.approx([3 / 255])
    with pytest.raises(ValueError, match=r"draw must return a PIL image or an array \[H, W, 3\] of bytes"):
        plots.by(lambda sample, prompt: sample)(torch.zeros(1, 2), ["a"])
    with pytest.raises(ValueError, match="draw must return pictures of one size"):
        plots.by(lambda sample, prompt: torch.zeros(len(prompt), 2, 3, dtype=torch.uint8).numpy())(
            torch.zeros(2, 1), ["a", "ab"]
        )


def test_images_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="Net makes samples that are no images"):
        policy().encode_images(torch.zeros(1, 3, 4, 4))
    assert Net.__name__ == policy().name and policy().medium.shape == SHAPE
