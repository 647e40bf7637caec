"""What a user gets wrong ends in one sentence and exit code 2."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from program import BUDGET, Refused
from tiny_runs import equal, snapshot, trainer

from flowward import models
from flowward.cli import main
from flowward.system.memory import OutOfMemory
from flowward.training import config
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


# Words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("agent trian", "unknown command of flowward agent 'trian'; did you mean 'train'?"),
        ("agent train --preset wrld", "unknown preset of agentflow 'wrld'; did you mean 'world'?"),
        ("agent train --group-size 1", "group_size is 1, but advantages compare episodes of one question"),
        ("agent train --temperature nan", "temperature must be a positive number, not nan"),
        ("agent train --max-turns 0", "max_turns must be between 1 and 1,000, not 0"),
        ("agent train --algorithm.low 2", "low must lie in (0, 1], not 2"),
        ("agent train --evaluation.episodes 0", "episodes must be between 1 and 1,000,000, not 0"),
        ("agent eval world --threads 0", "threads must be between 1 and 64, not 0"),
        ("train --algorithm advantageflw", "unknown algorithm 'advantageflw'; did you mean 'advantageflow'?"),
        ("train --algorithm=nft", "unknown algorithm 'nft'; did you mean 'diffusion_nft'?"),
        ("train --algoritm awm", "unknown option '--algoritm'; did you mean '--algorithm'?"),
        ("train --resme=x", "unknown option '--resme'; did you mean '--resume'?"),
        ("eval scenes --siute ocr", "unknown option '--siute'; did you mean '--suite'?"),
        ("bench --algoritm awm", "unknown option '--algoritm'; did you mean '--algorithm'?"),
        ("algorithms advantage", "unknown algorithm 'advantage'; did you mean 'advantageflow'?"),
        ("train --model scnes", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("eval scnes", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("sample scnes 'a circle'", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("train --reward scenes-sft", "unknown reward 'scenes-sft'; did you mean 'scenes-soft'?"),
        ("train --reward mine.py", "give the function or class in mine.py as well; write mine.py:NAME"),
        ("train --reward scenes=much", "weight of reward 'scenes' must be a number, not 'much'"),
        ("train --reward scenes=nan", "weight of reward 'scenes' must be a number, not 'nan'"),
        ("train --reward", "name at least one reward"),
        ("train --evaluation.rewards scene-strict", "unknown reward 'scene-strict'; did you mean 'scenes-strict'?"),
        ("train --prompts scene", "unknown prompt set 'scene'; did you mean 'scenes'?"),
        ("train --evaluation.prompts scenes-heldout", "did you mean 'scenes-held-out'?"),
        ("train --prompt-column x", "the prompt set 'scenes' is built in and has no column 'x': leave it out"),
        ("train --evaluation.prompt-column x", "'scenes-held-out' is built in and has no column 'x'"),
        ("eval scenes --prompt-column x", "'scenes-held-out' is built in and has no column 'x'"),
        ("bench overhed", "unknown measure 'overhed'; did you mean 'overhead'?"),
        ("pretrain moon", "unknown world 'moon'; known: scenes"),
        ("train --group-size 1", "group_size is 1, but advantages compare images of one prompt"),
        (
            "train --images-per-update 7 --group-size 4",
            "7 images per iteration cannot be split into groups of 4; try --group-size 7",
        ),
        ("train --seed -1", "must not be negative"),
        ("train --learning-rate nan", "learning_rate must be a positive number, not nan"),
        ("train --ema-decay 2", "the EMA decay must lie in [0, 1), not 2.0"),
        ("train --algorithm.gamma 0.5", "no minimum: at A = -1 its curvature A + gamma + lam is -0.499; raise gamma"),
        ("train --algorithm.gamma nan", "gamma must be a finite number, not nan"),
        ("train --algorithm.credit.clip 0", "clip must be a positive number, not 0.0"),
        ("train --algorithm.points.times.low 2", "times need 0 <= low < high <= 1, not low = 2.0"),
        ("train --algorithm.rollout.steps 0", "a sampler needs 1 to 1000 steps, not 0"),
        ("train --algorithm.rollout.steps 99999999999999", "a sampler needs 1 to 1000 steps, not 99999999999999"),
        ("eval scenes --steps 1001", "a sampler needs 1 to 1000 steps, not 1001"),
        ("train --threads 0", "threads must be between 1 and 64, not 0"),
        ("train --threads -1", "threads must be between 1 and 64, not -1"),
        ("bench --threads 0", "threads must be between 1 and 64, not 0"),
        ("bench overhead --repeats 0", "repeats must be between 1 and 1,000, not 0"),
        ("pretrain scenes --output x --threads -1", "threads must be between 1 and 64, not -1"),
        ("train --evaluation.images 0", "needs at least 1 image, not 0"),
        ("train --evaluation.seed -5", "must be 0 or more, not -5"),
        ("eval --seed -5", "must be 0 or more, not -5"),
        ("sample scenes 'a circle' --seed -5", "must not be negative, it is -5"),
        ("train --algorithm advantageflow --resume x", "--algorithm, --config and --resume exclude each other"),
        ("train --config", "--config needs a value"),
        ("train --config missing.yaml", "there is no config file missing.yaml"),
        ("train --resume missing", "missing is not a run folder"),
        ("report", "name at least one run folder"),
        ("eval", "name at least one model or run"),
        ("sample scenes", "name at least one prompt"),
        ("sample scenes 'a circle' --count 0", "draw at least one image"),
        ("sample scenes 'a circle' --steps 0", "a sampler needs 1 to 1000 steps, not 0"),
        ("sample scenes 'a circle' --output x.txt", "give --output a name that ends in .png, not x.txt"),
        ("sample scenes 'a circle' --output x", "give --output a name that ends in .png, not x"),
    ],
)
def test_words_that_mean_nothing(refused: Refused, words: str, said: str) -> None:
    assert said in refused(*shlex.split(words))
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --iterations many", "--iterations takes a whole number, not 'many'"),
        ("train --iteration 3", "unknown option '--iteration'; did you mean '--iterations'?"),
        (
            "train --algorithm flowawr --algorithm.gamma auto",
            "flowawr has no setting gamma; advantageflow and meanflow_advantage have one",
        ),
        ("train --algorithm.old.keep 3", "unknown option '--algorithm.old.keep'"),
        ("train --algorithm.gama 3", "unknown option '--algorithm.gama'; did you mean '--algorithm.gamma'?"),
        ("train --algorithm advantageflow --algorithm.lam x", "--algorithm.lam takes a number, not 'x'"),
        ("train --precision fp8", "--precision takes auto|bf16|float32, not 'fp8'"),
        ("train --learning-rate", "--learning-rate needs a value: NUMBER"),
        ("train --size 512", "--size takes HEIGHT WIDTH, not '512'"),
        ("train --zzz", "unknown option '--zzz'; flowward train --help-all lists the options"),
        ("memory --gradient-chekpointing", "did you mean '--gradient-checkpointing'?"),
        ("eval scenes --weights new", "--weights takes policy|ema, not 'new'"),
        ("eval scenes --no-vae-tilling", "did you mean '--no-vae-tiling'?"),
        ("sample", "MODEL is missing: `scenes`, a run folder"),
        ("pretrain scenes", "--output PATH is missing: folder for the"),
        ("report --port 1", "unknown option '--port'"),
        ("algorithms awm crd", "unexpected word 'crd'"),
        ("list reward", "unknown list 'reward'; did you mean 'rewards'?"),
        ("verify --fulll", "unknown option '--fulll'; did you mean '--full'?"),
        ("agent train --itertions 3", "unknown option '--itertions'; did you mean '--iterations'?"),
        ("agent solve x --mdoel y", "unknown option '--mdoel'; did you mean '--model'?"),
        ("agent train --planner robot", "--planner takes chat|world, not 'robot'"),
        ("agent solve", "QUESTION is missing: the question"),
        ("agent eval --zzz", "unknown option '--zzz'; flowward agent eval --help-all lists the options"),
        ("agent prompts --output", "--output needs a value: PATH"),
        ("serve-reward scenes --prot 1", "unknown option '--prot'; did you mean '--port'?"),
    ],
)
def test_options_that_cannot_be(refused: Refused, words: str, said: str) -> None:
    assert said in refused(*shlex.split(words))


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--debug", "--group-size", "1"], ["--debug", "trian"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and "ValueError" in said
        assert said.splitlines()[-1].startswith("flowward: ")


def test_a_run_is_no_model_to_train(refused: Refused) -> None:
    RunFolder.create(Path("first"), {"model": "scenes"})
    assert "continue its training with --resume first" in refused("train", "--model", "first")


def test_bugs_keep_their_traceback(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("expected scalar type Half")

    monkeypatch.setattr(models, "load", broken)
    with pytest.raises(RuntimeError, match="Half"):
        main(["eval", tiny])


def test_an_interrupt_before_training_is_no_traceback(
    interruptible: None, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(["eval", tiny]) == 130
    assert capsys.readouterr().err == "flowward: interrupted\n"


def test_too_little_memory_says_what_would_help(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tiny)
    before = snapshot(one.policy)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(one.algorithm.__class__, "loss", full)
        with pytest.raises(OutOfMemory, match=r"out of memory with images of 32 x 32, .* lower --rollout-batch"):
            one.step()
    assert equal(before, snapshot(one.policy))


# Prompts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no prompt file at"),
        (b"", "contains no prompt"),
        (b"\n  \n\n", "contains no prompt"),
        ("a circle\na café".encode("latin-1"), "is not UTF-8 text (byte 14)"),
        (b"a circle\n\ntwo rings\n a circle \n", "contains 'a circle' twice, in lines 1 and 4"),
    ],
)
def test_prompt_files(refused: Refused, tiny: str, tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    sentence = refused("train", "--model", tiny, "--prompts", file)
    assert said in sentence and str(file) in sentence
    assert said in refused("eval", tiny, "--prompts", file)
    assert not list(Path().iterdir())


@pytest.mark.processor
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a green zebra", "the built-in model does not know the word 'zebra' (prompt 'a green zebra')"),
        ("a circle " * 5, "has 10 words; the built-in model reads at most 8"),
        ("circle a", "'circle a' is not a prompt of the scenes world; the nearest one is"),
    ],
)
def test_prompts_that_the_model_or_the_reward_cannot_read(refused: Refused, tiny: str, text: str, said: str) -> None:
    Path("prompts.txt").write_text(text)
    how = [*BUDGET, "--model", tiny, "--prompts", "prompts.txt"]
    assert said in refused("train", *how, "--output", "run", "--reward", "scenes-soft")
    assert not Path("run").exists()  # found before the run begins
    if "nearest" not in said:
        assert said in refused("sample", tiny, text)


# Config files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modell": "scenes"}, "config: unknown setting 'modell'; did you mean 'model'?"),
        ({3: 4}, "config: "),
        ({"run": {"iteration": 3}}, "config: unknown setting 'run.iteration'; did you mean 'run.iterations'?"),
        ({"algorithm": {"gama": 2}}, "config: unknown setting 'algorithm.gama'; did you mean 'algorithm.gamma'?"),
        ({"algorithm": {"name": "nft"}}, "unknown algorithm 'nft'"),
        ({"algorithm": "advantage"}, "config: algorithm must be a mapping"),
        ({"algorithm": {"gamma": 0.5}}, "config: algorithm: this loss has no minimum"),
        ({"run": {"iterations": "many"}}, "config: run.iterations: must be a whole number, not 'many'"),
        ({"learning_rate": 0.1}, "config: 'learning_rate' is in the wrong place; it belongs to run.learning_rate"),
        ({"rollout": {"steps": 4}}, "it belongs to algorithm.rollout"),
        ({"run": {"guidance": 4}}, "belongs to evaluation.sampler.guidance or algorithm.guidance or algorithm.rollout"),
        ({"loading": {"size": 32}}, "config: loading.size: must be a list, such as [1, 2], not 32"),
        ({"run": {"group_size": 1}}, "config: run: group_size is 1"),
        ({"run": 3}, "config: run: "),
        ({"precision": "fp8"}, "config: precision: "),
        ({"reward": 3}, "config: reward: must be a list"),
        ({"evaluation": "scenes"}, "config: evaluation: must be a mapping with settings, not 'scenes'"),
        ({"evaluation": {"sampler": {"step": 2}}}, "'evaluation.sampler.step'; did you mean"),
    ],
)
def test_config_files(refused: Refused, changes: dict[Any, Any], said: str) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(changes))
    assert said in refused("train", "--config", "config.yaml")


@pytest.mark.parametrize(
    ("change", "means"),
    [
        ({"reward": "scenes-soft"}, {"reward": ("scenes-soft",)}),
        ({"reward": {"scenes": 2, "balance": None}}, {"reward": ("scenes=2", "balance")}),
        ({"reward_options": {"judge": {"k": 4, "x": True}}}, {"reward_options": ("judge.k=4", "judge.x=true")}),
        ({"prompts": "~/mine.txt"}, {"prompts": "/home/me/mine.txt"}),
        ({"reward": ["~/r.py:f=2"]}, {"reward": ("/home/me/r.py:f=2",)}),
        ({"reward_options": ["judge.template=~/t.yaml"]}, {"reward_options": ("judge.template=/home/me/t.yaml",)}),
    ],
)  # fmt: skip
def test_what_has_one_meaning_is_read(
    change: dict[str, Any], means: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = config.from_dict(change)
    assert {name: getattr(settings, name) for name in means} == means


def test_an_algorithm_may_be_named_alone() -> None:
    assert (
        config.from_dict({"algorithm": "awm"}).algorithm == config.from_dict({"algorithm": {"name": "awm"}}).algorithm
    )


def test_a_word_may_begin_at_home(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shells leave ~ alone after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"there is no config file {tmp_path}/nothing.yaml" in refused("train", "--config=~/nothing.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [scenes\nrun: }", "", "\x00", "just words"])
def test_files_that_are_no_config(refused: Refused, text: str) -> None:
    Path("config.yaml").write_text(text)
    assert "config.yaml" in refused("train", "--config", "config.yaml")


def test_a_run_of_an_algorithm_of_ones_own_goes_on_in_python(refused: Refused, tiny: str) -> None:
    RunFolder.create(Path("run"), {"model": tiny, "algorithm": "Mine()"})
    assert refused("train", "--resume", "run") == (
        "config: algorithm must be a mapping with a name and settings, not 'Mine()'; start a run with your own "
        "algorithm from Python"
    )


def test_the_sentence_is_one_even_where_the_cause_speaks_in_many(refused: Refused) -> None:
    Path("config.yaml").write_text("model: [scenes\nrun: }")
    assert "line 2" in refused("train", "--config", "config.yaml")
