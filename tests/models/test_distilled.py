"""Step-distilled models: each sign is found, and losses that would blur them are refused (T32 to T34)."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from gaussian_flow import gaussian, variance
from tiny_pipelines import small
from tiny_pipelines import tiny as pipeline
from tiny_runs import TWO_TIMES
from torch import Tensor

from flowward import models
from flowward.algorithms import DPO, FDFO, AdvantageFlow, FlowGRPO, MeanFlowAdvantage
from flowward.algorithms.suited import distilled_remarks, refuse_distilled
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.process.distilled import Sign, of_names, of_pipeline, of_scheduler
from flowward.process.plans import Chain
from flowward.process.policy import Condition
from flowward.process.solvers import euler
from flowward.verify.calibration import slope, slopes

ROWS = Condition({"id": torch.zeros(20_000)})


def policy_of(name: str, kind: str, change: Any = lambda pipe: None) -> DiffusersPolicy:
    pipe = pipeline(kind)
    change(pipe)
    return DiffusersPolicy(name, FAMILIES[kind](pipe, **small(kind)), 2, "float32")


def lcm(pipe: Any) -> None:
    pipe.scheduler = diffusers.FlowMatchLCMScheduler()


def stochastic(pipe: Any) -> None:
    pipe.scheduler.register_to_config(stochastic_sampling=True)


def klein(pipe: Any) -> None:
    pipe.register_to_config(is_distilled=True)


def schnell(pipe: Any) -> None:
    pipe.transformer.register_to_config(guidance_embeds=False)


@pytest.mark.parametrize(
    ("name", "kind", "change", "sure", "said"),
    [
        ("o/m", "Flux2KleinPipeline", klein, "certain", "`is_distilled: true`"),
        ("o/m", "FluxPipeline", schnell, "likely", "`guidance_embeds: false`"),
        ("o/m", "StableDiffusion3Pipeline", lcm, "certain", "`FlowMatchLCMScheduler`"),
        ("o/m", "StableDiffusion3Pipeline", stochastic, "certain", "`stochastic_sampling: true`"),
        ("o/m", "AnyFlowPipeline", lambda pipe: None, "certain", "`AnyFlowPipeline`"),
        ("Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", lambda pipe: None, "hint", "`turbo`"),
    ],
)
def test_34_each_sign_is_told(name: str, kind: str, change: Any, sure: str, said: str) -> None:
    first = policy_of(name, kind, change).distilled()[0]
    assert (first.sure, first.what) == (sure, said)


@pytest.mark.parametrize("kind", ["Flux2KleinPipeline", "FluxPipeline", "StableDiffusion3Pipeline", "WanPipeline"])
def test_34_base_models_are_not(kind: str) -> None:
    """dev, klein-base and the like."""
    assert policy_of("o/base", kind).distilled() == ()


def test_34_classes_and_names_of_the_table() -> None:
    for start in ("LCM", "FlowMatchLCM", "TCD", "SCM", "FlowMapEuler", "PiFlow", "HeliosDMD"):
        assert [*of_scheduler(f"{start}Scheduler", {})] and not [*of_scheduler("FlowMatchEulerDiscreteScheduler", {})]
    for kind in ("SanaSprintPipeline", "AnyFlowFARPipeline", "LatentConsistencyModelPipeline"):
        assert [*of_pipeline(kind, {})] and not [*of_pipeline("SanaPipeline", {"is_distilled": False})]
    named = (
        "FLUX.1-schnell", "SDXL-Lightning", "Hyper-SD", "my_lcm", "tdm-r1", "DMD2", "sd3.5-flash", "Sana_Sprint",
        "qwen-4step", "wan_8-steps", "causvid", "Self-Forcing", "models--x--z-turbo/snapshots/abc",
    )  # fmt: skip
    for name in named:
        assert [sign.sure for sign in of_names([(name, "the model")])] == ["hint"], name
    for name in ("turbine", "hyperion", "flashy-cats", "100-steps", "sd3.5-medium", "lightning-ai/base", "v1.4steps"):
        assert not [*of_names([(name, "the model")])], name


def test_a_loss_that_takes_the_velocity_for_a_mean_is_refused(tiny: str) -> None:
    """One sentence for a sure sign, a warning for a hint; neither for losses of the sampler's own steps and jumps."""
    sure, hint = policy_of("o/m", "FluxPipeline", schnell), policy_of("o/x-turbo", "StableDiffusion3Pipeline")
    for how in (AdvantageFlow(), DPO()):
        name = type(how).__name__
        with pytest.raises(ValueError, match=rf"^o/m is step-distilled \(.*, likely\): {name} .* --allow-distilled$"):
            refuse_distilled(how, sure)
        refuse_distilled(how, sure, allowed=True)
        refuse_distilled(how, hint)
        (said,) = distilled_remarks(how, hint, how.rollout)
        assert said.startswith("o/x-turbo may be step-distilled (`turbo` in the name of the model, hint)")
        assert "--allow-distilled" in distilled_remarks(how, sure, how.rollout)[0]
    for other in (FlowGRPO(), FDFO()):
        refuse_distilled(other, sure)
    few = models.load(tiny + TWO_TIMES, None, "float32")
    refuse_distilled(MeanFlowAdvantage(), few)
    assert distilled_remarks(MeanFlowAdvantage(), few, MeanFlowAdvantage().rollout) == []
    with pytest.raises(ValueError, match="Use meanflow_advantage, which trains jumps, or an algorithm"):
        refuse_distilled(AdvantageFlow(), few)
    assert distilled_remarks(AdvantageFlow(), models.load(tiny, None, "float32"), AdvantageFlow().rollout) == []


