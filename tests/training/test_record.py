"""Every algorithm computes what it computed when tests/data/record.json was written, bit by bit.

Two iterations of each on a small random model, with one update and with two. The bits depend on the processor, which
chooses how sums are grouped, and on the libraries: they count where both are those of the record, with the kernels that
KERNELS asks for. Elsewhere only metrics are compared, within a tolerance.

The tolerance was measured: all of them with the kernels of AVX2, AVX-512 and SSE. AVX-512 differed by at most 1.3e-4 of
a number, SSE by 2.8e-3 (a gradient norm of SRPO), where they differed by more than 1e-7. V-GRPO's first loss is 0 but
for rounding: -4e-8 or 9e-8, by how attention groups its sums.

What the record holds is changed by a change of what is computed, and by that alone. To record anew:

    python tests/training/test_record.py --overwrite
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import flowward
from flowward.algorithms.presets import facts

RECORD = Path(__file__).parents[1] / "data" / "record.json"
KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "MKL_CBWR": "AVX2",  # matrix products
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "OMP_NUM_THREADS": "1",
}
BUDGET = shlex.split(
    "--iterations 2 --seed 0 --precision float32 --threads 1 --images-per-update 12 --group-size 4 "
    "--microbatch 12 --rollout-batch 12 --warmup 0 --evaluate-every 0 --evaluation.images 2 "
    "--evaluation.sampler.steps 1 --evaluation.rewards balance"
)
FEW = "--algorithm.rollout.steps 4"
WINDOW = "--algorithm.rollout.steps 6 --algorithm.rollout.window.every 1"
SIZES = {
    "awm": f"{FEW} --algorithm.points.times.last 4",
    "fdfo": f"{FEW} --group-size 2",
    "dgpo": f"{FEW} --algorithm.points.times.last 3",
    "dpo": f"{FEW} --algorithm.points.draws 4",
    "draft": "--algorithm.rollout.steps 6",
    "flow_grpo_fast": WINDOW,
    "mix_grpo": f"{WINDOW} --algorithm.rollout.window.size 2 --algorithm.rollout.window.high 5",
    "mix_grpo_flash": f"{WINDOW} --algorithm.rollout.window.size 2 --algorithm.rollout.window.high 5",
    "tempflow_grpo": f"{FEW} --algorithm.rollout.fanout 2 --group-size 12",
    "g2rpo": f"{FEW} --algorithm.rollout.fanout 3 --algorithm.rollout.high 2 --group-size 12",
    "flash_grpo": f"{FEW} --algorithm.rollout.window.high 3",
    "turningpoint_grpo": f"{FEW} --algorithm.rollout.window.size 2 --group-size 6",
    "branch_grpo": f"{FEW} --algorithm.rollout.splits 0 1 --microbatch 21",
}
REVERSE = (
    "ddpo", "flow_grpo", "flow_grpo_fast", "dance_grpo", "mix_grpo", "mix_grpo_flash", "tempflow_grpo", "g2rpo",
    "grpo_guard", "flow_dppo", "flash_grpo", "turningpoint_grpo", "branch_grpo",
)  # fmt: skip
MORE = {  # with two updates: terms that the vetted settings leave out
    "advantageflow": "--algorithm.calibration 0.2",
    "fdfo": "--algorithm.k-ref 0.01",
    "crd": "--algorithm.hold 0.1",
    "ram": "--algorithm.residual old",
    "rvm": "--algorithm.beta 0.1",
    "vgrpo": "--algorithm.beta 0.1 --algorithm.soft-clip 3",
    "draft": "--algorithm.rollout.kept 2",
    "refl": "--algorithm.ceiling 0.4",
    "adjoint_matching": "--algorithm.points.trained 2 --algorithm.weight even",
    **dict.fromkeys(REVERSE, "--algorithm.beta 0.04"),
}
RELATIVE, ABSOLUTE = 5e-3, 5e-7
LATER = (  # keys that metrics.jsonl did not have when the record was written
    "learning_rate", "clipped_steps", "network_evaluations", "reward_histogram", "best", "worst", "speed",
    "old_nats", "reference_nats",
)  # fmt: skip
ROUNDING = "first_ratio"  # metrics that tell of nothing else: they are compared to the bit or not at all
LEARNING = [name for name in flowward.ALGORITHMS if facts(name).family != "distillation"]  # from rewards, not from runs
CASES = tuple(f"{name} {updates}" for name in LEARNING for updates in (1, 2))
SHORT = ("advantageflow 1", "flow_grpo 2", "g2rpo 1")


def words(case: str, model: str) -> list[str]:
    """Of `flowward train`. The reward is of the images: `scenes` could praise nothing that an untrained model draws."""
    from tiny_runs import UNDIFFERENTIATED, fitting

    name, updates = case.split()
    model = fitting(model, flowward.ALGORITHMS[name]())
    reward = f"{__file__}:bright" if name in UNDIFFERENTIATED else "scenes-net"
    chosen = ["--algorithm", name, "--model", model, "--reward", reward]
    more = MORE.get(name, "") if updates == "2" else ""
    given = shlex.split(f"{SIZES.get(name, FEW)} {more}")
    return ["train", *chosen, *BUDGET, "--updates-per-iteration", updates, *given]


def bright(images: Any, prompts: Sequence[str], metadata: Any = None) -> Any:
    return images.mean((1, 2, 3))


def weights(run: Path) -> dict[str, str]:
    """A hash of each set of weights in its newest checkpoint: names, types, shapes and numbers, by order of names."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    with safe_open(max((run / "checkpoints").glob("*.safetensors")), "np") as opened:
        for key in sorted(key for key in opened.keys() if key.startswith("weights.")):  # noqa: SIM118 (no mapping)
            kept = found.setdefault(key.split(".")[1], hashlib.sha256())
            tensor = opened.get_tensor(key)
            kept.update(f"{key} {tensor.dtype} {tensor.shape}".encode())
            kept.update(tensor.tobytes())
    return {name: kept.hexdigest() for name, kept in found.items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of its iterations; of an evaluation the mean of its reward."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        for name in ("seconds", *LATER):
            line.pop(name, None)
        line["health"] = len(line["health"])  # how many rules trip; the words may change
        if "evaluation" in line:
            line["evaluation"] = line["evaluation"]["scores"]["balance"]["overall"]["mean"]
    return lines


def compute(cases: list[str]) -> dict[str, Any]:
    """In this process, whose kernels its environment has chosen: what each case comes to, and what that depends on."""
    import torch
    from tiny_scenes import saved

    from flowward.cli import main

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        saved(Path(folder, "model"))
        for case in cases:
            run = Path(folder, case)
            assert main([*words(case, f"{folder}/model"), "--output", str(run)]) == 0
            found[case] = {"metrics": metrics(run), "weights": weights(run)}
    libraries = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"processor": processor(), **libraries, "loops": torch.backends.cpu.get_cpu_capability(), "cases": found}


