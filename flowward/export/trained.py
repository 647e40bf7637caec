"""A policy as a run or an export left it: what sampling, measuring and exporting begin with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import get_args

from .. import models
from ..models.loading import Loading
from ..process.policy import Policy
from ..system.precision import Precision, Wish
from ..training import config
from ..training.folder import RunFolder
from . import exported


def load(
    name: str | Path,
    weights: str = "policy",
    loading: Loading | None = None,
    precision: Wish | None = None,
    said: Collection[str] = (),
) -> Policy:
    """A model by name, an export on its base, or a run's newest checkpoint with the named weights as its policy.

    A run's model is loaded as it was trained, but on the device, in the precision and with the savings of memory that
    are asked for; `said` are the names of settings of `loading` that count although they are what nobody has to say.
    Without a `precision`, a run or an export is loaded in the one that it was trained in, other models in `auto`.

    Raises:
        ValueError: there is no such model, run, checkpoint, adapters or weights, or a run is asked for at another size.
    """
    path, name = Path(name), str(name)
    if found := exported.load(name, precision or trained_in(name) or "auto", loading):
        return found
    if not (path / "config.yaml").is_file():
        return models.load(name, precision=precision or "auto", loading=loading)
    folder = RunFolder.open(path)
    given = folder.config()  # of which no more is asked: a run from Python may hold an algorithm of one's own
    settings = config.from_dict(
        {key: given[key] for key in ("model", "loading", "lora_rank", "precision") if key in given}
    )
    state = folder.state("identity", "iteration", "weights")
    if state is None:
        raise ValueError(f"{path} holds no checkpoint yet")
    how = loading.of_run(name, settings.loading, said) if loading else settings.loading
    policy = models.load(settings.model, settings.lora_rank, precision or settings.precision, loading=how)
    if other := policy.unlike(state["identity"]):
        raise ValueError(
            f"the checkpoint of {path} belongs to another model than '{settings.model}': its {', '.join(other)} differs"
        )
    if weights not in state["weights"]:
        raise ValueError(f"{path} has no weights called '{weights}', only {', '.join(state['weights'])}")
    policy.weights.load("policy", state["weights"][weights])
    policy.name = f"{name} ({weights}, iteration {state['iteration']})"
    return policy


def trained_in(name: str) -> Precision | None:
    """The precision that a run or an export was trained in; None if it does not say, or for any other model.

    Raises:
        ValueError: its config.yaml, or the file of an export, cannot be read.
    """
    path = Path(name)
    about = RunFolder.open(path).config() if (path / "config.yaml").is_file() else exported.facts(name)
    found = about.get("precision")  # of an older run it can be `auto`, which says nothing
    return found if found in get_args(Precision) else None


def common_precision(names: Iterable[str]) -> Wish:
    """The precision to measure all these models in: the one that the runs and exports among them agree on.

    It is `auto` if none of them says. Nothing is loaded.

    Raises:
        ValueError: they were trained in different ones.
    """
    found: dict[Precision, str] = {}
    for name in names:
        if own := trained_in(name):
            found.setdefault(own, name)
    if len(found) > 1:
        said = " and ".join(f"{name} was trained in {own}" for own, name in found.items())
        raise ValueError(f"{said}; one call measures in one precision: choose it with --precision")
    return next(iter(found), "auto")
