"""Rewards are asked about every image once, together with its prompt's others, and slow ones while more are drawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, bright, close, small, snapshot, trainer
from torch import Tensor

from flowward import models, prompts, rewards
from flowward.rewards import RewardError, loading
from flowward.rewards.scoring import Scoring, agreement
from flowward.training.trainer import Trainer


class Waits:
    """The brightness, from somewhere else; it remembers what it was asked."""

    in_background = True

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.asked, self.threads = seconds, [], set()
        self.about: list[Mapping[str, Any]] = []

    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        time.sleep(self.seconds)
        self.asked.append(list(texts))
        self.about += metadata or ()
        self.threads.add(threading.current_thread().name)
        return bright(images, texts)


def test_images_are_asked_about_in_whole_prompts() -> None:
    """However they come in: batches of 3 of groups of 4 wait for the rest of their group."""
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    texts = [text for text in "abc" for _ in range(4)]
    about = [{"number": number} for number in range(12)]
    slow, fast = Waits(0.01), Waits()
    fast.in_background = False
    with Scoring([("slow", slow), ("fast", fast)], texts, about, unit=4) as scoring:
        for part in images.split(3):
            scoring.add(part)
        scores = scoring.result(images)
    torch.testing.assert_close(scores, images.mean((1, 2, 3))[:, None].expand(12, 2))
    assert sorted(slow.asked) == [["a"] * 4, ["b"] * 4, ["c"] * 4]
    assert fast.asked == [texts]
    assert sorted(each["number"] for each in slow.about) == list(range(12))
    assert threading.main_thread().name not in slow.threads and fast.threads == {threading.main_thread().name}


def test_a_failure_without_text_is_agreed_on_too() -> None:
    with pytest.raises(RewardError), agreement():
        raise RewardError


def test_scores_that_are_missing_are_counted_per_iteration() -> None:
    class Misses(Waits):
        missing = 7

        def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
            self.missing += len(images)
            return bright(images, texts)

    images, texts = torch.rand(4, 3, 4, 4), ["a"] * 4
    with Scoring([("misses", Misses()), ("fast", bright)], texts, unit=2) as scoring:
        scoring.add(images)
        scoring.result(images)
        assert scoring.missing() == {"missing_scores": 4}
    with Scoring([("fast", bright)], texts) as scoring:
        assert scoring.missing() == {}


def test_a_reward_that_fails_in_the_background_is_named() -> None:
    def broken(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        raise KeyError("gone")

    broken.in_background = True  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="reward 'far' raised KeyError"), Scoring([("far", broken)], ["a"]) as scoring:
        scoring.add(torch.zeros(1, 3, 4, 4))
        scoring.result(torch.zeros(1, 3, 4, 4))


def test_drawing_goes_on_while_a_reward_waits(tiny: str) -> None:
    """The second part is drawn once the first is answered, whose waiting then is over; learning is the same."""
    answered = threading.Event()

    class SlowAtFirst(Waits):
        def __call__(self, *given: Any) -> Tensor:
            self.seconds = 0.0 if answered.is_set() else 1.0
            found = super().__call__(*given)
            answered.set()
            return found

    one, other = (trainer(tiny, reward=each, rollout_batch=4) for each in (SlowAtFirst(), bright))
    drawn = one.collect

    def waiting(*asked: Any) -> Any:
        for number, part in enumerate(drawn(*asked)):
            assert number == 0 or answered.wait(60)
            yield part

    one.collect = waiting
    step = one.step()
    assert step.seconds["reward"] < 0.9  # what is left after the rollout
    other.step()
    close(snapshot(one.policy), snapshot(other.policy))


def test_metadata_reaches_rewards(tiny: str) -> None:
    """That of the prompt of each image, in training and in evaluations."""
    known = tuple({"text": text.upper()} for text in TEXTS)
    texts = prompts.PromptSet("mine", TEXTS, ("all",) * len(TEXTS), metadata=known)
    seen: list[tuple[str, str]] = []

    def reads(images: Tensor, given: Sequence[str], metadata: Any = None) -> Tensor:
        seen.extend(zip(given, (each["text"] for each in metadata), strict=True))
        return bright(images, given)

    Trainer(trainer(tiny).algorithm, models.load(tiny, None, "float32"), reads, texts, small()).step()
    assert len(seen) == 8 and all(text.upper() == told for text, told in seen)


class Furthest:
    """How far the brightness of an image is from the largest one of the call."""

    compares = True

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        self.calls.append(len(images))
        brightness = images.mean((1, 2, 3))
        return brightness.amax() - brightness


def test_videos_are_compared_at_the_same_time() -> None:
    """Frames of one video are no rivals: a call holds as many images as there are videos."""
    videos, reward = torch.rand(3, 5, 3, 4, 4), Furthest()
    found = rewards.score("far", reward, videos, ["a"] * 3)
    brightness = videos.mean((2, 3, 4))
    torch.testing.assert_close(found, (brightness.amax(0) - brightness).mean(1))
    assert reward.calls == [3] * 5


def test_a_weighted_reward_is_called_as_it_is_without_a_weight() -> None:
    """Whole videos for one that takes them, all images at once for one that compares."""
    videos = torch.rand(3, 5, 3, 4, 4)

    def spread(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.flatten(1).std(1)

    spread.takes_videos = True  # type: ignore[attr-defined]
    both = rewards.Sum((("spread", 2.0, spread), ("far", 0.5, Furthest())))
    assert both.compares and not rewards.Sum((("spread", 2.0, spread),)).compares
    brightness = videos.mean((2, 3, 4))
    far = (brightness.amax(0) - brightness).mean(1)
    torch.testing.assert_close(rewards.score("both", both, videos, ["a"] * 3), 2 * videos.flatten(1).std(1) + 0.5 * far)


def test_a_reward_that_changes_its_images_is_named() -> None:
    """Other rewards score the same images, and pages show them."""

    def normalises(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.sub_(0.5).mean((1, 2, 3))

    with pytest.raises(RewardError, match="reward 'mine' changes the images"):
        rewards.score("mine", normalises, torch.rand(2, 3, 4, 4), ["a", "b"])


# From what a user writes to a reward


@pytest.fixture
def file(tmp_path: Any) -> str:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n"
        "def red(images, prompts, metadata=None):\n    return images[:, 0].mean((1, 2))\n\n"
        "@dataclass\nclass Channel:\n    number: int = 0\n\n"
        "    def __call__(self, images, prompts, metadata=None):\n        return images[:, self.number].mean((1, 2))\n"
        "\n@dataclass\nclass Absent:\n    path: str = 'nowhere.pt'\n\n"
        "    def __post_init__(self):\n        open(self.path)\n\n"
        "class Asks:\n    def __init__(self, path):\n        self.path = path\n"
    )
    return str(tmp_path / "mine.py")


def test_a_reward_of_ones_own(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A function or a class with options, from a file or a module, alone or in a sum."""
    images = torch.rand(3, 3, 4, 4)
    mean = images.mean((2, 3))
    assert torch.equal(rewards.load([f"{file}:red"])(images, ["a"] * 3), mean[:, 0])
    chosen = rewards.load([f"{file}:red=0.5", f"{file}:Channel=2"], [f"{file}:Channel.number=2"])
    torch.testing.assert_close(chosen(images, ["a"] * 3), 0.5 * mean[:, 0] + 2 * mean[:, 2])
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(rewards.load(["mine:Channel"])(images, ["a"] * 3), mean[:, 0])


