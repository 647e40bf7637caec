"""A model of random weights, small enough that a whole run takes a second; and the program, in a folder of its own."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import parsers
import pytest
from processors import MACHINE, UNASKED, answering


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The processor answers tests with the mark; for the others it is not there to be asked."""
    with answering(MACHINE if item.get_closest_marker("processor") else UNASKED):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """Nor for what several tests share: which of them comes first must not matter."""
    with nullcontext() if fixturedef.scope == "function" else answering(UNASKED):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where slow tests run, their short forms do not: they are a part of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    short = [item for item in items if item.get_closest_marker("short") and item.path in slow]
    if short:
        items[:] = [item for item in items if item not in short]
        config.hook.pytest_deselected(items=short)


@pytest.fixture(scope="session", autouse=True)
def options_are_read_once() -> Iterator[None]:
    with parsers.kept():
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, even where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline, as diffusers writes it."""
    from tiny_pipelines import tiny

    folder: Path = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny("StableDiffusion3Pipeline").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model in the shipped model's layout; see `tiny_scenes.saved`."""
    from tiny_scenes import saved  # here, because tests that need no model should not wait for it

    folder: Path = tmp_path_factory.mktemp("tiny")
    saved(folder)
    return str(folder)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs would land here, the shipped model is never trained, and no test waits for a report."""
    from flowward.pages import report

    (tmp_path / "here").mkdir()
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path("nowhere"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program, which must refuse; returns its sentence."""
    from flowward.cli import main

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 2
        said = capsys.readouterr().err
        assert said.startswith("flowward: ") and said.count("\n") == 1 and said.endswith("\n"), said
        return said.removeprefix("flowward: ").rstrip()

    return run


@pytest.fixture(scope="session")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration, to be copied."""
    from program import started

    from flowward.pages import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder / "report.html")
        return started(tiny, tmp_path_factory.mktemp("finished") / "run", "--precision", "float32")


@pytest.fixture
def run(finished: Path, elsewhere: None) -> Path:
    """A copy of it, here."""
    return Path(shutil.copytree(finished, "run"))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for others pauses for milliseconds, and has no token or key from outside."""
    from flowward.system import jobs

    monkeypatch.setattr(jobs, "FIRST", 0.01)
    monkeypatch.setattr(jobs, "LONGEST", 0.05)
    for name in ("FLOWWARD_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a reward server that takes four images in a call."""
    from local_servers import served
    from remote_rewards import Weighted

    from flowward.rewards.service.server import Service

    with served(Service("weighted", Weighted(), max_batch=4, max_bytes=1e6)) as at:
        yield at


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with its processor."""
    import tiny_clip

    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip_head(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The linear layers of an aesthetic predictor on it."""
    import tiny_clip

    return tiny_clip.save_head(tmp_path_factory.mktemp("head") / "head.pth")
