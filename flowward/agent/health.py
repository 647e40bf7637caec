"""Health warnings of agents, in addition to those of every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..training.health import WINDOW, Health

WRONG = 0.1  # share of turns whose plan could not be used, or that were cut
ONE_TURN = 0.98  # share of episodes that end after their first turn
IDLE = 0.5  # share of turns without a tool
FAR = 0.5  # KL in nats per token, from which a jump is told
JUMP = 4.0  # KL / its recent median
APART = 0.05  # nats per token between a server's log-probabilities and those of training
APART_RATIO = 0.1  # mean probability ratio between them - 1
LONGER = 2.0  # answer tokens / their first value


@dataclass
class AgentHealth(Health):
    """The rules of agents."""

    first_tokens: float | None = None
    kls: list[float] = field(default_factory=list)

    def check(self, m: Mapping[str, float]) -> list[str]:
        """The warnings for an iteration's metrics; usually none."""
        if self.first_tokens is None:
            self.first_tokens = m.get("answer_tokens")
        return [*super().check(m), *self._behaviour(m)]

    def _behaviour(self, m: Mapping[str, float]) -> Iterator[str]:
        if failed := m.get("end/failed", 0.0):
            yield (
                f"{failed:.0%} of the episodes were lost because a server did not answer: they are left out; look at "
                "the servers of executor, verifier and generator, or raise --patience"
            )
        unread = sum(m.get(f"trouble/{name}", 0.0) for name in ("empty", "unreadable", "tool", "arguments"))
        if unread > WRONG:
            yield (
                f"{unread:.0%} of the turns had a plan that could not be used (no tool, an unknown tool, or wrong "
                "arguments): read some in episodes.jsonl, and make the planner's prompt clearer"
            )
        if m.get("trouble/error", 0.0) > WRONG:
            yield f"{m['trouble/error']:.0%} of the turns ended in an error of a tool: read some in episodes.jsonl"
        if m.get("cut", 0.0) > WRONG:
            yield f"{m['cut']:.0%} of the planner's answers were cut at the limit of tokens: raise --max-tokens"
        if m.get("one_turn", 0.0) > ONE_TURN and m.get("end/stopped", 0.0) > ONE_TURN:
            yield (
                "all episodes end after one turn: look at the verifier; if it is right, the questions need no planning"
            )
        if m.get("end/turns", 0.0) > ONE_TURN:
            yield (
                "the verifier ended no episode, so all ran to --max-turns: look at the verifier, or raise --max-turns"
            )
        if m.get("undecided", 0.0) > WRONG:
            yield (
                f"{m['undecided']:.0%} of the verifier's answers said neither stop nor continue, which counts as "
                "continue: use a stronger model for --verifier, or change its prompt"
            )
        if m.get("tool/none", 0.0) > IDLE:
            yield (
                f"{m['tool/none']:.0%} of the turns use no tool: lower the learning rate, or raise "
                "--algorithm.beta, and check that the tools work"
            )
        kl = m.get("kl", 0.0)
        if len(self.kls) >= 5 and kl > max(FAR, JUMP * median(self.kls)):
            yield (
                f"the planner is running away from its start (KL {kl:.2g} nats per token, recent median "
                f"{median(self.kls):.2g}): lower the learning rate, or raise --algorithm.beta"
            )
        self.kls = [*self.kls, kl][-WINDOW:]
        if m.get("server_gap_mean", 0.0) > APART or abs(m.get("server_gap_ratio", 1.0) - 1) > APART_RATIO:
            yield (
                f"the server's log-probabilities differ from those of training by {m['server_gap_mean']:.2g} nats per "
                "token: check that it runs the same model, precision and temperature, or use --correct 2"
            )
        if self.first_tokens and m.get("answer_tokens", 0.0) > LONGER * self.first_tokens + 8:
            yield (
                f"the planner's answers are {m['answer_tokens'] / self.first_tokens:.1f} times as long as at the "
                "start: raise --algorithm.beta, or lower --max-tokens"
            )
        if (less := max(m.get("shortened", 0.0), m.get("dropped", 0.0))) > WRONG:
            yield (
                f"{less:.0%} of the prompts show a shortened memory: lower --max-result, "
                "or use a model with a longer context"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "first_tokens": self.first_tokens, "kls": list(self.kls)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.first_tokens, self.kls = state["first_tokens"], list(state["kls"])
