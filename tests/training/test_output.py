"""What is there already is not written over, and a full disk costs nothing that was saved."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from program import BUDGET, Refused, contents, started
from safetensors import SafetensorError
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.system import checkpoint
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.processor
def test_a_folder_that_holds_something_is_left_alone(refused: Refused, tiny: str, run: Path) -> None:
    how = ["train", *BUDGET, "--model", tiny, "--reward", "balance"]
    Path("others").mkdir()
    Path("others/thesis.tex").write_text("a year of work")
    Path("file").write_text("a file")
    before = contents(Path())
    said = refused(*how, "--output", run)
    assert said == "run already contains a run: use another --output, or continue with --resume run"
    assert refused(*how, "--output", "others") == "others is not an empty folder: use another --output"
    assert "file is not an empty folder" in refused(*how, "--output", "file")
    assert refused(*how, "--output", "file/run").startswith("Not a directory")
    assert contents(Path()) == before


@pytest.mark.processor
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
        assert (
            str(error.value) == f"cannot write run/{name}: File too large; the checkpoint 000001.safetensors is intact"
        )
    assert contents(run) == before


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_either(*_: Any, **__: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("where", "fails"),
    [("os.replace", no_space), ("flowward.system.checkpoint.save_file", no_space_either), ("os.fsync", no_space)],
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


@pytest.mark.processor
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


@pytest.mark.processor
def test_an_output_that_exists_is_not_written_over(refused: Refused, tiny: str) -> None:
    Path("x.png").write_text("a year of work")
    how = ["sample", tiny, "a circle", "--count", "1", "--steps", "1", "--output", "x.png"]
    assert refused(*how) == "x.png exists: name another --output, or say --overwrite"
    assert Path("x.png").read_text() == "a year of work"
    assert main([*how, "--overwrite"]) == 0
    assert Image.open("x.png").size > (1, 1)