def test_a_file_may_keep_its_annotations_as_text(tmp_path: Any) -> None:
    """`from __future__ import annotations`, whatever the file is called, even as a module that is there already."""
    for stem in ("own", "json"):
        file = tmp_path / f"{stem}.py"
        file.write_text(
            "from __future__ import annotations\n\nfrom dataclasses import dataclass\nimport json\n\n"
            "json.dumps(0)\nNumber = int\n\n\n"
            "@dataclass\nclass Channel:\n    number: Number = 0\n\n"
            "    def __call__(self, images, prompts, metadata=None):\n"
            "        return images[:, self.number].mean((1, 2))\n"
        )
        images = torch.rand(3, 3, 4, 4)
        chosen = rewards.load([f"{file}:Channel"], [f"{file}:Channel.number=2"])
        assert torch.equal(chosen(images, ["a"] * 3), images[:, 2].mean((1, 2)))


def test_a_package_offers_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """By entry points of the group flowward.rewards; one that cannot be imported is named."""
    offered = [
        EntryPoint("gloss", "tiny_runs:bright", loading.ENTRY_POINTS),
        EntryPoint("broken", "tiny_runs:dark", loading.ENTRY_POINTS),
    ]
    monkeypatch.setattr(loading, "entry_points", lambda group: offered)
    images = torch.rand(3, 3, 4, 4)
    assert torch.equal(rewards.load(["gloss"])(images, ["a"] * 3), bright(images, []))
    with pytest.raises(ValueError, match="cannot import reward 'broken': AttributeError"):
        rewards.load(["broken"])
    with pytest.raises(ValueError, match="unknown reward 'glos'; did you mean 'gloss'"):
        rewards.load(["glos"])


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("{file}:blue", [], "has no function 'blue'"),
        ("nowhere.py:red", [], "cannot import reward 'nowhere.py:red': FileNotFoundError"),
        ("no_such_module:red", [], "cannot import reward 'no_such_module:red': ModuleNotFoundError"),
        ("{file}:red", ["{file}:red.number=2"], "has no options"),
        ("{file}:Channel", ["{file}:Channel.number=two"], "option number: must be a whole number, not 'two'"),
        ("{file}:Channel", ["{file}:Channel.size=2"], "option size: Unexpected keyword argument"),
        ("balance", ["pickscore.batch=2"], "options for reward 'pickscore', but it is not used"),
        ("balance", ["batch=2"], "write it as reward.option=value"),
        ("{file}:red=high", [], "must be a number, not 'high'"),
        ("{file}:Absent", [], ":Absent': FileNotFoundError"),
        ("{file}:Asks", [], ":Asks': TypeError"),
    ],
)
def test_what_is_no_reward_is_refused(file: str, spec: str, options: list[str], said: str) -> None:
    with pytest.raises(ValueError) as found:
        rewards.load([spec.replace("{file}", file)], [each.replace("{file}", file) for each in options])
    assert said in str(found.value)


def test_a_reward_is_named_once() -> None:
    """The options of a second one would be those of the first, and so would its numbers in the metrics."""
    with pytest.raises(ValueError, match="reward 'balance' is named twice; name it once, with the sum of its weights"):
        rewards.load(["balance=1", "scenes", "balance=0.5"])
