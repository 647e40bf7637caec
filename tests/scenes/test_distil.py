"""The built-in few-step model: what it starts as, what it is fitted to, and a run that is stopped and resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from built_in_policies import TEXTS
from safetensors.torch import load_file

from flowward import models
from flowward.models.scenes import networks_of
from flowward.scenes import distil
from flowward.scenes.network import Networks
from flowward.scenes.recipe import Distil
from flowward.scenes.two_times import TwoTimeTransformer

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.9, 0.5, 1.0, 0.2])


def config(tiny: str, output: Path, **changes: Any) -> Distil:
    few = {"steps": 4, "stop": 3, "settle": 2, "settle_stop": 2, "batch": 8, "points": 4, "views": 8, "save_every": 1}
    return Distil(output, tiny, precision="float32", **{**few, **changes})


def test_a_second_time_does_nothing_at_first(tiny: str) -> None:
    """Whatever the length of a jump, to the bit; and the embedding behind the gate is the same in every run."""
    teacher = networks_of(tiny)
    words, pooled = teacher.text_encoder(teacher.text_encoder.tokenize(list(TEXTS[:4])))
    one, two = (TwoTimeTransformer.of(teacher.transformer) for _ in range(2))
    with torch.no_grad():
        plain = teacher.transformer(X, words, pooled, 1000 * T, return_dict=False)[0]
        both = one(X, words, pooled, 1000 * torch.stack([T, T / 3], 1), return_dict=False)[0]
    assert torch.equal(plain, both)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_trajectories_are_of_second_order() -> None:
    """dx/dt = x has x_t = e^(t - 1): the error at t = 0 falls with the square of the step."""

    class Growing:
        def transformer(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            return (x,)

    errors, x = [], torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for points in (20, 40):
        even = torch.linspace(1, 0, points + 1, dtype=torch.float64)[None]
        states, _ = distil.trajectory(Growing(), x, x, x, even)  # type: ignore[arg-type]
        errors.append(abs(states[0, -1].item() - torch.tensor(-1.0).exp().item()))
    assert 3 < errors[0] / errors[1] < 5


def test_jumps_have_their_shares() -> None:
    start, end = distil.jumps(20_000, 12, torch.Generator().manual_seed(0))
    assert (start <= end).all() and end.max() == 12 and start.max() < 12
    still, regular = start == end, (start % 3 == 0) & (end - start == 3)
    assert still.double().mean() == pytest.approx(0.2, abs=0.01)
    assert regular.double().mean() > 0.4 and (end == 12).double().mean() > 0.25


def test_a_batch_is_of_average_velocities(tiny: str, tmp_path: Path) -> None:
    """x_s = x_t - (t - s) U along the teacher's states, and U = v where s = t; the same again for the same step."""
    data = distil.Jumps(networks_of(tiny), config(tiny, tmp_path, batch=64))
    *_, x, t, s, average = data.batch(3)
    again = distil.Jumps(networks_of(tiny), config(tiny, tmp_path, batch=64)).batch(3)
    assert torch.equal(average, again[-1]) and (s <= t).all()
    words, pooled = data.batch(3)[:2]
    with torch.no_grad():
        v = distil._velocity(data.teacher, x, words, pooled, t)
    torch.testing.assert_close(average[s == t], v[s == t], rtol=0, atol=1e-5)
    states, times = data.drawn[3], data.drawn[2]
    for row in (s < t).nonzero().flatten()[:5].tolist():  # the end is a state of the same trajectory
        there = x[row] - (t[row] - s[row]) * average[row]
        of = (states[:, :-1] == x[row]).flatten(2).all(2).any(1).nonzero().flatten()
        place = (times[of[0]] == s[row]).nonzero().flatten()[0]
        torch.testing.assert_close(there, states[of[0], place], rtol=0, atol=1e-5)


def test_a_stopped_run_ends_with_the_same_model(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in either stage. The model has two times, and all else from its teacher; it makes 4 jumps."""
    whole = config(tiny, tmp_path / "whole")
    _tiny_networks(monkeypatch, tiny)
    stages = [line["stage"] for line in distil.distil(whole, networks_of(tiny))]
    assert list(dict.fromkeys(stages)) == ["jumps", "settle"]
    parted = replace(whole, output=tmp_path / "parts")
    for stop in (2, 2):  # the calls of the loss before it is interrupted
        calls, original = [0], distil.loss

        def loss(*given: Any, calls: list[int] = calls, stop: int = stop, original: Any = original) -> Any:
            calls[0] += 1
            if calls[0] > stop:
                raise KeyboardInterrupt
            return original(*given)

        monkeypatch.setattr(distil, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            list(distil.distil(parted, networks_of(tiny)))
        monkeypatch.setattr(distil, "loss", original)
    list(distil.distil(parted, networks_of(tiny)))
    name = "model/transformer/diffusion_pytorch_model.safetensors"
    one, two = (load_file(folder / name) for folder in (whole.output, parted.output))
    assert all(torch.equal(one[key], two[key]) for key in one)
    policy = models.load(str(whole.output / "model"), precision="float32")
    assert policy.two_times and policy.distilled()[0].sure == "certain"
    teacher = load_file(Path(tiny) / "text_encoder/model.safetensors")
    assert all(
        torch.equal(teacher[key], value)
        for key, value in load_file(whole.output / "model/text_encoder/model.safetensors").items()
    )


def _tiny_networks(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    """What `Networks.save` makes anew has the shapes of the tiny model."""
    from flowward.scenes import network

    made = Networks.load(Path(tiny))
    monkeypatch.setattr(network, "new_transformer", lambda: type(made.transformer).from_config(made.transformer.config))
    monkeypatch.setattr(network, "new_autoencoder", lambda: type(made.autoencoder).from_config(made.autoencoder.config))


def test_settings_that_make_no_sense_are_refused(tiny: str, tmp_path: Path, refused: Any) -> None:
    out = tmp_path / "out"
    for words, said in (
        (("--stop", "3000"), "stop must be at most steps, 2000"),
        (("--ema", "1"), "ema, a decay, must lie in"),
        (("--views", "65"), "views must be between 1 and 64"),
        (("--points", "3"), "points must be between 4 and 1,000"),
        (("--teacher", "nowhere"), "cannot read the model in nowhere"),
    ):
        assert said in refused("pretrain", "scenes-4step", "--output", out, *words)
    assert "two times already" in refused("pretrain", "scenes-4step", "--output", out, "--teacher", tiny + "-two")
    shutil.rmtree(out, ignore_errors=True)
