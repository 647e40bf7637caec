"""What a user gets wrong ends in one sentence and exit code 2, and nothing that was computed is lost."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny_runs import equal, snapshot, trainer
from torch import Tensor

from flowward import checkpoint, models, report, rewards
from flowward.cli import main
from flowward.folder import RunFolder
from flowward.trainer import TrainingError

BUDGET = shlex.split(
    "--images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-3 --algorithm.rollout.steps 2 "
    "--evaluation.images 6 --evaluation.sampler.steps 1 --evaluation.rewards balance --checkpoint-every 9"
)
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs would land here, the shipped model is never trained, and no test waits for a report."""
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path("nowhere"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the program, which must refuse; returns its sentence."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 2
        said = capsys.readouterr().err
        assert said.startswith("flowward: ") and said.count("\n") == 1 and said.endswith("\n"), said
        return said.removeprefix("flowward: ").rstrip()

    return run


def started(tiny: str, folder: Path, *words: str) -> Path:
    """A run of one iteration."""
    how = [*BUDGET, "--model", tiny, "--reward", "balance", "--iterations", "1"]
    assert main(["train", *how, "--output", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder / "report.html")
        return started(tiny, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, elsewhere: None) -> Path:
    """A copy of it, here."""
    return Path(shutil.copytree(finished, "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("train --algorithm advantageflw", "unknown algorithm 'advantageflw'; did you mean 'advantageflow'?"),
        ("train --algorithm=nft", "unknown algorithm 'nft'; known: advantageflow"),
        ("algorithms advantage", "unknown algorithm 'advantage'; did you mean 'advantageflow'?"),
        ("train --model scnes", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("eval scnes", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("sample scnes 'a circle'", "unknown model 'scnes'; did you mean 'scenes'?"),
        ("train --reward scenes-sft", "unknown reward 'scenes-sft'; did you mean 'scenes-soft'?"),
        ("train --reward scenes=much", "weight of reward 'scenes' must be a number, not 'much'"),
        ("train --reward scenes=nan", "weight of reward 'scenes' must be a number, not 'nan'"),
        ("train --reward", "name at least one reward"),
        ("train --evaluation.rewards scene-strict", "unknown reward 'scene-strict'; did you mean 'scenes-strict'?"),
        ("train --prompts scene", "unknown prompt set 'scene'; did you mean 'scenes'?"),
        ("train --evaluation.prompts scenes-heldout", "did you mean 'scenes-held-out'?"),
        ("bench overhed", "unknown measure 'overhed'; did you mean 'overhead'?"),
        ("pretrain moon", "unknown world 'moon'; known: scenes"),
        ("train --group-size 1", "group_size is 1, but advantages compare images of one prompt"),
        ("train --images-per-update 7 --group-size 4", "7 images per update x 1 updates = 7 images an iteration"),
        ("train --seed -1", "must not be negative"),
        ("train --learning-rate nan", "learning_rate must be a positive number, not nan"),
        ("train --ema-decay 2", "a share in [0, 1) of itself, not 2.0"),
        ("train --algorithm.gamma 0.5", "no minimum: at A = -1 its curvature A + gamma + lam is -0.499. Raise gamma"),
        ("train --algorithm.gamma nan", "no minimum"),
        ("train --algorithm.credit.clip 0", "clip must be a positive number, not 0.0"),
        ("train --algorithm.points.times.low 2", "times need 0 <= low < high <= 1, not low = 2.0"),
        ("train --algorithm.rollout.steps 0", "a sampler needs 1 to 1000 steps, not 0"),
        ("train --algorithm.rollout.steps 99999999999999", "a sampler needs 1 to 1000 steps, not 99999999999999"),
        ("eval scenes --steps 1001", "a sampler needs 1 to 1000 steps, not 1001"),
        ("train --threads 0", "threads must be at least 1, not 0"),
        ("train --threads -1", "threads must be at least 1, not -1"),
        ("bench --threads 0", "threads must be at least 1, not 0"),
        ("bench overhead --repeats 0", "repeats must be at least 1, not 0"),
        ("pretrain scenes --output x --threads -1", "threads must be at least 1, not -1"),
        ("train --evaluation.images 0", "needs at least 1 image and batch, not 0 and 200"),
        ("train --evaluation.seed -5", "must not be negative, it is -5"),
        ("eval --seed -5", "must not be negative, it is -5"),
        ("sample scenes 'a circle' --seed -5", "must not be negative, it is -5"),
        ("train --algorithm advantageflow --resume x", "--algorithm, --config and --resume exclude each other"),
        ("train --config", "--config needs a value"),
        ("train --config missing.yaml", "cannot read missing.yaml"),
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
        ("train --iterations many", "--iterations"),
        ("train --iteration 3", "Unrecognized options: --iteration"),
        ("train --precision fp8", "invalid choice 'fp8'"),
        ("train --learning-rate", "--learning-rate"),
        ("eval scenes --weights new", "invalid choice 'new'"),
        ("report --port 1", "--port"),
    ],
)
def test_flags_that_do_not_exist(capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--debug", "--group-size", "1"], ["--debug", "trian"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and "ValueError" in said
        assert said.splitlines()[-1].startswith("flowward: ")


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
        with pytest.raises(TrainingError, match=r"out of memory with images of 32 x 32, .* lower --rollout-batch"):
            one.step()
    assert equal(before, snapshot(one.policy))


# Prompts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no prompt file at"),
        (b"", "holds no prompt"),
        (b"\n  \n\n", "holds no prompt"),
        ("a circle\na café".encode("latin-1"), "is not UTF-8 text (byte 14)"),
        (b"a circle\n\ntwo rings\n a circle \n", "holds 'a circle' twice, in lines 1 and 4"),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a green zebra", "the built-in model does not know the word 'zebra' (prompt 'a green zebra')"),
        ("a circle " * 5, "has 10 words; the built-in model reads 8"),
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


# Rewards


class Turning:
    """The mean brightness, until it has been called `good` times."""

    def __init__(self, then: Callable[[Tensor], Any], good: int):
        self.then, self.good = then, good

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Any:
        self.good -= 1
        score = images.mean((1, 2, 3))
        return score if self.good >= 0 else self.then(score)


def raises(score: Tensor) -> None:
    raise KeyError("model.bin\nis not there")


failures = pytest.mark.parametrize(
    ("then", "said"),
    [
        (raises, "raised KeyError: 'model.bin"),
        (lambda score: score * float("nan"), "returned nan for 8 of 8 images, the first with the prompt '"),
        (lambda score: score[:-1], "returned shape [7] for 8 images"),
        (lambda score: score.mean(), "returned shape [] for 8 images"),
        (lambda score: ["good"] * 8, "raised"),
    ],
    ids=["raises", "nan", "short", "scalar", "words"],
)


@failures
def test_a_reward_that_turns_bad(
    refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch, then: Callable[[Tensor], Any], said: str
) -> None:
    """The first iteration is kept, and the run goes on from there when the reward is well again."""
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(then, 1))
    how = [*BUDGET, "--model", tiny, "--iterations", "3", "--reward", "mine"]
    sentence = refused("train", *how, "--output", "run")
    assert said in sentence and sentence.startswith("reward '")
    folder = RunFolder.open(Path("run"))
    assert [line["iteration"] for line in folder.lines()] == [0, 1]
    assert [path.stem for path in folder.checkpoints()] == ["000001"]

    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(then, 9))
    assert main(["train", "--resume", "run"]) == 0
    assert [line["iteration"] for line in folder.lines()] == [0, 1, 2, 3]


def test_a_sum_names_the_reward_that_failed(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(raises, 0))
    sentence = refused("train", *BUDGET, "--model", tiny, "--output", "run", "--reward", "balance=2", "mine=1")
    assert sentence == "reward 'mine' raised KeyError: 'model.bin\\nis not there'"


def test_a_measurement_that_turns_bad(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(raises, 0))
    good = rewards.load(["balance"])
    first = iter([good])
    monkeypatch.setitem(rewards.REWARDS, "late", lambda: next(first, None) or Turning(raises, 0))
    how = [*BUDGET, "--model", tiny, "--reward", "balance", "--output", "run", "--evaluation.rewards", "mine"]
    assert "reward 'mine' raised" in refused("train", *how)  # before training: nothing has been computed
    assert [line["iteration"] for line in RunFolder.open(Path("run")).lines()] == [0]
    assert "already holds a run" in refused("train", *how)
    resumed = ["train", "--resume", "run", "--evaluation.rewards", "balance", "--iterations", "1"]
    assert main(resumed) == 0
    lines = RunFolder.open(Path("run")).lines()
    assert [line["iteration"] for line in lines] == [0, 1] and "evaluation" in lines[0]


# Checkpoints


@pytest.mark.parametrize("cut", [0, 4, 100, 0.5, -1])
def test_truncated_checkpoints(refused: Refused, run: Path, cut: float) -> None:
    (path,) = RunFolder.open(run).checkpoints()
    data = path.read_bytes()
    path.write_bytes(data[: cut if isinstance(cut, int) else int(cut * len(data))])
    before = contents(run)
    for words in (["train", "--resume", run], ["eval", run]):
        sentence = refused(*words)
        assert sentence.startswith(f"{path} is truncated or damaged and cannot be read")
    assert contents(run) == before


def test_files_that_are_no_checkpoints(refused: Refused, run: Path) -> None:
    (path,) = RunFolder.open(run).checkpoints()
    for metadata, said in (
        (None, "is a safetensors file, but not a flowward checkpoint"),
        ({"format": "pt"}, "is a safetensors file, but not a flowward checkpoint"),
        ({"flowward": "{"}, "is damaged"),
        ({"flowward": '{"tensor": "gone"}'}, "is damaged"),
        ({"flowward": '{"list": []}'}, "is damaged"),
        ({"flowward": '{"dict": []}'}, "is no checkpoint to go on from: it holds no identity, "),
    ):
        save_file({"a": torch.zeros(3)}, path, metadata)
        for words in (["train", "--resume", run], ["eval", run]):
            assert said in refused(*words)


@pytest.mark.parametrize("damage", ["cut", "optimiser"])
def test_an_older_checkpoint_is_named_where_the_newest_is_damaged(refused: Refused, run: Path, damage: str) -> None:
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    older, newest = RunFolder.open(run).checkpoints()
    if damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-100])
        why = "is truncated or damaged and cannot be read ("
    else:
        state = checkpoint.load(newest)
        del state["optimiser"]
        checkpoint.save(newest, state)
        assert main(["eval", str(run), "--images", "6", "--steps", "1"]) == 0  # which does not need it
        why = "is no checkpoint to go on from: it holds no optimiser; "
    said = refused("train", "--resume", run, "--iterations", "2")
    assert said.startswith(f"{newest} {why}")
    assert said.endswith("; remove it to go on from 000001.safetensors, which is whole")
    older.write_bytes(b"")
    assert "to go on from 0" not in refused("train", "--resume", run, "--iterations", "2")
    older.unlink()
    assert "to go on from 0" not in refused("train", "--resume", run, "--iterations", "2")


def test_going_on_from_the_older_checkpoint(refused: Refused, run: Path) -> None:
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    older, newest = RunFolder.open(run).checkpoints()
    newest.write_bytes(newest.read_bytes()[:-100])
    assert "remove it to go on from" in refused("train", "--resume", run)
    newest.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert [path.name for path in RunFolder.open(run).checkpoints()] == [older.name, newest.name]


def test_checkpoints_of_another_model(refused: Refused, tiny: str, run: Path) -> None:
    full, lora = run, started(tiny, Path("lora"), "--lora-rank", "2")
    before = contents(lora), contents(full)
    for run, rank in ((full, "2"), (lora, "4"), (lora, "None")):
        said = refused("train", "--resume", run, "--lora-rank", rank, "--iterations", "2")
        assert said == "this checkpoint belongs to another model: its weights differs"
    assert (contents(lora), contents(full)) == before
    other = models.load(tiny).weights.network("policy")
    with other as network, torch.no_grad():
        next(network.parameters()).add_(1)
        network.half().save_pretrained(Path(shutil.copytree(tiny, "other")) / "transformer")
    said = refused("train", "--resume", full, "--model", "other", "--iterations", "2")
    assert said == "this checkpoint belongs to another model: its base differs"


def test_a_run_without_a_checkpoint_cannot_be_measured(refused: Refused, run: Path) -> None:
    (run / "checkpoints/000001.safetensors").unlink()
    assert "run holds no checkpoint yet" in refused("eval", run)


@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_damaged_models(refused: Refused, tiny: str, file: str) -> None:
    folder = Path(shutil.copytree(tiny, "model"))
    data = (folder / file).read_bytes()
    for cut in (data[: len(data) // 2], b""):
        (folder / file).write_bytes(cut)
        assert refused("eval", folder).startswith("the model in model cannot be read: ")
    (folder / "text_encoder/config.json").write_text('{"words": []}')
    assert refused("eval", folder).startswith("the model in model cannot be read: ")


# Output


def test_a_folder_that_holds_something_is_left_alone(refused: Refused, tiny: str, run: Path) -> None:
    how = ["train", *BUDGET, "--model", tiny, "--reward", "balance"]
    Path("others").mkdir()
    Path("others/thesis.tex").write_text("a year of work")
    Path("file").write_text("a file")
    before = contents(Path())
    said = refused(*how, "--output", run)
    assert said == "run already holds a run; name another --output, or go on with --resume run"
    assert refused(*how, "--output", "others") == "others is not an empty folder; name another --output"
    assert "file is not an empty folder" in refused(*how, "--output", "file")
    assert refused(*how, "--output", "file/run").startswith("Not a directory")
    assert contents(Path()) == before


def test_an_empty_folder_will_do(tiny: str) -> None:
    Path("run").mkdir()
    started(tiny, Path("run"))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing more fails as on a full disk (Python ignores the signal that would come along)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(refused: Refused, run: Path) -> None:
    (path,) = RunFolder.open(run).checkpoints()
    before = path.read_bytes()
    with file_size_limit(len(before) // 2):
        said = refused("train", "--resume", run, "--iterations", "4", "--checkpoint-every", "1")
    assert said.startswith("cannot write run/checkpoints/000002.safetensors: ")
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["000001.safetensors"]
    assert path.read_bytes() == before
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    assert [line["iteration"] for line in RunFolder.open(run).lines()] == [0, 1, 2]


def test_a_full_disk_names_the_file_and_what_is_safe(run: Path) -> None:
    folder, before = RunFolder.open(run), contents(run)
    for write, name in (
        (lambda: folder.write_text("report.html", 9999 * "x"), "report.html"),
        (lambda: folder.append({"iteration": 2, "text": 9999 * "x"}), "metrics.jsonl"),
        (lambda: folder.save_sample(2, Image.effect_noise((99, 99), 50)), "samples/000002.png"),
    ):
        with file_size_limit(folder.metrics.stat().st_size), pytest.raises(OSError) as error:
            write()
        assert str(error.value) == f"cannot write run/{name}: File too large; the checkpoint 000001.safetensors is safe"
    assert contents(run) == before


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_either(*_: Any, **__: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("where", "fails"),
    [("os.replace", no_space), ("flowward.checkpoint.save_file", no_space_either), ("os.fsync", no_space)],
)
def test_no_space_left(
    refused: Refused, run: Path, monkeypatch: pytest.MonkeyPatch, where: str, fails: Callable[..., None]
) -> None:
    before = (run / "checkpoints/000001.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        said = refused("train", "--resume", run, "--iterations", "2")
    assert "No space left on device" in said
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["000001.safetensors"]
    assert (run / "checkpoints/000001.safetensors").read_bytes() == before
    assert len(RunFolder.open(run).lines()) >= 2
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0


def test_a_stop_that_could_not_be_saved_says_so(
    refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reward(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return images.mean((1, 2, 3))

    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: reward)
    monkeypatch.setattr(checkpoint, "save", no_space)
    assert main(["train", *BUDGET, "--model", tiny, "--reward", "mine", "--output", "run", "--iterations", "9"]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "flowward: No space left on device"
    assert "saved" not in said.out


# Config files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modell": "scenes"}, "config: unknown setting 'modell'; did you mean 'model'?"),
        ({3: 4}, "config: "),
        ({"run": {"iteration": 3}}, "config: unknown setting 'run.iteration'; did you mean 'run.iterations'?"),
        ({"algorithm": {"gama": 2}}, "config: unknown setting 'algorithm.gama'; did you mean 'algorithm.gamma'?"),
        ({"algorithm": {"name": "nft"}}, "unknown algorithm 'nft'"),
        ({"algorithm": "advantageflow"}, "config: algorithm must be a mapping"),
        ({"algorithm": {"gamma": 0.5}}, "config: algorithm: this loss has no minimum"),
        ({"run": {"iterations": "many"}}, "config: run.iterations: "),
        ({"run": {"group_size": 1}}, "config: run: group_size is 1"),
        ({"run": 3}, "config: run: "),
        ({"precision": "fp8"}, "config: precision: "),
        ({"reward": "scenes"}, "config: reward: "),
        ({"evaluation": {"sampler": {"step": 2}}}, "'evaluation.sampler.step'; did you mean"),
    ],
)
def test_config_files(refused: Refused, changes: dict[Any, Any], said: str) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(changes))
    assert said in refused("train", "--config", "config.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [scenes\nrun: }", "", "\x00", "just words"])
def test_files_that_are_no_config(refused: Refused, text: str) -> None:
    Path("config.yaml").write_text(text)
    assert "config.yaml" in refused("train", "--config", "config.yaml")


def test_a_run_of_an_algorithm_of_ones_own_goes_on_in_python(refused: Refused, tiny: str) -> None:
    RunFolder.create(Path("run"), {"model": tiny, "algorithm": "Mine()"})
    assert refused("train", "--resume", "run") == (
        "config: algorithm must be a mapping with a name and settings, not 'Mine()'; one of your own is for Python"
    )


def test_an_output_that_exists_is_not_written_over(refused: Refused, tiny: str) -> None:
    Path("x.png").write_text("a year of work")
    how = ["sample", tiny, "a circle", "--count", "1", "--steps", "1", "--output", "x.png"]
    assert refused(*how) == "x.png exists: name another --output, or say --overwrite"
    assert Path("x.png").read_text() == "a year of work"
    assert main([*how, "--overwrite"]) == 0
    assert Image.open("x.png").size > (1, 1)


def test_the_sentence_is_one_even_where_the_cause_speaks_in_many(refused: Refused) -> None:
    Path("config.yaml").write_text("model: [scenes\nrun: }")
    assert "line 2" in refused("train", "--config", "config.yaml")
