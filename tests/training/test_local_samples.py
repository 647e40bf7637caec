"""Samples stay with the process that drew them; more processes than prompts do what one does."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from collectives import counted
from processes import together
from tiny_runs import TEXTS, bright, small, snapshot, taught
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms import DGPO, OPD, AdvantageFlow, FlowGRPO, TempFlowGRPO
from flowward.evaluation.evaluate import Evaluation, measure
from flowward.learning.points import Renoise, RenoiseGroups, unit_order
from flowward.learning.states import States
from flowward.models import Adapters
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Condition
from flowward.process.rollout import Drawn, Rollout, Sampler, Steps
from flowward.process.trajectory import Trajectory
from flowward.rewards.loading import Sum
from flowward.system import checkpoint, distributed
from flowward.training import batches
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.metrics import Step
from flowward.training.trainer import Trainer

LAYOUTS = (2, 4)  # processes; an iteration has two prompts, which are one update
CASES: dict[str, tuple[Any, int]] = {  # with the images that are sampled at once: equal batches give equal bits
    "advantageflow": (AdvantageFlow(rollout=Sampler(2), points=Renoise(2)), 1),
    "flow_grpo": (FlowGRPO(rollout=Chain(3), beta=0.01), 1),
    "tempflow_grpo": (TempFlowGRPO(rollout=Branches(3, fanout=2)), 4),
    "opd": (OPD(rollout=Trajectory(3), points=States(per_image=2)), 1),
    "dgpo": (DGPO(rollout=Sampler(2), points=RenoiseGroups(2)), 8),
}
RUNS = [(name, updates) for name in CASES for updates in (1, 2)]
CASES |= dict.fromkeys(("descent", "palette"), CASES["advantageflow"])  # of two rewards
RUNS += [("descent", 2), ("palette", 1)]
GROUP = 8  # images per prompt


def comparing(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    return bright(images, texts)


comparing.compares = True  # type: ignore[attr-defined]


def apart(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    """Brightness over that of the prompt's other images in the call."""
    light = images.mean((1, 2, 3))
    return torch.stack([light[k] - light[[other == text for other in texts]].mean() for k, text in enumerate(texts)])


apart.compares = True  # type: ignore[attr-defined]


