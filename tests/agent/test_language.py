"""The planner's language model: what it samples is what it trains, and batches do not matter."""

import math
from pathlib import Path

import pytest
import torch
from tiny_language import folder, language

from flowward.agent.episode import Episode, Said, Turn
from flowward.agent.language import Language, drawn
from flowward.agent.points import Trace, Turns
from flowward.system.streams import generator

PROMPTS = [(2, 8, 9, 3), (2, 10, 3), (2, 8, 8, 9, 10, 11, 12, 3), (2, 20, 3), (2, 15, 16, 3)]


def uniforms(count: int, most: int) -> list[torch.Tensor]:
    return [torch.rand(most, dtype=torch.float64, generator=generator("test", k)) for k in range(count)]


def points(prompts: list[tuple[int, ...]], said: list[Said]) -> Turns:
    episodes = [Episode("", (Turn(own, each),), "", "stopped") for own, each in zip(prompts, said, strict=True)]
    return Turns(Trace.of(episodes, range(len(episodes))), torch.ones(len(episodes), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probabilities_are_those_that_training_computes(kind: str, temperature: float) -> None:
    model = language(kind)
    said = model.sample("policy", PROMPTS, uniforms(5, 12), temperature, 12)
    batch = points(PROMPTS, said).take(torch.arange(5))
    again = model.log_probs("policy", batch, temperature)
    assert (again - batch.known["old"]).abs().max() < 1e-5
    assert ((batch.answer < 0) == (again == 0)).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model, draws = language(), uniforms(5, 20)
    together = model.sample("policy", PROMPTS, draws, 1.0, 20)
    for k, prompt in enumerate(PROMPTS):
        (alone,) = model.sample("policy", [prompt], [draws[k]], 1.0, 20)
        assert alone.ids == together[k].ids
        assert alone.log_probs == pytest.approx(together[k].log_probs, abs=1e-5)
    batch = points(PROMPTS, together)
    whole = model.log_probs("policy", batch.take(torch.arange(5)), 1.0)
    for k in range(5):
        own = model.log_probs("policy", batch.take(torch.tensor([k])), 1.0)[0]
        assert (own - whole[k, : len(own)]).abs().max() < 1e-5


def test_answers_end_at_the_end_token_or_at_the_limit() -> None:
    said = language().sample("policy", PROMPTS * 6, uniforms(30, 6), 1.0, 6)
    assert {len(each.ids) for each in said} > {6}  # some ended before
    for each in said:
        assert each.complete == (each.ids[-1] == 1)
        assert 1 not in each.ids[:-1]
        assert len(each.ids) == len(each.log_probs) <= 6
        assert each.complete or len(each.ids) == 6


def test_temperature_0_takes_the_likeliest_token() -> None:
    model = language()
    (said,) = model.sample("policy", [PROMPTS[0]], None, 0.0, 1)
    with model.weights.network("policy") as network:
        logits = network(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert said.ids == (int(logits.argmax()),)


def test_frequencies_are_the_probabilities() -> None:
    """Over 20,000 evenly spread numbers every token comes as often as its probability says, to 1 / 20,000."""
    log_p = torch.randn(1, 7, generator=generator("test", 1)).log_softmax(-1)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    found = torch.bincount(drawn(log_p.expand(20_000, -1), u), minlength=7) / 20_000
    assert (found - log_p.exp()[0]).abs().max() < 1e-4


def test_a_token_of_probability_0_is_never_drawn() -> None:
    log_p = torch.tensor([[-math.inf, 0.0, -math.inf, -math.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert drawn(log_p, torch.tensor([u], dtype=torch.float64)).tolist() == [1]


def test_only_the_policy_gets_a_gradient() -> None:
    model = language(adapters=4)
    model.weights.add("reference")
    batch = points(PROMPTS, model.sample("policy", PROMPTS, uniforms(5, 4), 1.0, 4)).take(torch.arange(5))
    assert model.log_probs("policy", batch, 1.0).requires_grad
    assert not model.log_probs("reference", batch, 1.0).requires_grad


def test_a_folder_of_transformers_is_loaded_with_its_end_token(tmp_path: Path) -> None:
    model = Language.load(str(folder(tmp_path / "m")), precision="float32")
    assert model.ends == (1,)
    assert model.decode(model.encode((("user", "a b c"),))) == "<user> a b c <go>"


def test_the_system_message_goes_before_the_users_text_if_the_template_has_no_place_for_it(tmp_path: Path) -> None:
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }} <go>"
    )
    model = Language.load(str(folder(tmp_path / "m", template=refuses)), precision="float32")
    assert model.decode(model.encode((("system", "a"), ("user", "b c")))) == "a b c <go>"


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chat template: use an instruction-tuned model"):
        Language.load(str(folder(tmp_path / "m", template=None)), precision="float32")


def test_a_context_without_room_for_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"context of 256 tokens.*lower --max-tokens"):
        language().reader(256)
    assert language().reader(200).room == 56
    assert language().reader(100, max_prompt=30).room == 30
