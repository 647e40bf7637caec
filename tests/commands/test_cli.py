"""The program, from the words on the command line to the files that it leaves."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from program import alone

from flowward import __version__, models
from flowward.cli import main
from flowward.commands import AGENT, COMMANDS, train
from flowward.commands import every as every_command
from flowward.process.plans import Branches, Chain
from flowward.process.rollout import Sampler
from flowward.rewards.images.scenes import Balance
from flowward.training import config
from flowward.training.folder import RunFolder

BUDGET = shlex.split(
    "--images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-3 --algorithm.rollout.steps 2 "
    "--evaluation.images 6 --evaluation.sampler.steps 2 --reward balance --threads 1"
)


@pytest.fixture(scope="module")
def run(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two iterations."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["--model", tiny, "--iterations", "2", "--precision", "float32", "--output", str(folder)]
    assert main(["train", *BUDGET, *words]) == 0
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().out


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder.open(folder).lines()
    for line in lines:
        del line["seconds"]
        line.pop("speed", None)
    return lines


# Help


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; from flowward.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for words in (["--help"], ["--version"], ["trian"], ["agent", "--help"], ["agent", "trian"]):
        out, seconds = alone(code, *words)
        assert seconds < 2
        assert out.splitlines()[-1] == "False"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-h"], ["help"], ["--help"]):
        out = said(capsys, *words)
        assert all(f"\n  {name}" in out and what in out for name, what in COMMANDS.items())
    assert said(capsys, "--version") == f"flowward {__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["--output FOLDER", "no GPU"]),
        ("train", ["--iterations", "--model", "--resume RUN", "--config FILE", "--processes N"]),
        (
            "agent train",
            ["AgentFlow", "--tools TOOL", "--verifier rule|world|same|URL#MODEL", "--resume RUN", "world, qwen2.5-7b"],
        ),
        ("agent solve", ["QUESTION", "--model", "--sampled", "--json"]),
        ("agent eval", ["MODEL [MODEL ...]", "--questions SET|FILE", "--episodes", "--json"]),
        ("agent export", ["RUN", "--weights policy|ema", "--output", "peft"]),
        ("agent prompts", ["[MODULE ...]", "planner, executor, verifier", "--output"]),
        ("agent pretrain", ["--output", "--steps", "about a minute"]),
        ("sample", ["MODEL PROMPT [PROMPT ...]", "--count", "--seed", "--solver", "--guidance", "--overwrite"]),
        ("eval", ["[MODEL ...]", "--suite", "--images", "--json", "--steps"]),
        ("front", ["MODEL", "--soup", "--points", "--html", "hypervolume"]),
        ("report", ["RUN [RUN ...]", "run folders"]),
        ("watch", ["--port", "--token"]),
        ("study", ["FILE", "--output", "--workers", "equal budgets"]),
        ("compare", ["RUN", "--output"]),
        ("export", ["RUN", "--merged", "--output"]),
        ("advise", ["--model", "--reward", "--gpu", "--hours", "Nothing is downloaded"]),
        ("algorithms", ["[NAME]", "when to use each"]),
        ("list", ["[LIST]", "rewards, prompts, suites, recipes, models or presets"]),
        ("memory", ["no weights", "--model", "--memory", "--gradient-checkpointing"]),
        ("verify", ["--output", "--algorithm", "--model"]),
        ("bench", ["the speed of flowward itself", "--repeats", "overhead"]),
        ("serve-reward", ["REWARD", "--port", "--token", "--max-batch"]),
        ("pretrain", ["--output", "--steps"]),
    ],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str, words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"usage: flowward {command}" in out
    assert all(word in out for word in words)


def test_public_names_can_be_completed_before_their_first_use() -> None:
    program = "import flowward, sys; print(set(flowward.__all__) <= set(dir(flowward)), 'torch' in sys.modules)"
    assert alone(program)[0].split() == ["True", "False"]


def test_every_command_is_tested() -> None:
    (mark,) = test_every_command_has_help.pytestmark  # type: ignore[attr-defined]
    assert [row[0] for row in mark.args[1]] == list(every_command())


def test_the_page_of_agent_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["agent"], ["agent", "-h"], ["agent", "help"], ["agent", "--help"], ["agent", "--help-all"]):
        out = said(capsys, *words)
        assert all(f"\n  {name}" in out and what in out for name, what in AGENT.items())


# Training


def test_what_a_run_leaves(tiny: str, run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    files = {"config.yaml", "inputs.json", "metrics.jsonl", "report.html", "summary.json"}
    assert names == {*files, "samples", "checkpoints"}
    assert [path.name for path in RunFolder.open(run).checkpoints()] == ["000002.safetensors"]
    names = {f"00000{k}{end}" for k in (0, 2) for end in (".json", ".png", "-scores.json")}
    assert {path.name for path in (run / "samples").iterdir()} == {*names, "000002-best-worst.png"}
    first, *others = RunFolder.open(run).lines()
    assert first["iteration"] == 0 and first["evaluation"]["images"] == 6
    for index, line in enumerate(others, 1):
        assert (line["iteration"], line["images"]) == (index, 8 * index)
        assert set(line["seconds"]) >= {"rollout", "reward", "train", "total"}
        figures = ("reward", "reward_std", "zero_variance", "gradient_norm", "loss", "distance", "curvature_min")
        assert all(isinstance(line[name], float) for name in figures)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] and summary["iterations"] == 2
    assert shlex.split(summary["command"])[:4] == ["flowward", "train", *BUDGET[:2]]
    assert shlex.split(summary["command"])[-1] == str(run)


@pytest.mark.processor
@pytest.mark.parametrize("kind", [[], ["--lora-rank", "2"]], ids=["full", "lora"])
def test_a_run_can_be_repeated_from_its_config(
    capsys: pytest.CaptureFixture[str], tiny: str, run: Path, tmp_path: Path, kind: list[str]
) -> None:
    if kind:
        run = tmp_path / "first"
        said(capsys, "train", *BUDGET, *kind, "--model", tiny, "--iterations", "1", "--output", run)
    again = tmp_path / "again"
    said(capsys, "train", "--config", run / "config.yaml", "--output", again)
    assert metrics(again) == metrics(run)
    one, other = (RunFolder.open(folder).config() for folder in (run, again))
    assert other.pop("run").pop("output") == str(again) and one.pop("run").pop("output") == str(run)
    assert one == other


def test_flags_win_over_the_config(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    said(capsys, "train", "--config", run / "config.yaml", "--output", tmp_path / "other", "--seed", "1")
    assert metrics(tmp_path / "other")[1]["reward"] != metrics(run)[1]["reward"]
    assert RunFolder.open(tmp_path / "other").config()["run"]["seed"] == 1


@pytest.mark.parametrize(
    ("words", "kind"),
    [("--algorithm flow_grpo_fast", Chain), ("--algorithm flow_grpo_fast --preset branching", Branches)],
)
def test_the_flags_of_a_rollout_are_those_of_its_kind(words: str, kind: type) -> None:
    """As for every other algorithm, without another word before them."""
    settings, _ = train.chosen([*shlex.split(words), "--algorithm.rollout.steps", "8"])
    assert isinstance(settings.algorithm.rollout, kind)
    assert settings.algorithm.rollout.steps == 8


@pytest.mark.processor
def test_what_training_says(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = said(capsys, "train", *BUDGET, "--model", tiny, "--iterations", "1").splitlines()
    (folder,) = Path("runs").iterdir()  # named after the model and the time
    assert out[0] == f"run folder: {folder}"
    assert "4476 prompts; measuring on scenes-held-out first" in out[1]
    assert out[2].startswith("iteration 0: balance ")
    assert any(line.startswith("[1/1] reward 0.") and "ETA 0.0 min" in line for line in out)
    assert out[-1] == f"report: {folder}/report.html"


@pytest.mark.processor
def test_no_iterations_measure_the_base_model(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    said(capsys, "train", *BUDGET, "--model", tiny, "--iterations", "0", "--output", tmp_path / "run")
    assert [line["iteration"] for line in metrics(tmp_path / "run")] == [0]


# The other commands


def test_eval_writes_down_how_it_measured(
    capsys: pytest.CaptureFixture[str], tiny: str, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "numbers.json"
    how = ["--images", "6", "--steps", "2", "--seed", "1234", "--batch", "4"]
    out = said(capsys, "eval", tiny, run, *how, "--json", file)
    found = json.loads(file.read_text())["models"]
    assert list(found) == [tiny, f"{run} (policy, iteration 2)"]
    measured = [result.pop("scores") for result in found.values()]
    for result, scores in zip(found.values(), measured, strict=True):
        assert (
            result.items()
            >= {
                "weights": "policy",
                "precision": "float32",  # the run's, whatever this processor prefers
                "solver": "euler",
                "steps": 2,
                "times": [1.0, 0.5, 0.0],
                "grid": "model",
                "guidance": None,
                "seed": 1234,
                "prompts": "scenes-held-out",
                "images": 6,
            }.items()
        )
        assert set(scores) == {"scenes-strict", "balance"}
        overall = scores["balance"]["overall"]
        assert overall["n"] == 6 and overall["low"] < overall["mean"] < overall["high"]
        assert len(scores["balance"]["categories"]) == 6
        assert f"{overall['mean']:.3f}" in out
    assert "evaluation settings: weights policy, precision float32, solver euler, steps 2" in " ".join(out.split())
    base, trained = (scores["balance"]["overall"]["mean"] for scores in measured)
    lines = metrics(run)
    for mean, line in ((base, lines[0]), (trained, lines[-1])):  # the run measured itself in the same way
        assert mean == pytest.approx(line["evaluation"]["scores"]["balance"]["overall"]["mean"], abs=1e-3)

    said(capsys, "eval", run, *how, "--weights", "ema", "--json", file, "--overwrite")
    ((name, average),) = json.loads(file.read_text())["models"].items()
    assert name == f"{run} (ema, iteration 2)" and average["weights"] == "ema"
    assert average["scores"]["balance"]["overall"]["mean"] != trained


@pytest.mark.processor
def test_sample_draws_the_same_picture_twice(
    capsys: pytest.CaptureFixture[str], tiny: str, run: Path, tmp_path: Path
) -> None:
    def draw(name: str, *words: str | Path) -> bytes:
        file = tmp_path / name
        out = said(capsys, "sample", *words, "a red circle", "two rings", "--count", "2", "--steps", "2",
                   "--output", file, "--overwrite")  # fmt: skip
        assert out.startswith("4 images of ") and out.strip().endswith(str(file))
        assert Image.open(file).size > (64, 64)
        return file.read_bytes()

    assert draw("a.png", tiny) == draw("b/c.png", tiny)
    assert draw("a.png", tiny, "--seed", "1") != draw("b.png", tiny)
    assert draw("a.png", run) != draw("b.png", run, "--weights", "ema")
    others = [["--solver", "sa"], ["--guidance", "3"], ["--grid", "linear", "--shift", "2"], ["--grid", "sd3"]]
    assert len({draw("a.png", tiny, *how) for how in [[], *others]}) == 5


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_another_guidance_than_in_training_is_said(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, command: str
) -> None:
    words: dict[str, list[str | Path]] = {
        "sample": [run, "a circle", "--count", "1", "--output", tmp_path / "a.png"],
        "eval": [run, "--images", "6"],
    }
    assert main([command, *map(str, words[command]), "--steps", "1", "--guidance", "2"]) == 0
    assert "with guidance 1, and is sampled with 2 now" in capsys.readouterr().err
    assert main([command, *map(str, words[command]), "--steps", "1", *["--overwrite"] * (command == "sample")]) == 0
    assert "guidance" not in capsys.readouterr().err


def test_report_can_be_written_again(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    (run / "report.html").unlink()
    assert said(capsys, "report", run) == f"{run}/report.html\n"
    assert "advantageflow" in (run / "report.html").read_text("utf-8")


@pytest.mark.processor
def test_bench_counts_what_an_iteration_needs(
    capsys: pytest.CaptureFixture[str], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    monkeypatch.setattr("flowward.rewards.load", lambda spec: Balance())  # an untrained model solves no prompt
    vetted = config.settings_type("advantageflow")()
    images = 2 * vetted.run.group_size
    points = images * vetted.algorithm.points.per_image
    out = said(capsys, "bench", "--repeats", "1", "--images-per-update", str(images), "--threads", "1")
    figures = dict(line.split()[:2] for line in out.splitlines())
    assert int(figures["decode"]) == images
    assert int(figures["forward+backward"]) == points
    assert int(figures["forward"]) == images * vetted.algorithm.rollout.steps + 2 * points  # rollout, old, reference
    assert float(figures["overhead"]) > 0.5


@pytest.mark.processor
def test_bench_where_the_system_tells_no_peak(
    capsys: pytest.CaptureFixture[str], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which has no `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    monkeypatch.setattr("flowward.rewards.load", lambda spec: Balance())
    out = said(capsys, "bench", "--repeats", "1", "--images-per-update", "24", "--threads", "1")
    assert "overhead" in out and "peak memory" not in out


# make demo


def test_make_demo_is_flowward_demo(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):  # the stamp last: nothing is to be installed
        (tmp_path / name).touch()
    program = tmp_path / ".venv" / "bin" / "flowward"
    program.write_text('#!/bin/sh\necho "called: $*"\n')
    program.chmod(0o755)
    words = shlex.split("demo OUTPUT=runs/mine DEMO_ARGS='--iterations 3' -f")
    words = ["make", "--no-print-directory", *words, str(Path(__file__).parents[2] / "Makefile")]
    out = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out == "called: demo --output runs/mine --iterations 3\n"


# The configuration


def test_the_config_survives_yaml(tmp_path: Path) -> None:
    default = config.settings_type("advantageflow")()
    assert config.to_dict(config.from_dict(config.to_dict(default))) == config.to_dict(default)
    changed = {
        "model": "elsewhere",
        "reward": ["scenes-soft=2", "balance"],
        "lora_rank": 8,
        "precision": "float32",
        "run": {"iterations": 7, "betas": [0.5, 0.6], "output": "x/y", "ema_decay": 0.5},
        "evaluation": {"weights": "ema", "sampler": {"steps": 3, "grid": "sd3"}},
        "algorithm": {"name": "advantageflow", "gamma": 1.5, "points": {"per_image": 3, "times": {"low": 0.1}}},
    }
    settings = config.from_dict(changed)
    written = config.to_dict(settings)
    assert config.to_dict(config.from_dict(yaml.safe_load(yaml.safe_dump(written)))) == written
    assert settings.run.output == Path("x/y") and settings.run.betas == (0.5, 0.6)
    assert settings.evaluation.sampler == Sampler(3, 1.0, "sd3")
    assert settings.algorithm.gamma == 1.5 and settings.algorithm.points.times.low == 0.1
    assert written["algorithm"]["name"] == "advantageflow"
    assert written["run"]["seed"] == 0  # defaults are written down, too


def test_an_empty_config_is_the_default() -> None:
    assert config.to_dict(config.from_dict({})) == config.to_dict(config.settings_type("advantageflow")())


def test_a_run_folder_is_a_model(tiny: str, run: Path) -> None:
    """The name of a run stands for its newest weights, wherever a model is asked for."""
    from flowward.export.trained import load as policy_of

    trained, base = policy_of(str(run), "policy"), models.load(tiny, precision="float32")
    a, b = trained.weights.tensors("policy"), base.weights.tensors("policy")
    assert list(a) == list(b) and any((a[key] != b[key]).any() for key in a)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As `flowward algorithms | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "flowward", "algorithms"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (found.returncode, found.stderr) == (141, "")
