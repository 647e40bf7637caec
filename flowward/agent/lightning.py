"""An agent for Agent Lightning 1.0, which trains the planner with verl and vLLM on many machines.

Agent Lightning starts `flowward.agent.lightning:Agent` once per episode, as a process or a Kubernetes job, and tells it
by environment variables what to do. The planner's requests go through its gateway, which records token ids and
log-probabilities; the other modules and the tools are asked directly. At the end the agent posts the reward.

None of its packages is imported: all of it is HTTP. docs/notes/agent_trainers.md has the settings of a run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..system.asking import Server, ServiceError
from ..system.jobs import attempted
from .chat import AGAIN
from .external import Setup, metadata_of, planner_on, played, scored, setup_of

GATEWAY, EVENTS, KEY = "AGL_OPENAI_BASE_URL", "AGL_EVENT_URL", "AGL_KEY"  # set by Agent Lightning's controller
QUESTION, METADATA, AGENT = "QUESTION", "METADATA", "FLOWWARD_AGENT"  # set by the user's env_map or job template


class Agent:
    """One episode: the question from the environment, the reward to the gateway.

    | variable | meaning | set by |
    | --- | --- | --- |
    | AGL_OPENAI_BASE_URL | the gateway's address for this episode | Agent Lightning |
    | AGL_EVENT_URL | where the reward is posted | Agent Lightning |
    | AGL_KEY | key of both, may be empty | Agent Lightning |
    | FLOWWARD_AGENT | a settings file (.yaml), or `package.module:function` that returns a Setup | you |
    | QUESTION | the question | you, from `input` |
    | METADATA | JSON object for the reward, such as {"answer": "42"} | you, from `input` |

    Args:
        build: makes the agent; without it, FLOWWARD_AGENT names what does.
        patience: seconds to wait for the gateway while it does not answer, for example during an update.
    """

    def __init__(self, build: Callable[[], Setup] | None = None, patience: float = 900.0):
        self.build, self.patience = build, patience

    def run(self) -> float:
        """Run the episode, post the reward, and return it.

        Raises:
            ValueError: a variable is missing or invalid.
            ServiceError: a server's failure ended the episode. No reward is posted, and Agent Lightning counts the
                rollout as failed.
        """
        question, events = _variable(QUESTION), _variable(EVENTS)
        metadata = metadata_of(os.environ.get(METADATA) or "{}")
        setup = self.build() if self.build else setup_of(_variable(AGENT))
        planner = planner_on(
            f"{_variable(GATEWAY)}#planner",  # the gateway knows which model it is, and sets the temperature
            temperature=1.0,
            max_tokens=setup.system.limits.max_tokens,
            meet=False,
            key_variable=KEY,
            timeout=self.patience,
            patience=self.patience,
        )
        episode = played(setup, question, planner)
        if episode.failed:
            raise ServiceError(f"the episode is lost: {episode.why}")
        reward = scored(setup, episode, metadata)
        self._post(events, reward)
        return reward

    def _post(self, events: str, reward: float) -> None:
        """Posted again after a failure: the last reward of an episode counts."""
        server = Server(events, 60.0, os.environ.get(KEY) or None, again=AGAIN)
        body = {"event_type": "reward", "data": {"value": reward, "source": "agent"}}

        def post(_: str) -> None:
            server.ask("POST", "", json=body)

        (posted,) = attempted(post, [events], 1, self.patience, lambda _: "posting the reward")
        if isinstance(posted, ServiceError):
            raise posted


def _variable(name: str) -> str:
    if not (found := os.environ.get(name)):
        source = "Agent Lightning's controller sets it" if name in (GATEWAY, EVENTS) else "set it in env_map"
        raise ValueError(f"the environment variable {name} is missing; {source}")
    return found


def main() -> None:
    """`python -m flowward.agent.lightning`, for a job template."""
    try:
        Agent().run()
    except (ValueError, ServiceError) as error:
        sys.exit(f"flowward: {error}")


if __name__ == "__main__":
    main()
