"""An agent of Agent Lightning: planner through the gateway, the other modules elsewhere, one reward at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agents_by_hand import QUESTION, plans, setup
from chat_servers import Respond, chat, chatting
from local_servers import Answer, reply, scripted

from flowward.agent import lightning
from flowward.agent.chat import ChatModel
from flowward.agent.lightning import Agent
from flowward.system.asking import ServiceError

pytestmark = pytest.mark.usefixtures("hasty")


@dataclass
class Gateway:
    """What agentlightning 1.0.2 serves to an agent (server/routes/proxy.py and events.py)."""

    respond: Respond = plans
    requests: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    lost: int = 0  # answers to posted events that get lost on the way

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        self.keys.add(headers.get("Authorization"))
        if path == "/proxy/rollout/r1/attempt/0/mode/train/openai/v1/chat/completions":
            self.requests.append(json.loads(body))
            return self.respond(self.requests[-1])
        if path == "/api/rollouts/r1/attempt/0/events":
            self.events.append(json.loads(body))
            if self.lost:
                self.lost -= 1
                return None
            return reply(self.events[-1] | {"rollout_id": "r1", "attempt_id": "0", "timestamp": 1.0})
        return reply({"detail": "Not Found"}, 404)


@contextmanager
def lightning_strikes(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Gateway]:
    """A gateway, and the environment of an episode."""
    gateway = Gateway(**options)
    with scripted(gateway) as at:
        for name, value in {
            "AGL_OPENAI_BASE_URL": f"{at}/proxy/rollout/r1/attempt/0/mode/train/openai/v1",
            "AGL_EVENT_URL": f"{at}/api/rollouts/r1/attempt/0/events",
            "AGL_KEY": "key",
            "QUESTION": QUESTION,
            "METADATA": json.dumps({"answer": "blue"}),
            "FLOWWARD_AGENT": "agents_by_hand:setup",
        }.items():
            monkeypatch.setenv(name, value)
        yield gateway


def test_an_episode_and_its_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    with lightning_strikes(monkeypatch) as gateway:
        assert Agent().run() == 1.0
    first, second = gateway.requests
    assert QUESTION in first["messages"][-1]["content"] and "blue" not in first["messages"][-1]["content"]
    assert "blue" in second["messages"][-1]["content"]  # the prompt is rendered anew, with the memory
    assert [message["role"] for message in second["messages"]] == ["system", "user"]
    neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert neutral.items() <= first.items() and first["max_tokens"] == 32 and "stream" not in first
    assert gateway.events == [{"event_type": "reward", "data": {"value": 1.0, "source": "agent"}}]
    assert gateway.keys == {"Bearer key"}


def test_an_agent_from_a_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The built-in tools and rules; its planner asks the calculator, and the last result is the answer."""
    settings = {"tools": ["calculator"], "executor": "rule", "verifier": "rule", "generator": "rule", "planner": "chat"}
    file = tmp_path / "agent.yaml"
    file.write_text(json.dumps({**settings, "reward": ["number=2", "exact"], "limits": {"max_turns": 1}}))
    with lightning_strikes(monkeypatch, respond=lambda _: chat("Tool: calculator\nInput: 6 * 7")) as gateway:
        monkeypatch.setenv("FLOWWARD_AGENT", str(file))
        monkeypatch.setenv("METADATA", json.dumps({"answer": "42"}))
        assert Agent().run() == 3.0
        assert len(gateway.requests) == 1 and gateway.events[0]["data"]["value"] == 3.0
        file.write_text(json.dumps(settings | {"executor": "same"}))
        with pytest.raises(ValueError, match="'same' needs the planner in this process"):
            Agent().run()


def test_a_wrong_answer_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with lightning_strikes(monkeypatch, respond=lambda _: chat("Tool: answer\nInput: red")) as gateway:
        assert Agent(setup).run() == 0.0
    assert gateway.events[0]["data"]["value"] == 0.0 and isinstance(gateway.events[0]["data"]["value"], float)


def test_fixed_modules_are_asked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting(lambda _: chat("Enough.\nDecision: STOP")) as (at, asked), lightning_strikes(monkeypatch) as gateway:
        Agent(lambda: setup(ChatModel(at))).run()
    assert len(asked) == 1 and len(gateway.requests) == 1
    assert gateway.events[0]["data"]["value"] == 1.0  # the last result is the colour


def test_a_pause_of_the_gateway_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = [reply({"error": "gateway paused"}, 429, **{"Retry-After": "0.05"}), reply({}, 502), None]

    def respond(request: dict[str, Any]) -> Answer | None:
        return paused.pop(0) if paused else plans(request)

    with lightning_strikes(monkeypatch, respond=respond, lost=1) as gateway:
        assert Agent().run() == 1.0
    assert len(gateway.requests) == 2 + 3
    assert [event["data"]["value"] for event in gateway.events] == [1.0, 1.0]  # the last one counts


def test_an_episode_that_a_server_ended_has_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = lambda _: reply({"detail": "out of memory"}, 500)  # noqa: E731
    with lightning_strikes(monkeypatch, respond=gone) as gateway:
        with pytest.raises(ServiceError, match=r"the episode is lost: asking the planner: gave up after 0.2 s"):
            Agent(patience=0.2).run()
        assert gateway.events == []
        monkeypatch.setattr(lightning, "setup_of", lambda name: setup())
        monkeypatch.setattr(Agent.__init__, "__defaults__", (None, 0.2))
        with pytest.raises(SystemExit, match="flowward: the episode is lost"):
            lightning.main()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("QUESTION", None, "the environment variable QUESTION is missing; set it in env_map"),
        ("AGL_EVENT_URL", None, "AGL_EVENT_URL is missing; Agent Lightning's controller sets it"),
        ("AGL_OPENAI_BASE_URL", "", "AGL_OPENAI_BASE_URL is missing"),
        ("METADATA", "[1]", "METADATA must be a JSON object"),
        ("METADATA", "{", "METADATA must be a JSON object"),
        ("FLOWWARD_AGENT", "agents_by_hand", "give the function or class in agents_by_hand as well"),
        ("FLOWWARD_AGENT", "agents_by_hand:nobody", "has no function 'nobody'"),
        ("FLOWWARD_AGENT", "agents_by_hand:not_a_setup", "must return a Setup .*, not int"),
    ],
)
def test_what_the_environment_lacks(
    name: str, value: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lightning_strikes(monkeypatch) as gateway:
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=sentence):
            Agent().run()
    assert gateway.requests == gateway.events == []


def test_a_reward_that_is_no_number_is_not_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    with lightning_strikes(monkeypatch) as gateway:
        broken = replace(setup(), reward=lambda *_: [float("nan")])
        with pytest.raises(ValueError, match="is nan, not a finite number"):
            Agent(lambda: broken).run()
    assert gateway.events == []
