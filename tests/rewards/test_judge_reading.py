"""What is read from a judge's answer: the score where the model speaks, whole, or nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flowward.rewards.judges import template
from flowward.rewards.judges.reading import Json, Number, Unreadable, Winner, YesNo


def choice(content: Any, **more: Any) -> dict[str, Any]:
    return {"message": {"content": content}, **more}


def test_a_number_is_the_last_match_within_its_scale() -> None:
    number = template.load("unified-reward").read
    assert isinstance(number, Number)
    for text, value in (("Final Score: 3", 0.5), ("**Final Score:** 4.6", 0.9), ("Final Score: 1\nFinal Score: 5", 1)):
        assert number.read(choice(text)) == pytest.approx(value)
    for bad in ("3", "Final Score: good", "Final Score: 0", "Final Score: 55", "", None, [], [None], 7):
        with pytest.raises(Unreadable):
            number.read(choice(bad))


READ = {
    "Score: 4.": 4, "**Final Score: 4**": 4, "Final Score: **4**/5": 4, r"Final Score: $\boxed{4}$": 4,
    '```json\n{"Final Score": 4, "reason": "x"}\n```': 4, "<think>Final Score: 1</think>\nFinal Score: 4": 4,
    "Final Score: 4 out of 5 stars": 4, "Final Score: 4 (out of 5)": 4, "Final Score: 3,5": 3.5,
    "Final Score (1-5): 4": 4, "Final Score - 4": 4, "Final Score: 4. 5 objects are right.": 4,
    "Final Score: 4\n5. The colours are off.": 4, "Final Score: 4\n\nScore of the colours: 2": 4,
    "The overall score is 4 points, I would say.": 4, "Final Score: 4e0": 4, "Final Score: 4, because": 4,
}  # fmt: skip
REFUSED = [
    "Final Score: 4/10", "Final Score: 3-4", "Final Score: 3 or 4", "Score: 2 to 3", "Final Score: 40%",
    "Final Score: 4 %", "Final Score: 4,000", "Final Score: 4'000", "Final Score: 4 000", "Final Score: 1e-1",
    "Final Score: -3", "Final Score: 4th", "Final Score: 3*4", "Final Score: **4**/10", "Final Score: 1.2.3",
    "Score: 4/5/24", "Final Score: 4 ± 1", "Final Score: 4½", "<think>Final Score: 2", "Final Score: 2:1",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read_whole(text: str) -> None:
    number = template.load("unified-reward").read
    assert number.read(choice(text)) == pytest.approx((READ[text] - 1) / 4)
    parts = [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]
    assert number.read(choice(parts)) == pytest.approx((READ[text] - 1) / 4)


@pytest.mark.parametrize("text", REFUSED)
def test_a_part_of_something_else_is_no_score(text: str) -> None:
    with pytest.raises(Unreadable):
        template.load("unified-reward").read.read(choice(text))


def test_a_pattern_of_ones_own_reads_whole_numbers_too() -> None:
    def read(pattern: str, text: str, high: float = 10) -> float:
        return Number("number", pattern, (0, high)).read(choice(text)) * high

    assert read(r"(\d+)", "it is 7/10") == pytest.approx(7)  # 10 is no score
    assert read(r"(\d)\D*$", "I give 10") == 10
    assert read(r"(\d+)", "40 %", 100) == 40 and read(r"(\d+)pts", "9pts") == 9
    assert read(r"\*\*(\d)\*\*", "**4**") == 4  # the pattern names the markup
    for pattern, text in ((r"\*\*(\d)\*\*", "**4**/20"), (r"(\d+)", "7b"), (r"(x)", "x"), (r"a(\d)?", "a")):
        with pytest.raises(Unreadable):
            read(pattern, text)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "content_filter", "abort"])
def test_an_answer_that_is_not_finished_is_none(reason: str) -> None:
    texts = {
        "unified-reward": "Final Score: 4",
        "unified-reward-pairwise": "Image 1 is better",
        "json-score": '{"score": 4}',
    }
    for name, text in texts.items():
        with pytest.raises(Unreadable, match=f"not finished .finish_reason {reason}"):
            template.load(name).read.read(choice(text, finish_reason=reason))
        template.load(name).read.read(choice(text, finish_reason="stop"))


def test_yes_or_no_after_a_thought_that_is_finished() -> None:
    def read(*texts: str) -> float:
        likely = [{"token": "Yes", "logprob": math.log(0.6)}, {"token": "No", "logprob": math.log(0.2)}]
        tokens = [{"token": text, "logprob": -0.1, "top_logprobs": []} for text in texts]
        last = {"token": "Yes", "logprob": math.log(0.6), "top_logprobs": likely}
        return YesNo("yes-no").read({"logprobs": {"content": [*tokens, last]}, "finish_reason": "length"})

    assert read("<think>", "No", "</think>", "\n\n") == pytest.approx(0.75)
    assert read("<", "think", ">", "no", "</", "think", ">") == pytest.approx(0.75)
    with pytest.raises(Unreadable, match="thought is not finished"):
        read("<think>", "hm")
    with pytest.raises(Unreadable, match="together have only probability 0 "):
        read("So")


def test_a_verdict_is_the_last_one() -> None:
    winner = template.load("unified-reward-pairwise").read
    assert isinstance(winner, Winner)
    said = {"Image 1 is better.": 1, "so IMAGE 2 IS BETTER than Image 1": 0, "Both images are equally good.": 0.5,
            "Image 1 is better in colour. All in all, Image 2 is better.": 0}  # fmt: skip
    assert [winner.read(choice(text)) for text in said] == list(said.values())
    said = {"**Image 1** is better.": 1, "<think>Image 1 is better</think>Image 2 is slightly better.": 0,
            "Winner: **Image 2**": 0, "The better image is Image 1.": 1}  # fmt: skip
    assert [winner.read(choice(text)) for text in said] == list(said.values())
    for bad in ("Neither.", "<think>Image 1 is better"):
        with pytest.raises(Unreadable):
            winner.read(choice(bad))


def test_yes_and_no_are_summed_over_their_spellings() -> None:
    def read(*likely: tuple[str, float]) -> float:
        top = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in likely]
        return YesNo("yes-no").read(choice("", logprobs={"content": [{**top[0], "top_logprobs": top}]}))

    spelled = (("Yes", 0.3), (" yes", 0.1), ("NO", 0.15), ("ĠNo", 0.05), ("Yesterday", 0.2), ("▁'no'", 0.2))
    assert read(*spelled) == pytest.approx(0.4 / (0.4 + 0.4))
    assert read(*spelled) == pytest.approx(
        read(*spelled[::-1])
    )  # the first is among the likeliest, too, and counts once
    assert read(("yes", 0.51)) == 1 and read(("no", 0.6), ("maybe", 0.4)) == 0
    assert read(("yes", 0.9), ("no", 1e-300)) == pytest.approx(1)
    capital = YesNo("yes-no", positive=("Yes.",), negative=("No",))
    top = [{"token": "Yes", "logprob": math.log(0.6)}, {"token": "no", "logprob": math.log(0.2)}]
    assert capital.read(choice("", logprobs={"content": [{**top[0], "top_logprobs": top}]})) == pytest.approx(0.75)
    for unsure in ([("maybe", 1)], [("yes", 0.3), ("no", 0.19), ("maybe", 0.51)], [("\n", 0.9), ("Yes", 0.1)]):
        with pytest.raises(Unreadable, match="thinks before it answers: close its thought, or raise max_tokens"):
            read(*unsure)
    null = [{"token": None, "logprob": -1.0}], [{"token": "yes", "logprob": None}], [{"token": "yes", "logprob": 0.5}]
    for bad in (
        None,
        {},
        [],
        {"content": []},
        {"content": [{"token": "yes"}]},
        {"content": None},
        {"content": [None]},
        *({"content": [{**top[0], "top_logprobs": each}]} for each in (*null, None, [None], {"yes": -1})),
    ):
        with pytest.raises(Unreadable, match="log-probabilities"):
            YesNo("yes-no").read(choice("yes", logprobs=bad))


def test_json_is_held_to_its_schema() -> None:
    reader = template.load("json-score").read
    assert isinstance(reader, Json)
    held = reader.request()["response_format"]["json_schema"]
    assert held["strict"] and held["schema"]["required"] == ["reason", "score"]
    for text in ('{"reason": "{}", "score": 7.5}', '```json\n{"score": 7.5, "reason": ""}\n```'):
        assert reader.read(choice(text)) == 0.75
    for bad in (
        '{"score": "7"}',
        '{"score": true}',
        '{"score": 11}',
        '{"score": NaN}',
        '{"reason": ""}',
        "7",
        '{"score',
        '{"score": 3, "score": 9}',
        f'{{"score": {"9" * 400}}}',
        "[" * 100_000,
    ):
        with pytest.raises(Unreadable):
            reader.read(choice(bad))
    assert reader.read(choice('<think>{"score": 1}</think>{"score": 9} {well}')) == 0.9
