"""Sounds on their way to reward servers and judges: as tensors or WAV files, always with their rate."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from judges import first_token, judged
from local_servers import Answer, served
from safetensors.torch import save
from torch import Tensor

from flowward.process import sound
from flowward.rewards import RewardError
from flowward.rewards.judges import template
from flowward.rewards.judges.judge import Judge
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service
from flowward.rewards.service.wire import JSON, TENSORS, Refused, decode, encode

pytestmark = pytest.mark.usefixtures("hasty")
PROMPTS = ["a bell", "a dog", "rain"]
WAVES = torch.tensor([0.1, 0.5, 0.9]).view(-1, 1, 1).expand(-1, 2, 400).contiguous()
ABOUT = [{"rate": 8000, "k": k} for k in range(3)]


class Loud:
    """Mean value, times the rate in kHz."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        rates = torch.tensor([about["rate"] / 1000 for about in metadata])
        return images.mean((1, 2)) * rates


@pytest.mark.parametrize(("encoding", "kind"), [("float32", TENSORS), ("float16", TENSORS), ("png", JSON)])
def test_a_call_with_sounds_arrives(encoding: str, kind: str) -> None:
    call = decode(encode(WAVES, PROMPTS, ABOUT, encoding), kind)
    assert call.prompts == PROMPTS and call.metadata == ABOUT
    torch.testing.assert_close(call.images, WAVES, rtol=0, atol={"float32": 0, "float16": 1e-3, "png": 2e-5}[encoding])


def test_the_rate_of_wav_files_becomes_metadata() -> None:
    sounds = [base64.b64encode(sound.wav(each, 16_000, "float32")).decode() for each in WAVES]
    call = decode(json.dumps({"sounds": sounds, "prompts": PROMPTS}).encode(), JSON)
    assert torch.equal(call.images, WAVES) and call.metadata == [{"rate": 16_000}] * 3


def test_a_reward_server_scores_sounds() -> None:
    with served(Service("loud", Loud())) as at:
        for encoding in ("float32", "float16", "png"):
            found = Remote(at, encoding=encoding, batch=2)(WAVES, PROMPTS, ABOUT)  # type: ignore[arg-type]
            assert found.tolist() == pytest.approx([0.8, 4.0, 7.2], abs=0.01)
        with pytest.raises(RewardError, match="sounds cannot be sent in 8 bits"):
            Remote(at, encoding="uint8")(WAVES, PROMPTS, ABOUT)
        with pytest.raises(RewardError, match="waveforms need their `rate`"):
            Remote(at)(WAVES, PROMPTS)


def test_bad_calls_with_sounds_are_refused() -> None:
    one = base64.b64encode(sound.wav(WAVES[0], 8000)).decode()
    other = base64.b64encode(sound.wav(WAVES[0], 16_000)).decode()
    for sounds, status, said in (
        ([], 422, "must be a list of WAV files"), ("x", 422, "must be a list of WAV files"),
        ([3], 400, "not a WAV file"), (["AAAA"], 400, "not a WAV file"),
        ([one, other], 422, "same length, rate and number of channels"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=said) as error:
            decode(json.dumps({"sounds": sounds, "prompts": ["a"] * len(sounds)}).encode(), JSON)
        assert error.value.status == status
    with pytest.raises(Refused) as error:
        decode(json.dumps({"sounds": [one], "prompts": ["a"]}).encode(), JSON, max_bytes=100)
    assert error.value.status == 413
    request = torch.frombuffer(bytearray(b'{"prompts": ["a"]}'), dtype=torch.uint8)
    for waves in (torch.zeros(1, 8), torch.zeros(1, 1, 8, dtype=torch.uint8)):
        with pytest.raises(Refused, match="waveforms must be float32 or float16"):
            decode(save({"waveforms": waves, "request": request}), TENSORS)


def hears(request: dict[str, Any]) -> Answer:
    """A model that likes loud sounds."""
    (part,) = (each for each in request["messages"][0]["content"] if each["type"] == "input_audio")
    assert part["input_audio"]["format"] == "wav"
    waveform, rate = sound.read(base64.b64decode(part["input_audio"]["data"]))
    assert rate == 8000 and waveform.shape == (2, 400)
    p = float(waveform.mean())
    return first_token(("Yes", math.log(p)), ("No", math.log(1 - p)))


def test_a_judge_hears_sounds_as_wav_files(tmp_path: Path) -> None:
    with judged(hears) as (at, requests):
        judge = Judge(server=at, template="sound-yes-no", cache=tmp_path)
        assert judge(WAVES, PROMPTS, ABOUT).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=1e-3)
        assert len(requests) == 3
        judge(WAVES, PROMPTS, ABOUT)
        assert len(requests) == 3  # from the cache
        with pytest.raises(RewardError, match="the template sound-yes-no needs the rate of its waveforms"):
            judge(WAVES, PROMPTS)
        with pytest.raises(ValueError, match="scores sounds, and these samples have no rate"):
            judge.refuse(PROMPTS)
        with pytest.raises(RewardError, match=r"the template yes-no asks about images: use one with \{sound\}"):
            Judge(server=at, template="yes-no")(WAVES, PROMPTS, ABOUT)


def test_a_question_is_about_images_or_about_sounds(tmp_path: Path) -> None:
    text = Path(template.SHIPPED["sound-yes-no"]).read_text()
    (tmp_path / "both.yaml").write_text(text.replace("{sound}", "{sound} {image}"))
    with pytest.raises(ValueError, match=r"must contain \{image\} or \{sound\} 1 times"):
        template.load(str(tmp_path / "both.yaml"))
