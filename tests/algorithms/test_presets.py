"""Published settings: each comes out even, survives config.yaml, and says where it comes from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from program import alone
from pydantic import TypeAdapter
from tiny_runs import points_of_a_group

from flowward import ALGORITHMS
from flowward.algorithms import presets as folder
from flowward.algorithms.presets import FOLDER, PRESETS, TRAINING, facts, published
from flowward.system import tables
from flowward.system.nested import flat
from flowward.system.streams import generator
from flowward.training import config

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
    ("ram", "geneval"): 48 * 24 * 8,  # new_methods.md, 2.3
    ("vgrpo", "flux"): 1152 * 4,
    ("meanflow_advantage", "paper"): 1152 * 4,
    # reverse_process.md, 5: images x trained steps over updates, or states where children share a forward
    ("ddpo", "aesthetic"): 128 * 49,
    ("flow_grpo", "geneval"): 576 * 9,
    ("flow_grpo", "flux"): 576 * 5,
    ("flow_grpo_fast", "no-guidance"): 576 * 3,
    ("flow_grpo_fast", "pickscore"): 576 * 3,
    ("flow_grpo_fast", "branching"): 64 * 10,  # trunks of nine children, two steps: 1 state, then 9
    ("dance_grpo", "flux"): 64 * 9,
    ("dance_grpo", "mix_grpo"): 96 * 14,
    ("mix_grpo", "flux"): 96 * 4,
    ("mix_grpo_flash", "flux-frozen"): 96 * 4,
    ("tempflow_grpo", "geneval"): 8 * 4 * 9 // 2,
    ("g2rpo", "flux"): 16,  # prompts, one step number per update
    ("g2rpo", "flux-scripts"): 16,
    ("grpo_guard", "ocr"): 576 * 9,
    ("grpo_guard", "precise"): 128 * 19,
    ("flow_dppo", "geneval"): 512 * 3,
    ("flow_dppo", "pickscore"): 384 * 3,
    ("flow_dppo", "qwen-image"): 256 * 2,
    ("opd", "experts"): 192 * 5,
    ("opd", "anchored"): 256 * 9,
    ("flash_grpo", "wan"): 192,
    ("turningpoint_grpo", "pickscore"): 48 * 24 * 9 // 2,  # chains, random steps, updates
    ("turningpoint_grpo", "flux"): 48 * 24 * 5 // 2,
    ("branch_grpo", "flux"): 4 * 187,  # trees per update
}


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_preset_comes_out_even(name: str, preset: str) -> None:
    settings = config.settings_type(name, preset)()
    run, leaves, points = settings.run, settings.algorithm.rollout.leaves, points_of_a_group(settings)
    update = len(points) * run.groups // run.updates_per_iteration
    assert run.group_size % leaves == run.rollout_batch % leaves == 0
    units = len(points.units()) * (1 if points.in_order else run.groups)
    assert units % run.updates_per_iteration == 0
    assert update % min(update, run.microbatch) == 0
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


@pytest.mark.parametrize("preset", ["combined", "pickscore"])
def test_forward_14_pairs_and_steps_of_an_epoch(preset: str) -> None:
    """432 pairs in 4 steps. The released code rounds them down to what its processes share: 416 on 16, 384 on 32."""
    run = config.settings_type("fdfo", preset)().run
    assert (run.groups, run.group_size, run.updates_per_iteration) == (432, 2, 4)
    assert run.images_per_update == 216


GUIDANCE = {  # reverse_process.md, 5
    **{"ddpo": 5.0, "flow_grpo": 4.5, "grpo_guard": 4.5, "tempflow_grpo": 4.5},
    **{"flash_grpo": 4.5, "turningpoint_grpo": 4.5},
}


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_images_are_drawn_and_measured_with_the_papers_guidance(name: str, preset: str) -> None:
    """FLUX.1-dev takes 3.5 as an input, and makes other images at 1; scenes and the later Fast do without."""
    settings = config.settings_type(name, preset)()
    found = settings.algorithm.rollout.guidance
    assert settings.evaluation.sampler.guidance == found
    if preset in ("scenes", "no-guidance") or (name, preset) == ("flow_grpo_fast", "pickscore"):
        assert found == 1
    elif name in GUIDANCE and preset not in ("flux", "precise"):
        assert found == GUIDANCE[name]
    elif preset in ("flux", "flux-frozen", "flux-scripts", "mix_grpo"):
        assert found == 3.5
    elif name == "flow_dppo" or preset == "precise":
        assert found == (4 if preset == "qwen-image" else 1)
    own = {"name": name, "preset": preset}
    assert config.from_dict({"algorithm": own}).evaluation.sampler.guidance == found
    assert config.from_dict({"algorithm": {**own, "rollout": {"guidance": 2.0}}}).evaluation.sampler.guidance == 2
    said = {"sampler": {"steps": 3, "guidance": 7.0}}
    assert config.from_dict({"algorithm": own, "evaluation": said}).evaluation.sampler.guidance == 7


@pytest.mark.parametrize("name", ["mix_grpo", "mix_grpo_flash", "g2rpo"])
def test_several_rewards_are_compared_one_by_one_where_the_paper_does(name: str) -> None:
    """So that one of larger numbers does not drown the others; DanceGRPO does so for videos."""
    presets = [preset for preset in PRESETS[name] if preset != "scenes"]
    assert {config.settings_type(name, preset)().run.mix for preset in presets} == {"advantages"}
    assert config.settings_type("dance_grpo", "hunyuan-video")().run.mix == "advantages"


# The files


PUBLISHED = tables.load(Path(__file__).with_name("published.yaml"))


def test_every_published_preset_is_in_the_table() -> None:
    assert list(PUBLISHED) == [f"{name}/{preset}" for name, preset in EVERY if preset != "scenes"]
    assert all(each["source"] for each in PUBLISHED.values())
    assert list(PRESETS) == list(ALGORITHMS)
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(ALGORITHMS)
    assert all(next(iter(presets)) == "scenes" for presets in PRESETS.values())


@pytest.mark.parametrize("which", PUBLISHED)
def test_a_preset_has_the_published_values(which: str) -> None:
    name, _, preset = which.partition("/")
    settings, expected = config.settings_type(name, preset)(), PUBLISHED[which]
    run = {**vars(settings), **vars(settings.run), "prompts": settings.run.groups}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in run.items()}
    assert {key: plain[key] for key in expected["run"]} == expected["run"]
    how = settings.algorithm
    found = {
        path: value for path, value in flat(TypeAdapter(type(how)).dump_python(how, mode="json")) if value is not None
    }
    assert found == expected["algorithm"]


def test_dgpo_draws_on_the_grid_of_its_code() -> None:
    """A shift of 3 on an even grid. diffusers starts its DPM-Solver++ at 0.9997, where log(t / (1 - t)) is finite."""
    rollout = config.settings_type("dgpo", "ocr")().algorithm.rollout
    published = [0.9997, 0.964, 0.923, 0.875, 0.818, 0.750, 0.667, 0.562, 0.428, 0.250, 0]
    assert list(rollout.times) == pytest.approx(published, abs=6e-4)


def test_crd_trains_on_the_noisier_levels() -> None:
    """20 times on levels 0 to 7 of its 10: from 0.46 to 1, 0.79 on average."""
    how = config.settings_type("crd", "ocr")().algorithm
    levels = how.rollout.levels
    times = torch.stack([how.points.times(20, levels, generator("crd", n)) for n in range(400)])
    assert sorted(set(times.flatten().tolist())) == pytest.approx(sorted(levels[:8].tolist()))
    assert times.min() == pytest.approx(0.46, abs=0.01) and times.mean() == pytest.approx(0.79, abs=0.005)
    assert all((row.unique(return_counts=True)[1] >= 2).all() for row in times)


EMA = {  # decay of the evaluated average per iteration, from decay, optimiser steps per update of it, and per iteration
    ("flow_grpo", "geneval"): 0.9 ** (2 / 8),
    ("tempflow_grpo", "geneval"): 0.9 ** (2 / 8),
    ("dgpo", "ocr"): 0.9 ** (1 / 8),
    ("dpo", "pickscore"): 0.9 ** (1 / 8),
    ("diffusion_nft", "geneval"): 0.9,
    ("diffusion_nft", "ocr"): 0.9**2,
    ("flowawr", "ocr"): 0.9**2,
    ("flowawr", "video"): 0.9**2,
}


@pytest.mark.parametrize("which", EMA)
def test_the_evaluated_average_is_as_slow_as_published(which: tuple[str, str]) -> None:
    assert config.settings_type(*which)().run.ema_decay == pytest.approx(EMA[which], abs=5e-4)


def test_presets_look_like_a_mapping_of_mappings() -> None:
    own = PRESETS["flow_grpo"]
    assert "ocr" in own and "nothing" not in own and len(own) == 5
    assert own["ocr"] is own["ocr"]
    with pytest.raises(KeyError):
        own["nothing"]
    with pytest.raises(KeyError):
        PRESETS["nothing"]
    assert published("flow_grpo") == "geneval"
    with pytest.raises(ValueError, match="unknown algorithm 'flow_grp'; did you mean 'flow_grpo'"):
        published("flow_grp")


@pytest.mark.parametrize("name", PRESETS)
def test_the_defaults_for_tables_are_those_of_the_code(name: str) -> None:
    """Every field that a preset changes has the default of the class beside it, where the class has such a field."""
    kind = ALGORITHMS[name]
    own = dict(flat(TypeAdapter(kind).dump_python(kind(), mode="json")))
    changed = {path for preset in facts(name).presets.values() for path, _ in flat(preset.algorithm)}
    assert dict(flat(facts(name).defaults)) == {path: own[path] for path in changed & own.keys()}


def test_the_defaults_of_training_are_those_of_the_code() -> None:
    default = config.settings_type("advantageflow")
    run, settings = default.__mro__[1]().run, default.__mro__[1]()
    for key, value in TRAINING.items():
        assert value == getattr(run if hasattr(run, key) else settings, key), key
    used = {
        key for name, preset in EVERY for part in ("run", "settings") for key in getattr(PRESETS[name][preset], part)
    }
    assert used == TRAINING.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_the_facts_of_an_algorithm(name: str) -> None:
    """Its family is that of its place in the table; its paper is the one that its module names."""
    found = facts(name)
    place = list(PRESETS).index(name)
    families = ("forward process", "differentiated reward", "reverse process", "distillation")
    assert found.family == families[(place >= 12) + (place >= 16) + (place >= 29)]
    module = __import__(ALGORITHMS[name].__module__, fromlist=[""])
    assert f"arXiv:{found.arxiv}" in module.__doc__
    assert 5 <= len(found.when.split()) <= 20
    assert all(preset.model for preset in found.presets.values())


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("title:", "titel:", "presets/crd.yaml: unknown setting 'titel'; did you mean 'title'"),
        ("    source: arX", "    sorce: arX", "presets/crd.yaml: ocr: unknown setting 'sorce'; did you mean 'source'"),
        ("cost: {sampling", "cost: {samplin", "presets/crd.yaml: cost: unknown setting 'samplin'"),
        ("grid: sd3", "gird: sd3", "presets/crd.yaml: ocr: unknown setting 'algorithm.rollout.gird'"),
        ("grid: sd3", "grid: sd4", "presets/crd.yaml: ocr: algorithm.rollout.grid.*"),
        ("group_size: 24", "groupsize: 24", "presets/crd.yaml: ocr: unknown setting 'run.groupsize'"),
        ("lora_rank: 32", "lora_rnk: 32", "presets/crd.yaml: ocr: unknown setting 'settings.lora_rnk'"),
        ("when:", "# when:", "presets/crd.yaml: missing 1 required positional argument: 'when'"),
        ("forward process", "forward", "presets/crd.yaml: unknown family 'forward'"),
        ("presets:", "presets: [", "crd.yaml: while parsing"),
    ],
)
def test_a_wrong_key_is_refused_with_its_file(
    was: str, becomes: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FOLDER / "crd.yaml", tmp_path)
    file = tmp_path / "crd.yaml"
    text = file.read_text()
    assert text.count(was)
    head, _, rest = text.rpartition(was)  # the last one: that of the preset, not of the defaults
    file.write_text(head + becomes + rest)
    monkeypatch.setattr(folder, "FOLDER", tmp_path)
    facts.cache_clear()
    try:
        with pytest.raises(ValueError, match=said):
            monkeypatch.setitem(PRESETS, "crd", folder._Own("crd"))
            config.settings_type("crd", "ocr")
    finally:
        facts.cache_clear()


def test_facts_are_read_without_torch() -> None:
    program = (
        "import sys; from flowward.algorithms.presets import PRESETS, facts; "
        "print(sum(len(facts(name).presets) for name in PRESETS), 'torch' in sys.modules)"
    )
    assert alone(program)[0].split() == [str(len(EVERY)), "False"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_default_run_comes_out_even(name: str) -> None:
    """`flowward train --algorithm NAME` works as it is: groups, points and microbatches divide."""
    settings = config.settings_type(name)()
    run = settings.run
    points = points_of_a_group(settings)
    count = len(points) * run.groups
    assert run.group_size % settings.algorithm.rollout.leaves == 0
    assert run.rollout_batch % settings.algorithm.rollout.leaves == 0
    assert (count // points.unit) % run.updates_per_iteration == 0
    assert (count // run.updates_per_iteration) % min(run.microbatch, count) == 0
    assert run.microbatch % points.indivisible == 0
