"""Drawers and rewards in Ray actors (`--rollouts ray`): on the cluster of RAY_ADDRESS, or on this machine.

Ray starts processes, carries tensors and restarts an actor that has died once. It is imported only here, by those who
ask for it: pip install flowward[ray].
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ... import models, rewards
from ...models import Adapters, Loading
from ...process.policy import Policy
from ...process.rollout import Sampling
from ...rewards import Reward
from ...system import distributed
from ...system.distributed import Deserted
from ..run import Run
from .cluster import ADDRESS, Cluster, refuse_missing
from .drawers import Block, LocalDrawer, Sheet, Studio
from .packing import packed, unpacked

LOCK = threading.Lock()  # of counts that several threads change


@dataclass(frozen=True)
class Model:
    """What a drawer loads: the model of the run, without the weights that are trained."""

    name: str
    precision: Any
    seed: int
    loading: Loading
    adapters: Adapters | None
    rollout: Sampling
    run: Run
    threads: int  # of the CPU, as many as the trainer has: sums depend on them

    @classmethod
    def of(cls, policy: Policy, adapters: Adapters | None, rollout: Sampling, run: Run) -> Model:
        """The same model as this one. A CUDA device is whichever Ray gives to the drawer."""
        loading = policy.loading or Loading()
        if policy.device.type == "cuda":
            loading = replace(loading, device="auto")
        threads = torch.get_num_threads()
        return cls(policy.name, policy.precision, run.seed, loading, adapters, rollout, run, threads)

    def load(self) -> LocalDrawer:
        """Raises ValueError if it cannot be loaded."""
        torch.set_num_threads(self.threads)
        policy = models.load(self.name, None, self.precision, self.seed, self.loading, self.adapters)
        policy.prepare([])  # the empty prompt; others come encoded
        return LocalDrawer(policy, self.rollout, self.run)


class DrawingActor:
    """The process of one drawer. It loads its model when it is first asked, and again after it has died."""

    def __init__(self, model: Model):
        self._model = model
        self._drawer: LocalDrawer | None = None
        self._version: int | None = None

    def _loaded(self) -> LocalDrawer:
        self._drawer = self._drawer or self._model.load()
        return self._drawer

    def identity(self) -> dict[str, Any]:
        """That of the model."""
        return self._loaded().policy.identity

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def draw(self, version: int, weights: Sequence[Any], block: Any) -> Any:
        """The sheet of a block, packed. `weights` [1] has the reference of the version, fetched if it is a new one."""
        drawer = self._loaded()
        if version != self._version:
            import ray

            drawer.take(version, unpacked(ray.get(weights[0])))
            self._version = version
        return packed(drawer.draw(unpacked(block)))


class ScoringActor:
    """A process that scores images by some of the rewards of a run."""

    def __init__(self, names: Sequence[str], options: Sequence[str], threads: int):
        self._asked, self._threads = (names, options), threads
        self._rewards: dict[str, Reward] = {}

    def score(self, name: str, images: Any, prompts: Sequence[str], metadata: Any) -> tuple[Any, int]:
        """Scores [n], packed, and how many of them are missing."""
        if not self._rewards:
            torch.set_num_threads(self._threads)
            self._rewards = {each: reward for each, _, reward in rewards.terms(rewards.load(*self._asked))}
        reward = self._rewards[name]
        before = getattr(reward, "missing", 0)
        found = rewards.score(name, reward, unpacked(images), prompts, metadata)
        return packed(found), getattr(reward, "missing", 0) - before


class RayDrawer:
    """A drawer that is an actor."""

    def __init__(self, actor: Any, identity: Mapping[str, Any]):
        self._actor, self._own = actor, identity
        self._theirs = actor.identity.remote()  # and so it loads its model
        self._version, self._weights = -1, None

    def take(self, version: int, weights: Any) -> None:
        self._version, self._weights = version, weights

    def draw(self, block: Block) -> Sheet:
        """
        Raises:
            Deserted: the actor has died for the second time.
            ValueError: it cannot load the model, or has another one.
        """
        with answering("drawer"):
            import ray

            if self._theirs is not None:
                theirs, self._theirs = ray.get(self._theirs), None
                if other := [key for key in self._own if theirs.get(key) != self._own[key]]:
                    raise ValueError(
                        f"a drawer loads another model than the trainer (different {', '.join(other)}): all machines "
                        "need the same files"
                    )
            sheet: Sheet = unpacked(ray.get(self._actor.draw.remote(self._version, [self._weights], packed(block))))
            return sheet

    def close(self) -> None:
        """Kill the actor: it may be drawing."""
        import ray

        with suppress(Exception):
            ray.kill(self._actor)


class RayReward:
    """A reward whose images are scored by actors; see `Reward` for its attributes."""

    in_background = True

    def __init__(self, name: str, reward: Reward, actors: Sequence[Any], free: SimpleQueue[Any]):
        self.name, self.reward, self.at_once, self._free = name, reward, len(actors), free
        self.takes_videos = getattr(reward, "takes_videos", False)
        self.compares = getattr(reward, "compares", False)
        if hasattr(reward, "missing"):
            self.missing = 0

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """
        Raises:
            RewardError: the reward failed.
            Deserted: the actor has died for the second time.
        """
        import ray

        actor = self._free.get()
        try:
            with answering("reward actor"):
                asked = actor.score.remote(self.name, packed(images), list(prompts), metadata)
                scores, missing = ray.get(asked)
        finally:
            self._free.put(actor)
        if missing:
            with LOCK:
                self.missing += missing
        found: Tensor = unpacked(scores)
        return found


@contextmanager
def answering(who: str) -> Iterator[None]:
    """Inside, actors are asked; their errors become those that this process would have raised itself.

    Raises:
        Deserted: an actor has died for the second time.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayActorError as error:
        raise Deserted(
            f"a {who} has died, was started again, and has died again: look for the reason in Ray's logs of its "
            "machine (memory, GPU, network), then go on with --resume"
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from error
    except ray.exceptions.RayError as error:
        raise Deserted(f"a {who} does not answer: {' '.join(str(error).split())[:300]}") from error


@dataclass
class Actors:
    """The drawers and scorers of a run in Ray.

    Args:
        model: of the drawers.
        policy: the trainer's.
        drawers, scorers: how many.
        reward: the trainer's, which `scorers` load by `names` and `options`.
    """

    model: Model
    policy: Policy
    drawers: int
    scorers: int = 0
    reward: Reward | None = None
    names: Sequence[str] = ()
    options: Sequence[str] = ()
    cluster: Cluster | None = None

    def studio(self) -> Studio:
        """Start them.

        Raises:
            ValueError: Ray cannot be reached, or has too few GPUs.
        """
        cluster = self.cluster = Cluster(self.policy.device, self.drawers + self.scorers)
        made = [RayDrawer(cluster.actor(DrawingActor, self.model), self.policy.identity) for _ in range(self.drawers)]
        return Studio(made, lambda weights: cluster.put(packed(weights)), cluster.close)

    def rewards(self) -> dict[str, Reward]:
        """The rewards of the run, scored by actors; none without scorers. Call it after `studio`."""
        if not self.scorers or self.reward is None or self.cluster is None:
            return {}
        given = (self.names, self.options, self.model.threads)
        actors = [self.cluster.actor(ScoringActor, *given) for _ in range(self.scorers)]
        free: SimpleQueue[Any] = SimpleQueue()
        for actor in actors:
            free.put(actor)
        return {name: RayReward(name, reward, actors, free) for name, _, reward in rewards.terms(self.reward)}


def actors_of(settings: Any, policy: Policy, reward: Reward) -> Callable[[Run], Actors] | None:
    """The actors of this process for these settings (config.Settings), once the batch sizes are known; None without.

    Raises:
        ValueError: Ray is missing, or the settings do not go with drawing elsewhere.
    """
    how, processes = settings.drawing, distributed.teams()
    if how.rollouts == "here":
        return None
    refuse_missing()
    if settings.preferences:
        raise ValueError("preferences bring their images, so nothing is drawn: leave out --rollouts ray")
    if settings.layout.context_parallel > 1:
        raise ValueError(
            "--context-parallel shares samples among processes, and drawers draw whole ones: leave out one"
        )
    if processes > 1 and not os.environ.get(ADDRESS):
        raise ValueError(
            f"several processes share drawers through a Ray cluster: run `ray start --head`, and set {ADDRESS}=auto"
        )
    if how.reward_actors and not policy.medium.frames:
        raise ValueError(f"reward actors score images, but {policy.name} makes samples: leave out --reward-actors")
    if how.drawers < processes:
        raise ValueError(f"{processes} processes need a drawer each, not {how.drawers} in all: raise --drawers")
    if 0 < how.reward_actors < processes:  # all processes wait for rewards in the same way, or none does
        raise ValueError(
            f"{processes} processes need a reward actor each, not {how.reward_actors} in all: raise --reward-actors"
        )

    def of_this(many: int) -> int:
        return len(distributed.share(torch.arange(many)))

    def made(run: Run) -> Actors:
        model = Model.of(policy, settings.stored_adapters, settings.algorithm.rollout, run)
        asked = (settings.reward, settings.reward_options)
        return Actors(model, policy, of_this(how.drawers), of_this(how.reward_actors), reward, *asked)

    return made
