"""The examples of flows that make no images: each algorithm improves them, in their short form."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@cache
def example(name: str) -> dict[str, Any]:
    """The functions of an example in its short form; what it learns from data is learned once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWWARD_SHORT", "1")
        space = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    learn: Callable[[int], Any] = space["learned" if "learned" in space else "cloned"]
    trained = learn(1000).state_dict()

    def again(steps: int) -> Any:
        flow = space["Flow"]()
        flow.load_state_dict(trained)
        return flow

    space["make"].__globals__[learn.__name__] = again
    return space


@pytest.mark.parametrize(
    ("name", "algorithm", "reward"),
    [("robot_arm", "advantageflow", "reach"), ("robot_arm", "flow_grpo", "reach"),
     ("waveforms", "advantageflow", "in_tune")],
)  # fmt: skip
def test_the_reward_rises(name: str, algorithm: str, reward: str, capsys: pytest.CaptureFixture[str]) -> None:
    space = example(name)
    run = space["main"](algorithm)
    first, *_, last = (each["scores"][reward]["overall"] for each in run.evaluations.values())
    (change,) = (each for each in run.evaluate().differences if each.score == reward and each.category is None)
    assert change.significant and change.low is not None and change.low > 0 and last["mean"] > first["mean"]
    assert "before training" in capsys.readouterr().out


def test_the_arm_is_an_environment_of_gymnasium() -> None:
    """Of a command without error and friction the hand would be at the goal; friction keeps it from there."""
    import numpy as np

    space = example("robot_arm")
    start, turns = space["tasks"](50, seed=3)
    arm, chunk = space["Arm"](50), space["CHUNK"]
    seen, _ = arm.reset(options={"start": start})
    assert arm.observation_space.shape == seen.shape and arm.action_space.shape == (50, 2)
    for _ in range(chunk):
        seen, reward, over, _, _ = arm.step(turns / chunk / space["REACH"] / space["FRICTION"])
    assert np.allclose(reward, 0, atol=2e-3) and over.all()  # goals are rounded to millimetres
    assert np.allclose(seen[:, :2] - start[:, :2], turns, atol=1e-9)
    texts = [space["text"](each) for each in start]
    assert torch.allclose(space["start_of"](texts).double(), torch.from_numpy(start), atol=1e-6)
    stuck = torch.from_numpy(np.repeat((turns / chunk / space["REACH"])[:, None], chunk, 1))
    expected = np.linalg.norm(space["tip"](start[:, :2] + space["FRICTION"] * turns) - start[:, 2:], axis=1)
    assert np.allclose(space["away"](stuck, texts).numpy(), expected, atol=1e-5)


def test_a_wave_in_tune_scores_higher() -> None:
    space = example("waveforms")
    along, prompts = torch.linspace(0, 1, space["LENGTH"]), list(space["PITCH"])[4:]
    pitch = torch.tensor([space["PITCH"][prompt] for prompt in prompts])[:, None]
    tuned, off = (torch.sin(2 * torch.pi * factor * pitch * along) for factor in (1.0, 1.25))
    assert space["in_tune"](tuned, prompts).min() > 0.8 and space["in_tune"](off, prompts).max() < 0.5
