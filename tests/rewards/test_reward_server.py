"""A reward server: what it refuses, in which order it works, and how it is started."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from local_servers import served
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from remote_rewards import IMAGES, PROMPTS, WEB, Held, Weighted
from safetensors.torch import save
from torch import Tensor

from flowward.cli import main
from flowward.rewards import RewardError
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service
from flowward.rewards.service.wire import JSON, TENSORS, decode, encode, png, to_uint8

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    with served(Service("weighted", Weighted(), max_batch=8, max_bytes=1e6)) as at:
        yield at


# What it refuses


def body(images: Tensor = IMAGES, prompts: Any = PROMPTS, **more: Any) -> bytes:
    request = json.dumps({"prompts": prompts, **more}).encode()
    return save({"images": images.contiguous(), "request": torch.frombuffer(bytearray(request), dtype=torch.uint8)})


PNG = base64.b64encode(png(to_uint8(IMAGES[0]))).decode()
WIDE = base64.b64encode(png(torch.zeros(3, 1000, 1000, dtype=torch.uint8))).decode()  # 3 KB that unpack to 12 MB


def asked(images: Any, prompts: Any = ("a 1",)) -> bytes:
    return json.dumps({"images": images, "prompts": prompts}).encode()


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (pickle.dumps({"images": [1]}), "application/octet-stream", 415, "not 'application/octet-stream'"),
        (pickle.dumps({"images": [1]}), TENSORS, 400, "not a safetensors file"),
        (pickle.dumps({"images": [1]}), JSON, 400, "not JSON"),
        (b"", TENSORS, 400, "not a safetensors file"),
        (body()[:-1], TENSORS, 400, "not a safetensors file"),
        (body(IMAGES.double()), TENSORS, 422, "float32, float16, uint8 and `request` uint8, not float64"),
        (body(IMAGES.bfloat16()), TENSORS, 422, "bfloat16"),
        (save({"images": IMAGES}), TENSORS, 422, "must be `images` and `request`"),
        (body(IMAGES[0, 0]), TENSORS, 422, r"not \[8, 10\]"),
        (body(IMAGES[:, :1]), TENSORS, 422, r"not \[7, 1, 8, 10\]"),
        (body(IMAGES[:0], []), TENSORS, 422, r"not \[0, 3"),
        (body(prompts=PROMPTS[:2]), TENSORS, 422, "not 2 for 7 images"),
        (body(prompts="prompt"), TENSORS, 422, "a list of strings"),
        (body(prompts=[1] * 7), TENSORS, 422, "a list of strings"),
        (body(metadata=[{}]), TENSORS, 422, "not 1 for 7 images"),
        (body(metadata=["x"] * 7), TENSORS, 422, "list of objects"),
        (body(IMAGES.where(IMAGES < 0.99, torch.nan)), TENSORS, 422, r"\d of 7 images have NaN .* 'prompt \d'"),
        (body(torch.rand(9, 3, 2, 2), ["a"] * 9), TENSORS, 413, "at most 8 images, not 9"),
        (body(torch.rand(1, 3, 400, 400), ["a"]), TENSORS, 413, "at most 1 MB"),
        (body(torch.zeros(1, 3, 400, 400, dtype=torch.uint8), ["a"]), TENSORS, 413, "at most 1 MB"),
        (bytes(4_000_000), TENSORS, 413, "at most 1 MB"),
        (asked([WIDE]), JSON, 413, "at most 1 MB"),
        (asked([PNG, PNG], ["a 1"]), JSON, 422, "not 1 for 2 images"),
        (asked(["AAAA"]), JSON, 400, "not a PNG file"),
        (asked([PNG[: len(PNG) // 8 * 4]]), JSON, 400, "not a PNG file"),
        (asked(["!"]), JSON, 400, "not a PNG file"),
        (asked([7]), JSON, 400, "not a PNG file"),
        (asked([[]]), JSON, 422, "at least one frame"),
        (asked([PNG, [PNG]], ["a 1"] * 2), JSON, 422, "same size"),
        (asked(PNG), JSON, 422, "a list of PNG files"),
        (b"[" * 100_000, JSON, 400, "not JSON"),
        (b"[]", JSON, 422, "must be an object"),
    ],
)  # fmt: skip
def test_a_bad_call_gets_a_sentence(small: str, content: bytes, kind: str, status: int, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        answer = WEB.post(f"{small}/score", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status, answer.text
        raise AssertionError(answer.json()["detail"])


@pytest.mark.parametrize("path", ["score", "refuse"])
def test_a_body_of_unknown_length_is_cut_off(small: str, path: str) -> None:
    answer = WEB.post(f"{small}/{path}", content=iter([bytes(100_000)] * 40), headers={"Content-Type": TENSORS})
    assert answer.status_code == 413 and "at most 1 MB" in answer.json()["detail"]


def test_a_token_is_asked_for_before_a_body_is_looked_at() -> None:
    with served(Service("weighted", Weighted(), max_bytes=1e6), token="right") as at:
        for path in ("score", "refuse"):
            for content in (bytes(4_000_000), iter([bytes(100_000)] * 40), b"{"):
                answer = WEB.post(f"{at}/{path}", content=content, headers={"Content-Type": JSON})
                assert answer.status_code == 401


def test_a_client_that_leaves_in_the_middle_is_an_error_and_no_more() -> None:
    with served(Service("weighted", Weighted())) as at:
        host, port = at.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + bytes(10))
        until(lambda: counted(at)["flowward_reward_errors_total"] > 0)
        assert torch.equal(Remote(at)(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())
        assert counted(at)["flowward_reward_errors_total"] == 1 and counted(at)["flowward_reward_waiting"] == 0


def test_a_reward_that_waits_for_another_server_can_be_served(address: str) -> None:
    with served(Service("weighted", Weighted()), token="right") as guarded:
        behind = Remote(guarded, token="right")
    with served(Service("broken", Weighted()), token="new", port=int(guarded.rpartition(":")[2])):  # noqa: SIM117
        with served(Service("front", behind)) as front, pytest.raises(RewardError, match=r"answered 500: .* 401"):
            Remote(front)(IMAGES, PROMPTS)


def test_prompts_that_are_none_are_refused(small: str) -> None:
    for content, status in ((b"{", 400), (b"[]", 422), (b'{"prompts": "x"}', 422), (pickle.dumps(["x"]), 400)):
        assert WEB.post(f"{small}/refuse", content=content).status_code == status


def test_png_from_any_program(small: str) -> None:
    answer = WEB.post(f"{small}/score", json={"images": [PNG], "prompts": ["a 1"], "metadata": [{"add": 2}]})
    rounded = (IMAGES[:1] * 255).round() / 255
    assert answer.json()["scores"] == pytest.approx(Weighted()(rounded, ["a 3"]).tolist())


# Calls and their order


def counted(at: str) -> dict[str, float]:
    """Every sample of /metrics, as Prometheus' own parser reads it."""
    families = text_string_to_metric_families(WEB.get(f"{at}/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_calls_wait_their_turn_and_health_does_not() -> None:
    reward = Held()
    with served(Service("held", reward)) as at:
        threads = [threading.Thread(target=Remote(at), args=(IMAGES, PROMPTS)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert reward.begun.wait(60)
        assert WEB.get(f"{at}/health").json() == {"status": "ok"} and all(thread.is_alive() for thread in threads)
        until(lambda: counted(at)["flowward_reward_waiting"] == 2)  # one is computed, and waits no longer
        reward.go.set()
        for thread in threads:
            thread.join()
        counts = counted(at)
        assert WEB.get(f"{at}/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
        assert WEB.get(f"{at}/openapi.json").json()["paths"].keys() >= {"/score", "/health", "/metrics"}
    assert reward.most == 1 and reward.calls == [7, 7, 7]
    assert counts["flowward_reward_requests_total"] == 3 and counts["flowward_reward_images_total"] == 21
    assert counts["flowward_reward_seconds_total"] >= 0.03
    assert counts["flowward_reward_errors_total"] == counts["flowward_reward_waiting"] == 0


def test_servers_in_one_process_count_for_themselves(small: str) -> None:
    before = counted(small)
    with served(Service("small", Weighted())) as other:
        assert WEB.post(f"{other}/score", content=b"{").status_code == 415
        assert counted(other)["flowward_reward_errors_total"] == 1
    assert counted(small) == before


def test_a_call_whose_client_has_left_is_not_computed() -> None:
    reward = Held()
    with served(Service("held", reward)) as at:
        thread = threading.Thread(target=Remote(at), args=(IMAGES, PROMPTS))
        thread.start()
        assert reward.begun.wait(60)
        for _ in range(2):
            with pytest.raises(httpx2.ReadTimeout):
                content, kind = encode(IMAGES, PROMPTS, None, "float32"), {"Content-Type": TENSORS}
                WEB.post(f"{at}/score", content=content, headers=kind, timeout=0.3)
        reward.go.set()
        thread.join()
        Remote(at)(IMAGES[:2], PROMPTS[:2])
    assert reward.calls == [7, 2]


# The command


def test_serve_reward_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(images, prompts, metadata=None):\n    return images.flatten(1).sum(1)\n")
    words = [sys.executable, "-m", "flowward", "serve-reward", f"{file}:mine", "--port", "0"]
    environment = {**os.environ, "FLOWWARD_TOKEN": "secret"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            at = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
            found = Remote(at, token="secret")(IMAGES, PROMPTS)
            assert torch.allclose(found, IMAGES.flatten(1).sum(1), rtol=1e-6)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n" and process.wait() == 0


def test_serving_badly(capsys: pytest.CaptureFixture[str], address: str) -> None:
    taken = address.rpartition(":")[2]
    for words, sentence in (
        (["scens"], "did you mean 'scenes'"),
        (["scenes", "--port", taken], "name another --host or --port"),
        (["scenes", "--port", "70000"], "between 0 and 65535"),
        (["scenes", "--max-batch", "0"], "must be positive"),
        (["scenes", "--port", "0", "--token", "ü"], "printable ASCII"),
        (["scenes", "--port", "0", "--reward-options", "scenes.x=1"], "has no options"),
    ):
        assert main(["serve-reward", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["serve-reward", "scens", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "whoever reaches 0.0.0.0" in capsys.readouterr().err


def test_transparent_parts_of_a_png_are_white() -> None:
    with io.BytesIO() as file:
        Image.new("RGBA", (4, 4), (255, 0, 255, 0)).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
    call = decode(json.dumps({"images": [image], "prompts": ["a"]}).encode(), JSON)
    assert call.images.shape == (1, 3, 4, 4) and (call.images == 1).all()
