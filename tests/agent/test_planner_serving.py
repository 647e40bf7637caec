"""A planner on a server: the ids and log-probabilities of the current adapter, whatever happens to the server."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from local_servers import free_port, reply, scripted
from sampling_servers import SamplingServer, log_softmax, reason, sampled

from flowward.agent.episode import Ask, Said
from flowward.agent.serving import ServedPlanner, gap, truncated_weight
from flowward.system.asking import ServiceError

pytestmark = pytest.mark.usefixtures("hasty")
KINDS = ("vllm", "sglang")
ASKS = [Ask("planner", "planner", (), (number + 1, 7), turn=number) for number in range(6)]
SEEDS = [100 + number for number in range(6)]


@contextmanager
def planner(kind: str = "vllm", port: int = 0, **options: Any) -> Iterator[tuple[ServedPlanner, SamplingServer]]:
    """A planner (`options` of ServedPlanner) and the server that it samples on (options with `on_`)."""
    mine = {name[3:]: options.pop(name) for name in list(options) if name.startswith("on_")}
    server = SamplingServer(kind, **mine)
    with scripted(server, port) as at:
        yield ServedPlanner(at, **({"max_tokens": 5, "temperature": 0.7, "patience": 30.0} | options)), server


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    return tmp_path


def expected(seed: int) -> Said:
    ids, likely = sampled(seed, 0.7, 5), log_softmax(0.7)
    return Said(" ".join(map(str, ids)), tuple(ids), tuple(likely[each] for each in ids), reason(ids) == "stop")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_log_probabilities_of_each_seed_in_order(kind: str) -> None:
    with planner(kind) as (served, server):
        served.refuse()
        answers = served.draw(ASKS, SEEDS)
        assert answers == [expected(seed) for seed in SEEDS]
        assert {len(answer.ids) for answer in answers if isinstance(answer, Said)} != {5}  # some end by themselves
        assert served.draw(ASKS[3:], SEEDS[3:]) == answers[3:]
        assert served.draw([], []) == []
    prompts = sorted(sent["prompt" if kind == "vllm" else "input_ids"] for sent in server.drawn[2:8])
    assert prompts == [list(ask.ids) for ask in ASKS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_says_all_that_changes_the_distribution(kind: str) -> None:
    with planner(kind) as (served, server):
        served.draw(ASKS[:1], SEEDS[:1])
        served.draw(ASKS[:1], SEEDS[:1], temperature=0.0)
    first, greedy = server.drawn
    plain = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    plain |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    if kind == "vllm":
        wanted = {"model": "base", "prompt": [1, 7], "max_tokens": 5, "seed": 100, "logprobs": 0}
        assert first == {**wanted, "return_token_ids": True, "temperature": 0.7, **plain}
        assert greedy["temperature"] == 0.0
        return
    assert first["sampling_params"] == {"temperature": 0.7, "max_new_tokens": 5, "sampling_seed": 100, **plain}
    assert (first["input_ids"], first["return_logprob"], "lora_path" in first) == ([1, 7], True, False)
    assert greedy["sampling_params"]["temperature"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_each_update_has_an_adapter_of_its_own(kind: str, adapter: Path) -> None:
    with planner(kind) as (served, server):
        for iteration in range(3):
            served.use(adapter, f"iteration-{iteration}")
            assert len(server.adapters) == 1  # the one before is unloaded
            served.draw(ASKS[:1], SEEDS[:1])
        assert served.draw(ASKS, SEEDS) == [expected(seed) for seed in SEEDS]
        again = ServedPlanner(served.address, max_tokens=5, temperature=0.7)
        again.use(adapter, "iteration-0")  # another run on the same server
    names = [name for name, _ in server.loads]
    assert len(set(names)) == 4 and [name.startswith("iteration-") for name in names] == [True] * 4
    assert {path for _, path in server.loads} == {str(adapter)}
    key = "model" if kind == "vllm" else "lora_path"
    assert [sent[key] for sent in server.drawn[:3]] == names[:3]


def test_a_name_is_used_once_and_a_folder_has_an_adapter(adapter: Path, tmp_path: Path) -> None:
    with planner() as (served, server):
        served.use(adapter, "0")
        with pytest.raises(ValueError, match="the adapter name '0' was used before"):
            served.use(adapter, "0")
        with pytest.raises(ValueError, match=r"has no adapter_config.json, so it is no adapter"):
            served.use(tmp_path / "nothing", "1")
        assert len(server.loads) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_cannot_load_adapters_is_refused(kind: str, adapter: Path) -> None:
    with planner(kind, on_lora=False) as (served, _):
        with pytest.raises(ValueError, match=r"answered 40\d: .*; start (vLLM|SGLang) with .*--enable-lora"):
            served.use(adapter, "0")
        assert served.draw(ASKS[:1], SEEDS[:1]) == [expected(SEEDS[0])]  # the base model stays


def test_a_load_whose_answer_is_lost_has_happened(adapter: Path) -> None:
    with planner(on_lost=1) as (served, server):
        served.use(adapter, "0")
        assert served.draw(ASKS, SEEDS) == [expected(seed) for seed in SEEDS]
    assert len(server.loads) == 1 and server.drawn[0]["model"] == server.loads[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_was_restarted_gets_the_adapter_again(
    kind: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with planner(kind) as (served, server):
        served.use(adapter, "0")
        server.adapters.clear()
        assert served.draw(ASKS, SEEDS) == [expected(seed) for seed in SEEDS]
        assert [name for name, _ in server.loads] == [server.loads[0][0]] * 2
    assert capsys.readouterr().err.count("it is loaded again") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_waited_for(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    aborted = {"choices": [{"text": "", "token_ids": [], "logprobs": {"token_logprobs": []}, "finish_reason": "abort"}]}
    aborted |= {"text": "", "meta_info": {"finish_reason": {"type": "abort"}, "output_token_logprobs": []}}
    troubles = [
        None, reply({"error": "busy"}, 429, **{"Retry-After": "0.05"}), reply({}, 500), reply(b"{broken"),
        reply({"choices": []}), reply([]), reply(aborted), reply({"meta_info": {"output_token_logprobs": [3]}}),
    ]  # fmt: skip
    with planner(kind, on_troubles=troubles, concurrency=2) as (served, server):
        assert served.draw(ASKS, SEEDS) == [expected(seed) for seed in SEEDS]
    assert not server.troubles and len(server.drawn) == len(ASKS) + 8
    assert capsys.readouterr().err.count("waiting for") == 1


def test_a_server_that_is_gone_for_a_while(adapter: Path) -> None:
    port, found = free_port(), list[Any]()
    with planner(port=port, concurrency=2) as (served, _):
        served.use(adapter, "0")
    thread = threading.Thread(target=lambda: found.extend(served.draw(ASKS, SEEDS)))
    thread.start()
    time.sleep(0.2)
    with scripted(SamplingServer("vllm"), port):
        thread.join()
    assert found == [expected(seed) for seed in SEEDS]


def test_a_refusal_fails_alone_and_patience_ends() -> None:
    with planner(on_troubles=[reply({"error": {"message": "too long"}}, 400)], concurrency=1) as (served, server):
        first, *others = served.draw(ASKS, SEEDS)
        assert isinstance(first, ServiceError) and "answered 400: too long" in str(first)
        assert others == [expected(seed) for seed in SEEDS[1:]]
        served.patience = 0.2
        server.troubles = [server.sample(server.drawn[0]), *[reply({}, 500)] * 1000]
        answered, *late = served.draw(ASKS, SEEDS)
    assert isinstance(answered, Said) and all(isinstance(each, ServiceError) for each in late)
    assert "sampling turn" in str(late[0]) and "gave up after 0.2 s" in str(late[0])


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_without_the_temperature_are_refused(kind: str) -> None:
    with planner(kind, on_raw=True) as (served, _):
        with pytest.raises(ValueError, match=r"without the temperature 0.7; start .*(processed_logprobs|ORIGINAL)"):
            served.refuse()
        served.temperature = 1.0  # then both are the same
        served.refuse()


def test_a_model_that_is_certain_says_nothing_about_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampling_servers.LOGITS", (50.0, 0.0, 0.0, 0.0))
    with planner(on_raw=True) as (served, _):
        served.refuse()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_without_ids_are_refused(kind: str) -> None:
    with planner(kind, on_ids=False) as (served, _):
        with pytest.raises(ValueError, match=r"answers have no (token ids|log-probabilities)"):
            served.refuse()
        assert all(isinstance(each, ServiceError) for each in served.draw(ASKS, SEEDS))


def test_which_server_and_model_it_is() -> None:
    with scripted(SamplingServer("vllm", owner="me")) as at:
        with pytest.raises(ValueError, match=r"cannot tell whether .* is vLLM or SGLang"):
            ServedPlanner(at)
        assert ServedPlanner(f"{at}/v1#base", kind="vllm").draw(ASKS[:1], [0])
        with pytest.raises(ValueError, match="unknown planner server model 'other'"):
            ServedPlanner(at, kind="vllm", model="other")
        with pytest.raises(ValueError, match="unknown kind of server 'tgi'"):
            ServedPlanner(at, kind="tgi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no planner server answers"):
        ServedPlanner(at)
    with planner() as (served, _), pytest.raises(ValueError, match="no token ids; give the system a reader"):
        served.draw([Ask("planner", "planner", ())], [0])


def test_the_gap_by_hand() -> None:
    nan = math.nan
    recomputed = torch.tensor([[-1.0, -2.0, nan], [-0.5, 3.0, 0.0]])
    served = torch.tensor([[-1.0, -2.5, 0.0], [-1.5, nan, -9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = gap(recomputed, served, mask)
    assert found["mean"] == pytest.approx((0 + 0.5 + 1.0) / 3) and found["max"] == pytest.approx(1.0)
    assert found["ratio"] == pytest.approx((1 + math.exp(0.5) + math.e) / 3)
    assert gap(recomputed, served, mask * 0) == {"mean": 0.0, "max": 0.0, "ratio": 1.0}
    weight = truncated_weight(recomputed.requires_grad_(), served, mask, cap=2.0)
    wanted = torch.tensor([[1.0, math.exp(0.5), 1.0], [2.0, 1.0, 1.0]])
    assert torch.allclose(weight, wanted) and not weight.requires_grad
    with pytest.raises(ValueError, match=r"the cap of importance weights must be at least 1, not 0.5"):
        truncated_weight(recomputed, served, mask, cap=0.5)


def test_the_mean_weight_of_what_a_server_samples_is_one() -> None:
    """Over tokens of the server's distribution the untruncated weight has mean 1: sum of q (p / q)."""
    p, q = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0]), 0), torch.log_softmax(torch.tensor([0.8, 0.1, -1.1]), 0)
    ones = torch.ones(1, 3)
    assert (q.exp() * truncated_weight(p[None], q[None], ones, cap=100.0)[0]).sum().item() == pytest.approx(1.0)