def test_noise_schedules_with_a_score_are_warned_of(tiny: str) -> None:
    few = models.load(tiny + TWO_TIMES, None, "float32")
    for law, many in (("flow-sde", 1), ("dance-sde", 1), ("cps", 0), ("ddim", 0), ("precise", 0)):
        how = FlowGRPO(rollout=Chain(law=law))  # type: ignore[arg-type]
        said = distilled_remarks(how, few, how.rollout)
        assert len(said) == many and all("use --algorithm.rollout.law cps" in each for each in said), law


def _normal(seed: int) -> Tensor:
    return torch.randn(20_000, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8, 0.95])
def test_32_the_slope_of_a_flow_is_1(t: float) -> None:
    """On samples of 40 Euler steps along the exact velocity; of 2 steps it is not, since they are not its samples."""
    field, off = gaussian(0.5, 0.7), []
    for steps in (40, 2):
        times = torch.linspace(1, 0, steps + 1).tolist()
        x0 = euler(field, _normal(0), times, lambda number: _normal(number))
        uv, vv = slope(lambda x, at, rows: field(x, at[0].item()), x0, _normal(1), t, ROWS)
        off.append(abs(uv / vv - 1))
    assert off[0] < 0.02
    assert off[1] > 0.02 or t not in (0.5, 0.8)


def test_33_the_slope_of_a_jump_to_data() -> None:
    """A network that returns U(x, 0, t) of N(0, 0.5^2): b = t [t - (1 - t) / 4] / (S (1 - 0.5 / sqrt(S)))."""
    x0, found = 0.5 * _normal(2), []

    def to_data(x: Tensor, t: Tensor, rows: Condition) -> Tensor:
        return (1 - 0.5 / variance(t[0].item(), 0.5) ** 0.5) / t[0] * x

    for t in (0.2, 0.5, 0.8, 0.95, 1.0):
        uv, vv = slope(to_data, x0, _normal(3), t, ROWS)
        found.append(uv / vv)
    assert found == pytest.approx([0, 5.68, 2.43, 2.08, 2.00], abs=0.15)


def test_a_model_is_measured_by_few_evaluations() -> None:
    one = policy_of("o/m", "StableDiffusion3Pipeline")
    found = slopes(one, ["a cat", "dog"], samples=4, steps=2)
    assert list(found) == [0.2, 0.5, 0.8, 0.95] and all(abs(b) < 10 for b in found.values())
    assert one.evaluated == 4 * (2 + 4)


def test_signs_are_said_in_words() -> None:
    assert str(Sign("`x`", "y", "hint")) == "`x` in y, hint"
