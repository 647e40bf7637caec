"""The memory of one episode: what was done, what came of it, and the verifier's verdicts (AgentFlow, arXiv:2510.05592).

The planner's prompt shows all of it, rendered anew each turn. If the prompt is too long, the oldest results are
shortened first, then dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

SHORT = 160  # characters of a shortened result
CUT = " ... (shortened)"


@dataclass(frozen=True)
class Entry:
    """One turn as the memory keeps it: no justification of the planner, no thoughts of the executor."""

    turn: int  # counts from 1
    tool: str  # empty if the plan could not be read
    goal: str
    command: str  # the tool's input as text
    result: str
    verdict: str = ""  # what the verifier said afterwards


@dataclass(frozen=True)
class Memory:
    """The entries of an episode, oldest first. Immutable, so that two episodes cannot share one."""

    entries: tuple[Entry, ...] = ()
    shortened: int = 0  # entries whose results are shortened here
    dropped: int = 0  # oldest entries that are left out here

    def __len__(self) -> int:
        return len(self.entries)

    def with_entry(self, entry: Entry) -> Memory:
        return replace(self, entries=(*self.entries, entry))

    def judged(self, verdict: str) -> Memory:
        """With the verifier's words on the last entry."""
        *before, last = self.entries
        return replace(self, entries=(*before, replace(last, verdict=verdict)))

    def versions(self) -> Iterator[Memory]:
        """The memory, then shorter and shorter ones: oldest results shortened one by one, then dropped one by one."""
        yield self
        entries, long = list(self.entries), [len(entry.result) > SHORT + len(CUT) for entry in self.entries]
        for number, entry in enumerate(self.entries):
            if long[number]:
                entries[number] = replace(entry, result=entry.result[:SHORT] + CUT)
                yield Memory(tuple(entries), sum(long[: number + 1]))
        for number in range(1, len(entries) + 1):
            yield Memory(tuple(entries[number:]), sum(long[number:]), number)

    @property
    def note(self) -> str:
        """What the reader of a prompt should know: empty if nothing is missing."""
        if self.dropped:
            steps = "step 1 is" if self.dropped == 1 else f"steps 1 to {self.dropped} are"
            later = ", and long results of later steps are shortened" if self.shortened else ""
            return f"the memory is too long: {steps} left out{later}"
        if self.shortened:
            results = "1 old result is" if self.shortened == 1 else f"{self.shortened} old results are"
            return f"the memory is too long: {results} shortened"
        return ""
