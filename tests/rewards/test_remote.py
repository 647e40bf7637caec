"""Rewards over HTTP: the same scores as in process, from servers that are what they should be."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from local_servers import free_port, reply, scripted, served
from remote_rewards import IMAGES, PROMPTS, WEB, Weighted
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.evaluation.provenance import described, differing
from flowward.rewards import score
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service

pytestmark = pytest.mark.usefixtures("hasty")


# The same scores


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("about", [None, [{"add": 0.5 * n, "text": "é"} for n in range(7)]])
def test_scores_are_those_of_the_process(address: str, batch: int, about: Any) -> None:
    here = score("here", Weighted(), IMAGES, PROMPTS, about)
    there = score("there", Remote(address, batch=batch), IMAGES, PROMPTS, about)
    assert there.dtype == torch.float32 and torch.equal(here, there)


def test_what_is_lossy_is_what_rounding_loses(address: str) -> None:
    eight = (IMAGES * 255).round() / 255
    for encoding, images in (("float16", IMAGES.half().float()), ("uint8", eight), ("png", eight)):
        assert torch.allclose(
            Remote(address, encoding=encoding)(IMAGES, PROMPTS), Weighted()(images, PROMPTS).float(), atol=1e-4
        )
    noisy = IMAGES * 3 - 1  # outside of [0, 1]
    assert torch.equal(Remote(address)(noisy, PROMPTS), Weighted()(noisy, PROMPTS).float())
    for encoding in ("uint8", "png"):
        clamped = (noisy.clamp(0, 1) * 255).round() / 255
        assert torch.allclose(Remote(address, encoding=encoding)(noisy, PROMPTS), Weighted()(clamped, PROMPTS).float())


@pytest.mark.parametrize("encoding", ["float32", "png"])
def test_videos_go_as_they_are_or_frame_by_frame(address: str, encoding: Any) -> None:
    videos = torch.randint(0, 256, (7, 2, 3, 4, 6)) / 255
    remote = Remote(address, encoding=encoding)
    assert remote.takes_videos
    assert torch.equal(score("there", remote, videos, PROMPTS), score("here", Weighted(), videos, PROMPTS))
    with served(Service("frames", rewards.load(["jpeg-compressibility"]))) as at:
        there = Remote(at, encoding=encoding)
        assert not there.takes_videos
        local = score("here", rewards.load(["jpeg-compressibility"]), videos, PROMPTS)
        assert torch.equal(score("there", there, videos, PROMPTS), local)


def test_a_verdict_that_is_served_is_one(address: str) -> None:
    class Right:
        def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
            return (images.mean((1, 2, 3)) > 0.5).float()

        def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
            return ["" if right else "dark" for right in self(images, prompts)]

    with served(Service("right", Right())) as at:
        assert Remote(at).verdicts and rewards.gives_verdicts(Remote(at)) and rewards.gives_verdicts(Right())
    assert not rewards.gives_verdicts(Remote(address)) and not rewards.gives_verdicts(Weighted())


def test_no_images_have_no_scores(address: str) -> None:
    assert Remote(address)(IMAGES[:0], []).shape == (0,)


def test_chunks_keep_to_the_limits_of_client_and_server() -> None:
    for limits, batch, sizes in (
        ({"max_batch": 4}, 64, [4, 3]),
        ({"max_batch": 4}, 3, [3, 3, 1]),
        ({"max_bytes": 2.5 * 4 * IMAGES[0].numel()}, 64, [2, 2, 2, 1]),
    ):
        reward = Weighted()
        with served(Service("weighted", reward, **limits)) as at:
            Remote(at, batch=batch)(IMAGES, PROMPTS)
        assert reward.calls == sizes


def test_a_reward_that_compares_gets_its_call_in_one_piece() -> None:
    def rank(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.flatten(1).mean(1).argsort().argsort().float()

    rank.compares = True  # type: ignore[attr-defined]
    with served(Service("rank", rank)) as at, served(Service("rank", rank)) as other:
        remote = Remote(f"{at},{other}", batch=1)
        assert remote.compares and sorted(remote(IMAGES, PROMPTS).tolist()) == list(range(7))


def test_an_address_is_a_reward_with_weight_and_options(address: str) -> None:
    both = rewards.load([f"{address}=0.5", "jpeg-compressibility"], [f"{address}.batch=2", f"{address}.timeout=9"])
    (_, weight, remote), _ = rewards.terms(both)
    assert isinstance(remote, Remote) and (weight, remote.batch, remote.timeout) == (0.5, 2, 9)
    named = rewards.load(["remote"], [f"remote.address={address}", "remote.encoding=uint8"])
    assert isinstance(named, Remote) and named.encoding == "uint8" and named.in_background
    for option in ("batch=0", "patience=-1", "encoding=jpeg", "tokens=x", "timeout=soon"):
        with pytest.raises(ValueError, match=option.partition("=")[0]):
            rewards.load([address], [f"{address}.{option}"])


def test_prompts_are_refused_before_a_run(address: str) -> None:
    rewards.refuse(Remote(address), PROMPTS)
    with pytest.raises(ValueError, match="cannot read 'nonsense'"):
        rewards.refuse(Remote(address), [*PROMPTS, "nonsense"])
    broken = Weighted()
    broken.refuse = lambda prompts, metadata: {}["weights"]  # type: ignore[method-assign]
    with (
        served(Service("broken", broken)) as at,
        pytest.raises(ValueError, match="500: refuse of reward 'broken' raised KeyError"),
    ):
        rewards.refuse(Remote(at), PROMPTS)


def test_threads_may_share_a_client(address: str) -> None:
    remote, found = Remote(address, batch=1), dict[int, Tensor]()
    threads = [threading.Thread(target=lambda n=n: found.update({n: remote(IMAGES + n, PROMPTS)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[n], Weighted()(IMAGES + n, PROMPTS).float()) for n in range(4))


@pytest.mark.processor
def test_a_run_with_a_remote_reward_is_the_run_with_the_reward(tiny: str, tmp_path: Path) -> None:
    budget = shlex.split(
        "--iterations 2 --images-per-update 8 --group-size 4 --microbatch 8 --algorithm.rollout.steps 2 "
        "--evaluation.images 6 --evaluation.sampler.steps 2 --evaluation.rewards balance --threads 1"
    )
    lines = []
    with served(Service("balance", rewards.load(["balance"])), token="secret") as at:
        for name, more in (("balance", []), (at, [f"{at}.batch=3", f"{at}.token=secret"])):
            words = ["--reward", name, *(["--reward-options", *more] if more else [])]
            folder = tmp_path / str(len(lines))
            assert main(["train", *budget, *words, "--model", tiny, "--output", str(folder)]) == 0
            text = (folder / "metrics.jsonl").read_text()
            lines.append([{**json.loads(line), "seconds": 0, "speed": 0} for line in text.splitlines()])
    assert lines[0] == lines[1]


# Meeting a server


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    at = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=rf"no reward server answers \({at}: .*start one with: flowward serve-reward"):
        rewards.load([at])
    assert not capsys.readouterr().err
    for wrong in ("http://", "http://host:port", "ftp://host"):
        with pytest.raises(ValueError, match="is not a server address"):
            Remote(wrong)


def test_somebody_else_answers(address: str) -> None:
    with scripted(lambda *_: reply(b"hello")) as at, pytest.raises(ValueError, match="no reward server answers"):
        Remote(at)
    for about in ({}, [], {"reward": "x", "max_batch": "8"}, {"reward": "x", "max_bytes": 0}, {"reward": 1}):
        with scripted(lambda *_, about=about: reply(about)) as at:  # noqa: SIM117
            with pytest.raises(ValueError, match="is not a reward server"):
                Remote(at)
    with scripted(lambda *_: reply({}, 404)) as at, pytest.raises(ValueError, match="is this a reward server"):
        Remote(at)
    with served(Service("other", Weighted())) as at, pytest.raises(ValueError, match=f"{address} serves 'weighted'"):
        Remote(f"{address},{at}")


def test_the_reward_that_is_served_is_beside_a_number_and_the_token_is_not() -> None:
    found = []
    for name in ("jpeg-compressibility", "jpeg-incompressibility"):
        with served(Service(name, rewards.load([name])), token="s3cret") as at:
            found.append(described(Remote(at, token="s3cret", timeout=5.0 + len(name))))
    assert found[0]["serves"] == "jpeg-compressibility" and "s3cret" not in str(found)
    found[1]["address"] = found[0]["address"]  # another one at the same place
    one, other = ({"rewards": {"far": each}} for each in found)
    assert differing(one, other) == ["serves of reward far (jpeg-compressibility and jpeg-incompressibility)"]


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Service("weighted", Weighted()), token="right") as at:
        for token, sentence in ((None, "the token is missing"), ("wrong", "401: wrong token for this server")):
            with pytest.raises(ValueError, match=sentence):
                Remote(at, token=token)
        assert len(Remote(at, token="right")(IMAGES, PROMPTS)) == 7
        monkeypatch.setenv("FLOWWARD_TOKEN", "right")
        remote = Remote(at)
        assert len(remote(IMAGES, PROMPTS)) == 7 and "right" not in repr(remote)
        for path in ("reward", "metrics"):
            assert WEB.get(f"{at}/{path}").status_code == 401
        for path in ("score", "refuse"):
            assert WEB.post(f"{at}/{path}", content=b"x").status_code == 401
        assert WEB.get(f"{at}/health").json() == {"status": "ok"}
        for token in ("schlüssel", "right\n", "two\tparts", ""):
            with pytest.raises(ValueError, match="printable ASCII") as refused:
                Remote(at, token=token)
            assert not token or token.strip() not in str(refused.value)
    with pytest.raises(ValueError, match="not empty"), served(Service("weighted", Weighted()), token=""):
        pass
