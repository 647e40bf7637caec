"""Figures of episodes: how they end, which tools are used when, what goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..system import distributed
from .episode import ENDS, TROUBLES, Episode, Turn


def counts(episodes: Sequence[Episode]) -> dict[str, float]:
    """Counts over the episodes of this process, which can be added over processes.

    Keys: episodes, turns, end/NAME, tool/NAME, tool@TURN/NAME, trouble/NAME, cut, undecided, shortened, dropped,
    answer_tokens, prompt_tokens, first (episodes that ended after one turn).
    """
    found: Counter[str] = Counter(dict(_counted(episodes)))
    return dict(found)


def _counted(episodes: Sequence[Episode]) -> Iterator[tuple[str, float]]:
    played = [episode for episode in episodes if not episode.failed]
    turns = [turn for episode in played for turn in episode.turns]
    yield "episodes", len(episodes)
    yield "turns", len(turns)
    for end in ENDS:
        yield f"end/{end}", sum(episode.end == end for episode in episodes)
    yield "first", sum(len(episode.turns) == 1 for episode in played)
    for trouble in TROUBLES:
        yield f"trouble/{trouble}", sum(turn.trouble == trouble for turn in turns)
    yield "cut", sum(not turn.said.complete for turn in turns)
    yield "undecided", sum(turn.verdict is not None and not turn.verdict.decided for turn in turns)
    yield "shortened", sum(turn.shortened > 0 for turn in turns)
    yield "dropped", sum(turn.dropped > 0 for turn in turns)
    yield "answer_tokens", sum(len(turn.said.ids) for turn in turns)
    yield "prompt_tokens", sum(len(turn.prompt) for turn in turns)
    yield from Counter(f"tool/{_tool(turn)}" for turn in turns).items()
    yield from Counter(
        f"tool@{number}/{_tool(turn)}" for episode in played for number, turn in enumerate(episode.turns, 1)
    ).items()
    yield from Counter(f"used/{name}" for episode in played for name in {_tool(turn) for turn in episode.turns}).items()


def _tool(turn: Turn) -> str:
    return turn.plan.tool if turn.plan else "none"


def shares(counted: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an iteration from counts of all processes: shares of episodes or turns, and means per turn."""
    episodes, turns = counted["episodes"], max(1.0, counted["turns"])
    played = max(1.0, episodes - counted["end/failed"])
    found = {"turns": counted["turns"] / played, "one_turn": counted["first"] / played}
    found |= {name: counted[name] / episodes for name in counted if name.startswith("end/")}
    found |= {name: counted[name] / turns for name in counted if name.startswith(("tool/", "trouble/"))}
    found |= {name: counted[name] / turns for name in ("cut", "undecided", "shortened", "dropped")}
    found |= {name: counted[name] / turns for name in ("answer_tokens", "prompt_tokens")}
    return found


def behaviour(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What evaluations record beside scores, over all processes.

    `tools` has the share of each tool by turn number, `used` the share of episodes that use a tool at all.
    """
    counted = distributed.merged(counts(episodes))
    metrics = shares(counted)
    played = max(1.0, counted["episodes"] - counted["end/failed"])
    by_turn: dict[str, dict[str, float]] = {}
    for key in sorted(each for each in counted if each.startswith("tool@")):
        turn, _, tool = key.removeprefix("tool@").partition("/")
        by_turn.setdefault(turn, {})[tool] = counted[key]
    tools = {
        turn: {tool: count / sum(own.values()) for tool, count in own.items()} | {"n": sum(own.values())}
        for turn, own in sorted(by_turn.items(), key=lambda each: int(each[0]))
    }
    return {
        "turns": metrics["turns"],
        "ends": {name.removeprefix("end/"): value for name, value in metrics.items() if name.startswith("end/")},
        "tools": tools,
        "used": {
            name.removeprefix("used/"): counted[name] / played for name in sorted(counted) if name.startswith("used/")
        },
        "troubles": {name.removeprefix("trouble/"): metrics[name] for name in metrics if name.startswith("trouble/")},
        **{name: metrics[name] for name in ("cut", "undecided", "shortened", "dropped", "answer_tokens")},
    }
