"""Published settings: each comes out even, survives config.yaml, and says where it comes from."""

from __future__ import annotations

import pytest
import torch

from flowward import config
from flowward.models.policy import Condition
from flowward.presets import PRESETS
from flowward.rollout import Drawn, Rollout

EVERY = [(name, preset) for name, presets in PRESETS.items() for preset in presets]
# points behind one optimiser step, from the papers (forward_process.md, 11)
POINTS = {
    ("diffusion_nft", "geneval"): 10_368,
    ("diffusion_nft", "ocr"): 5_184,
    ("diffusion_nft", "multi"): 27_648,
    ("awm", "geneval"): 10_368,
    ("awm", "pickscore"): 3_456,
    ("fdfo", "combined"): 8_640,
    ("dgpo", "ocr"): 512,
    ("dgpo", "pickscore"): 768,
    ("crd", "ocr"): 11_520,
    ("flowawr", "geneval"): 10_368,
    ("advantageflow", "paper"): 128,
}


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_preset_comes_out_even(name: str, preset: str) -> None:
    settings = config.settings_type(name, preset)()
    run, algorithm = settings.run, settings.algorithm
    group = torch.arange(run.groups).repeat_interleave(run.group_size)
    condition = Condition({"": torch.empty(run.groups)})
    empty = Rollout.of([Drawn(torch.empty(run.images, 0))], condition, group, algorithm.rollout.levels)
    points = algorithm.points(empty, ("",))
    update = len(points) // run.updates_per_iteration
    assert (len(points) // points.unit) % run.updates_per_iteration == 0
    assert update % run.microbatch == 0
    assert run.microbatch % points.indivisible == 0
    assert update == POINTS.get((name, preset), update)


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_preset_survives_yaml(name: str, preset: str) -> None:
    settings = config.settings_type(name, preset)()
    again = config.from_dict(config.to_dict(settings))
    assert config.to_dict(again) == config.to_dict(settings)
    assert again.algorithm == settings.algorithm


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_preset_says_where_it_comes_from(name: str, preset: str) -> None:
    source = PRESETS[name][preset].source
    assert source == "docs/benchmarks.md" if preset == "scenes" else "arXiv:" in source


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown preset of diffusion_nft 'geneva'; did you mean 'geneval'"):
        config.settings_type("diffusion_nft", "geneva")