def processor() -> str:
    """Its maker, name and numbers, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return ", ".join(known.get(name, "") for name in ("vendor_id", "model name", "cpu family", "model", "stepping"))


def computed(cases: Sequence[str], kernels: Mapping[str, str] = KERNELS) -> dict[str, Any]:
    """The same in a process of its own, with the flowward that is imported here."""
    here = os.pathsep.join(map(str, (Path(flowward.__file__).parents[1], RECORD.parents[1])))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        environment = {**os.environ, **kernels, "PYTHONPATH": here}
        command = [sys.executable, __file__, "--into", str(out), *cases]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found


def compared(cases: Sequence[str]) -> list[str]:
    """What of these cases is not what the record holds, each in a sentence."""
    record, found = json.loads(RECORD.read_text("utf-8")), computed(cases)
    exact = all(found[name] == value for name, value in record.items() if name != "cases")
    return [
        f"{case}: {said}" for case in cases for said in differences(record["cases"][case], found["cases"][case], exact)
    ]


def differences(then: dict[str, Any], now: dict[str, Any], exact: bool) -> list[str]:
    """Between two results of a case; neither weights nor health are compared unless to the bit."""
    if len(now["metrics"]) != len(then["metrics"]):
        return [f"{len(now['metrics'])} lines of metrics were {len(then['metrics'])}"]
    found = [
        f"{name} of iteration {one['iteration']} is {other.get(name)}, was {one.get(name)}"
        for one, other in zip(then["metrics"], now["metrics"], strict=True)
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name) and (exact or far(name, one.get(name), other.get(name)))
    ]
    names = dict.fromkeys([*then["weights"], *now["weights"]])
    found += [f"no weights {name}" for name in names if name not in then["weights"] or name not in now["weights"]]
    if exact:
        found += [f"other weights {name}" for name in names if then["weights"].get(name) != now["weights"].get(name)]
    return found


def far(name: str, then: Any, now: Any) -> bool:
    """Whether a metric is there no more, or not yet, or further off than rounding takes it."""
    if name == "health" or name.startswith(ROUNDING):
        return False
    if then is None or now is None:
        return True
    return abs(now - then) > max(RELATIVE * max(abs(then), abs(now)), ABSOLUTE)


def test_elsewhere_a_metric_may_differ_by_rounding_alone() -> None:
    def differing(now: dict[str, Any], exact: bool) -> int:
        then = {"iteration": 1, "loss": 0.5, "first_ratio_max": 1e-8, "health": 0}
        return len(differences({"metrics": [then], "weights": {}}, {"metrics": [then | now], "weights": {}}, exact))

    for now, elsewhere in (
        ({"loss": 0.501}, 0),
        ({"first_ratio_max": 2e-8}, 0),
        ({"loss": 0.51}, 1),
        ({"new": 1.0}, 1),
    ):
        assert differing(now, exact=True) == 1 and differing(now, exact=False) == elsewhere


def test_the_record_is_of_every_algorithm() -> None:
    assert tuple(json.loads(RECORD.read_text("utf-8"))["cases"]) == CASES


@pytest.mark.short
def test_some_algorithms_compute_what_they_did() -> None:
    assert compared(SHORT) == []


@pytest.mark.slow
def test_every_algorithm_computes_what_it_did() -> None:
    assert compared(CASES) == []


if __name__ == "__main__":
    if sys.argv[1:2] == ["--into"]:
        Path(sys.argv[2]).write_text(json.dumps(compute(sys.argv[3:])), "utf-8")
    elif RECORD.exists() and sys.argv[1:] != ["--overwrite"]:
        sys.exit(f"{RECORD.name} is there already: --overwrite replaces it, where it was meant to change")
    else:
        RECORD.write_text(json.dumps(computed(CASES), indent=1) + "\n", "utf-8")