def coloured(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    return images.std((1, 2, 3))


BOTH = Sum((("bright", 1.0, bright), ("coloured", 0.5, coloured)))


def evaluation(folder: str) -> dict[str, Any]:
    """15 images of 5 prompts, of which a reward compares those of a prompt; they are not one after the other."""
    policy, how = models.load(folder, None, "float32"), Evaluation(images=15, sampler=Sampler(2), batch=1)
    with counted() as calls:
        found = measure(policy, prompts.of("mine", TEXTS), how, {"apart": apart, "bright": bright}, pictures=True)
    pictures = [hashlib.sha256(each).hexdigest() for each in found.pictures]
    return {**found.scores, "pictures": pictures, "gathered": calls.gathered, "size": list(policy.image_size)}


def made(folder: str, name: str, updates: int) -> Trainer:
    """A trainer of two prompts an iteration, in plain gradient steps: Adam would blow rounding errors up."""
    algorithm, batch = CASES[name]
    sizes = {"images_per_update": 2 * GROUP // updates, "group_size": GROUP, "microbatch": 8, "rollout_batch": batch}
    mix = {"descent": "descent", "palette": "advantages"}.get(name, "rewards")
    run = small(updates_per_iteration=updates, warmup=0, mix=mix, **sizes)
    adapters = Adapters(2, palette=("bright", "coloured")) if name == "palette" else None
    policy, texts = models.load(folder, None, "float32", adapters=adapters), prompts.of("mine", TEXTS)
    reward = bright if mix == "rewards" else BOTH
    one = Trainer(algorithm, policy, reward, texts, run, teachers=taught(algorithm, policy, texts))
    one.optimiser = torch.optim.SGD(one.parameters, 0.1)
    one.run = replace(one.run, learning_rate=0.1)
    return one


def three_iterations(folder: str, name: str, updates: int) -> dict[str, Any]:
    """What this process drew and knows of the first one, the weights after three, and what it told the others."""
    one = made(folder, name, updates)
    seen: dict[str, Any] = {}

    def graft(rollout: Any, asked: Any, index: int) -> Any:
        if not seen:
            steps = rollout.steps
            none = torch.empty(0)
            seen.update(
                here=one._mine(),
                x0=rollout.x0,
                cohort=rollout.cohort,
                states=steps.x if steps else none,
                rows=steps.sample if steps else none,
            )
        return rollout

    one.graft = graft
    credit, given = one.credit, dict[str, Tensor]()

    def noted(rollout: Any, rewards: Tensor, asked: Any) -> Any:
        found = credit(rollout, rewards, asked)
        given.setdefault("rewards", rewards)
        given.setdefault("advantages", found.advantage)
        return found

    one.credit = noted  # type: ignore[method-assign]
    with counted() as calls:
        steps = [one.step() for _ in range(3)]
    return {
        **seen,
        **given,
        "weights": snapshot(one.policy),
        "loss": [step.metrics["loss"] for step in steps],
        "gathered": calls.gathered,
        "sums": calls.sums,
    }


def strayed(folder: str, where: Path, number: int) -> dict[str, Any]:
    """What becomes of a run where one weight of the last process changes, before the first and after iteration 1."""
    found: dict[str, Any] = {}
    for when in (0, 1):
        one = made(folder, "advantageflow", 1)
        one.run = replace(one.run, checkpoint_every=1)
        out = RunFolder.create(where / str(when), {"model": "mine"}) if number == 0 else None
        lines: list[Any] = []

        def stray(one: Trainer = one) -> None:
            if number == dist.get_world_size() - 1:
                with torch.no_grad():
                    one.parameters[3].view(-1)[0] += 1e-6

        if when == 0:
            stray()
        try:
            for step in one.steps(None, out):
                lines.append(step.line(8))
                stray()
        except TrainingError as error:
            saved = [int(path.stem) for path in out.checkpoints()] if out else []
            found[str(when)] = {"said": str(error), "steps": len(lines), "saved": saved}
    return found | {"seconds": lines[0]["seconds"]}


def process(number: int, folder: str, where: str, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=number, world_size=count)
    found = {f"{name} {updates}": three_iterations(folder, name, updates) for name, updates in RUNS}
    found["evaluation"] = evaluation(folder)
    found["strayed"] = strayed(folder, Path(where), number)
    checkpoint.save(Path(where) / f"{number}.safetensors", found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tiny: str) -> dict[str, dict[str, Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {f"{name} {updates}": three_iterations(tiny, name, updates) for name, updates in RUNS}
        return found | {"evaluation": evaluation(tiny)}
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", params=LAYOUTS)
def several(request: Any, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    where = tmp_path_factory.mktemp("processes")
    together(process, (tiny, str(where), request.param), request.param)
    return [checkpoint.load(where / f"{number}.safetensors") for number in range(request.param)]


@pytest.mark.parametrize(("name", "updates"), RUNS)
def test_any_number_of_processes_does_what_one_does(
    several: list[dict[str, Any]], alone: dict[str, dict[str, Any]], name: str, updates: int
) -> None:
    """Rollouts, rewards and advantages to the bit, weights after three iterations up to rounding."""
    case = f"{name} {updates}"
    one, every = alone[case], [each[case] for each in several]
    assert torch.equal(torch.cat([each["here"] for each in every]), one["here"])
    for what in ("x0", "states"):
        assert torch.equal(torch.cat([each[what] for each in every if len(each["here"])]), one[what])
    for each in every:
        for what in ("rewards", "advantages", "cohort", "rows"):
            assert torch.equal(each[what], one[what]), what
        assert each["loss"] == pytest.approx(one["loss"], abs=1e-5)
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(each["weights"][key], tensor, rtol=0, atol=1e-6)
            assert torch.equal(each["weights"][key], every[0]["weights"][key])


@pytest.mark.parametrize(("name", "updates"), RUNS)
def test_no_sample_travels(
    several: list[dict[str, Any]], alone: dict[str, dict[str, Any]], name: str, updates: int
) -> None:
    """What a process tells in an iteration is small beside the finished samples; gradients go in one buffer each."""
    case = f"{name} {updates}"
    for each in (each[case] for each in several):
        assert each["sums"] == 3 * updates * (3 if name == "descent" else 1)  # each reward's, and their combination
        assert 0 < each["gathered"] / 3 < alone[case]["x0"].nbytes / 4


def test_an_evaluation_gathers_scores_and_thumbnails(
    several: list[dict[str, Any]], alone: dict[str, dict[str, Any]]
) -> None:
    """In the order of one process, and no images; those of a prompt are compared by one process."""
    one = alone["evaluation"]
    assert one["apart"].abs().max() > 1e-4 and len(set(one["pictures"])) == 15
    height, width = one["size"]
    for each in (each["evaluation"] for each in several):
        assert torch.equal(each["bright"], one["bright"]) and each["pictures"] == one["pictures"]
        torch.testing.assert_close(each["apart"], one["apart"], rtol=0, atol=1e-6)
        assert 0 < each["gathered"] < 15 * 3 * height * width * 4 / len(several) / 2


def test_weights_that_differ_end_the_run_and_are_not_saved(several: list[dict[str, Any]]) -> None:
    last = len(several) - 1
    for number, each in enumerate(each["strayed"] for each in several):
        for when, started in (("0", "before the first iteration the"), ("1", "after iteration 2 the")):
            found = each[when]
            assert found["said"].startswith(f"{started} weights of process {last} differ from those of process 0")
            assert found["steps"] == int(when) and found["saved"] == [1] * (number == 0 and when == "1")


def test_the_slowest_and_the_fastest_process_are_told(several: list[dict[str, Any]]) -> None:
    for each in (each["strayed"]["seconds"] for each in several):
        assert 0 < each["fastest"] <= each["slowest"] < each["total"] + 1
        assert each["slowest"] == several[0]["strayed"]["seconds"]["slowest"]
        assert {"slowest", "fastest"}.isdisjoint(Step.of({"iteration": 1, "seconds": each}).seconds)
        assert Step.of({"iteration": 1, "seconds": each}).line(8)["seconds"] == each


def test_what_travels_of_flow_grpo_at_512_pixels() -> None:
    """1,152 images of 9 random steps on 64 processes: latents of 8.5 GB, an outline and scores of less than 1 MB."""
    images, steps, latent = 1152 // 64, 9, 16 * 64 * 64

    def like(*shape: int) -> Tensor:  # as large as asked, without memory
        return torch.empty(1).expand(*shape)

    rows = images * steps
    walked = Steps(
        like(rows, latent),
        like(rows, latent),
        like(rows, 1, latent),
        torch.arange(images).repeat_interleave(steps).view(-1, 1, 1),
        torch.arange(steps).repeat(images),
        torch.zeros(steps + 1, 4, dtype=torch.float64),
        steps,
    )
    drawn = Drawn(like(images, latent), steps=walked, cohort=torch.zeros(images, dtype=torch.long))
    told = 64 * (len(pickle.dumps(drawn.outline())) + 4 * images)
    held = 64 * sum(each.numel() * 4 for each in (drawn.x0, walked.x, walked.v, walked.z))
    assert held > 8.4e9 and 90_000 < told < 400_000


@pytest.mark.parametrize(("reward", "images"), [(bright, 18), (comparing, 24)])
def test_roots_are_dealt_out_not_prompts(tiny: str, monkeypatch: pytest.MonkeyPatch, reward: Any, images: int) -> None:
    """48 prompts of 24 images on 64 processes: all have 18. Only a reward that compares keeps prompts together."""
    run = small(images_per_update=48 * 24, group_size=24, rollout_batch=24, microbatch=24)
    one = Trainer(CASES["flow_grpo"][0], models.load(tiny, None, "float32"), reward, prompts.of("mine", TEXTS), run)
    monkeypatch.setattr(distributed, "count", lambda: 64)
    parts = []
    for number in range(64):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        parts.append(one._mine())
    assert torch.equal(torch.cat(parts), torch.arange(48 * 24))
    sizes = [len(part) for part in parts]
    assert max(sizes) == images and sum(sizes) == 48 * 24
    assert reward is bright or sizes.count(0) == 16
    assert all(size == images for size in sizes if size)


def test_a_process_without_images_is_told_of() -> None:
    run = small(images_per_update=48, group_size=24)
    assert batches.idle(run, unit=24, processes=2) == []
    (said,) = batches.idle(run, unit=24, processes=3)
    assert said == (
        "an iteration has 2 parts of 24 images that belong together, so 1 of 3 processes has nothing to do: use fewer "
        "--processes or more --images-per-update"
    )


def test_every_update_has_as_many_units_of_each_prompt() -> None:
    """A function of the key: 3 prompts of 10 samples with 2 points each, over 4 updates."""
    group = torch.arange(3).repeat_interleave(10)
    rollout = Rollout.of([Drawn(torch.zeros(30, 2))], Condition({"": torch.zeros(3)}), group, torch.ones(4))
    points = Renoise(2)(rollout, ("",))
    steps = unit_order(points, 4, ("order", 0, 5))
    assert torch.equal(torch.cat(steps).sort().values, torch.arange(30))
    assert sorted(map(len, steps)) == [7, 7, 8, 8]
    counts = torch.stack([group[step].bincount(minlength=3) for step in steps])
    assert counts.min() >= 2 and counts.max() <= 3
    assert all(torch.equal(a, b) for a, b in zip(steps, unit_order(points, 4, ("order", 0, 5)), strict=True))
    assert not torch.equal(torch.cat(steps), torch.cat(unit_order(points, 4, ("order", 0, 6))))
    few = Renoise(2)(replace(rollout, group=group[:2]), ("",))
    assert [len(step) for step in unit_order(few, 4, ("order", 0, 0))] == [1, 1]  # fewer units than updates


def test_a_sample_of_another_process_is_not_taken_for_one_of_this() -> None:
    group = torch.zeros(4, dtype=torch.long)
    outlines = [Drawn(torch.zeros(2, 0))] * 2
    rollout = Rollout.of(
        [Drawn(torch.tensor([[2.0], [3.0]]))], Condition({"": torch.zeros(1)}), group, torch.ones(1), outlines, 1
    )
    assert len(rollout) == 4 and rollout.has(torch.arange(4)).tolist() == [False, False, True, True]
    points = Renoise(1)(rollout, ("",))
    assert points.here(torch.tensor([3, 0, 2, 1])).tolist() == [3, 2]
    assert points.take(torch.tensor([3, 2])).x0.flatten().tolist() == [3, 2]
    with pytest.raises(ValueError, match="these samples are in another process"):
        points.take(torch.tensor([1]))
