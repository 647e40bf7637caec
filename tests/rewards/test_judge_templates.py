"""What a judge is asked, and what is read from its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judges import IMAGES, LEVELS, PROMPTS, honest, judged, says, seen

from flowward import rewards
from flowward.evaluation.provenance import described, differing
from flowward.rewards import RewardError, score
from flowward.rewards.judges import template
from flowward.rewards.judges.judge import Judge

pytestmark = pytest.mark.usefixtures("hasty")

# The shipped templates


@pytest.mark.parametrize("name", ["unified-reward", "yes-no", "json-score"])
def test_pointwise_templates_score_the_image_with_its_prompt(name: str) -> None:
    with judged() as (at, requests):
        found = score("judge", Judge(server=at, template=name), IMAGES, PROMPTS)
    assert torch.allclose(found, LEVELS, atol=1e-5)
    shown = {(round(seen(request)[0][0] * 255), seen(request)[1]) for request in requests}
    assert len(shown) == 6
    for level, text in shown:
        index = [round(each * 255) for each in LEVELS.tolist()].index(level)
        assert PROMPTS[index] in text and "{" not in text
    assert all(request["model"] == "vlm" and request["temperature"] == 0 for request in requests)


def test_pairwise_is_the_win_rate_among_the_images_of_a_prompt() -> None:
    with judged() as (at, requests):
        judge = Judge(server=at, template="unified-reward-pairwise")
        found = judge(IMAGES[[0, 3, 5, 1, 4]], [PROMPTS[i] for i in (0, 3, 5, 1, 4)])
        assert found.tolist() == [0, 1, 0.5, 1, 0]  # red: 10 < 130 < 250; green: 60 < 200
        assert len(requests) == 3 + 1 and all(len(seen(request)[0]) == 2 for request in requests)
        assert judge.compares and not Judge(server=at, template="yes-no").compares
        with pytest.raises(RewardError, match="'a blue cube' has only one image"):
            judge(IMAGES, PROMPTS)


def test_win_rates_know_no_order_and_sum_to_half_a_win_per_pair() -> None:
    images, prompts = torch.rand(6, 3, 5, 5), ["a"] * 4 + ["b"] * 2
    images[3] = images[1]  # equal images tie without being shown
    biased = lambda request: says("Image 1 is better.")  # noqa: E731
    with judged(biased) as (at, requests):
        judge = Judge(server=at, template="unified-reward-pairwise")
        found = judge(images, prompts)
        asked = len(requests)
        order = torch.tensor([4, 2, 0, 5, 3, 1])
        assert torch.equal(judge(images[order], [prompts[i] for i in order]), found[order])
    assert asked == 5 + 1
    assert found[:4].sum() == pytest.approx(4 / 2) and found[4:].sum() == pytest.approx(1)
    assert found[1] == found[3]


def test_templates_are_found_by_name_and_path(tmp_path: Path) -> None:
    assert set(template.SHIPPED) == {
        "edit", "edit-several", "json-score", "unified-reward", "unified-reward-pairwise", "yes-no"
    }  # fmt: skip
    assert all(template.load(name).source for name in template.SHIPPED)
    assert len({template.load(name).identity for name in template.SHIPPED}) == 6
    own = {
        "messages": [
            {"role": "system", "text": "Answer."},
            {"role": "user", "text": "Look: {image}\n{question} about {prompt}? {not this}"},
        ],
        "read": {"kind": "number", "pattern": r"(\d+)", "scale": [0, 100]},
        "request": {"temperature": 0.2, "chat_template_kwargs": {"enable_thinking": False}},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    about = [{"question": f"Is {{prompt}} {n}"} for n in range(6)]
    with judged(lambda request: says("100 of 100, or rather 50")) as (at, requests):
        judge = Judge(server=at, template=str(path), concurrency=1)
        assert judge(IMAGES, PROMPTS, about).tolist() == [0.5] * 6
        assert requests[0]["messages"][0] == {"role": "system", "content": "Answer."}
        texts = [part.get("text") for part in requests[0]["messages"][1]["content"]]
        assert texts == ["Look:", None, "Is {prompt} 0 about a red cube? {not this}"]
        assert requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        with pytest.raises(RewardError, match=r"needs \{question\}, but the metadata of 'a red cube' has no"):
            judge(IMAGES, PROMPTS)
        asked = len(requests)
        judge.refuse(PROMPTS, about)
        with pytest.raises(ValueError, match=r"needs \{question\}, but the metadata of 'a red cube' has no"):
            judge.refuse(PROMPTS)  # before a run, not after its first images
        assert len(requests) == asked


def test_an_edit_needs_its_source_where_the_judge_runs(tmp_path: Path) -> None:
    with judged(lambda request: says("yes")) as (at, _):
        judge = Judge(server=at, template="edit")
        (tmp_path / "there.png").write_bytes(b"")
        judge.refuse(["make it snowy"], [{"source": str(tmp_path / "there.png")}])
        with pytest.raises(ValueError, match=r"source image at .*gone\.png, but there is no such file"):
            judge.refuse(["make it snowy"], [{"source": str(tmp_path / "gone.png")}])


def test_who_judged_by_which_words_is_beside_a_number(tmp_path: Path) -> None:
    """Also where the model was not named, and where a template of one's own was changed."""
    path = tmp_path / "own.yaml"
    found = []
    with judged(lambda request: says("yes")) as (at, _):
        for words in ("Good? {image}", "Bad? {image}"):
            path.write_text(yaml.safe_dump({"messages": [{"role": "user", "text": words}], "read": {"kind": "yes-no"}}))
            found.append(described(Judge(server=at, template=str(path))))
    one, other = ({"rewards": {"judge": each}} for each in found)
    assert found[0]["model"] and [each.split(" (")[0] for each in differing(one, other)] == [
        "template_sha256 of reward judge"
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"read": {"kind": "vote"}}, "kind|vote"),
        ({"read": {"kind": "number", "pattern": "(", "scale": [0, 1]}}, "not a regular expression"),
        ({"read": {"kind": "number", "pattern": "1", "scale": [0, 1]}}, "no group"),
        ({"read": {"kind": "number", "pattern": "(1)", "scale": [1, 1]}}, "from a smaller to a larger number"),
        ({"read": {"kind": "winner", "first": "1", "second": "2", "tie": "3"}}, r"must contain \{image\} 2 times"),
        ({"messages": [{"role": "user", "text": "{prompt}"}]}, r"must contain \{image\} 1 times"),
        ({"messages": [{"role": "robot", "text": "{image}"}]}, "role"),
        ({"tempreature": 1}, "tempreature"),
        ({"read": {"kind": "yes-no", "yes": ["yes"]}}, "yes"),
    ],
)
def test_bad_templates_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    good = {"messages": [{"role": "user", "text": "{image}"}], "read": {"kind": "yes-no"}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(good | change))
    with pytest.raises(ValueError, match=sentence):
        template.load(str(path))


def test_templates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'yes-no'"):
        template.load("yes-non")
    with pytest.raises(ValueError, match="no template at"):
        template.load(str(tmp_path / "none.yaml"))
    (tmp_path / "own.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="line 1: while parsing"):
        template.load(str(tmp_path / "own.yaml"))


def test_two_judges_with_templates_of_their_own_are_one_mix(tmp_path: Path) -> None:
    """The second one has the name of a class in a file, as docs/remote_rewards.md tells."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom flowward.rewards.judges.judge import Judge\n\n"
        '@dataclass\nclass Second(Judge):\n    template: str = "unified-reward"\n'
    )
    second = f"{tmp_path}/mine.py:Second"
    with judged(honest) as (at, _):
        mix = rewards.load(["judge=1", f"{second}=0.5"], [f"judge.server={at}", f"{second}.server={at}"])
    found = [(weight, getattr(one, "template", None)) for _, weight, one in rewards.terms(mix)]
    assert found == [(1.0, "yes-no"), (0.5, "unified-reward")]
