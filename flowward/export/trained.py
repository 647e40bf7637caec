"""Load the policy of a run or of an export, for sampling, evaluation and exporting."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from .. import models
from ..models.adapters import Adapters
from ..models.loading import Loading
from ..process.policy import Policy
from ..system.precision import Precision, Wish
from ..training import config
from ..training.folder import RunFolder
from ..training.record import refuse_other_kinds
from . import exported, soups

At = int | Literal["best"]
MADE_FROM = ("model", "loading", "lora_rank", "lora_alpha", "lora_targets", "precision")  # settings of a run's model

OF_PALETTES = ("palette", "reward")  # an adapter per reward


def load(
    name: str | Path,
    weights: str = "policy",
    loading: Loading | None = None,
    precision: Wish | None = None,
    said: Collection[str] = (),
    at: At | None = None,
) -> Policy:
    """A model by name, an export on its base model, or a run's newest checkpoint with the named weights as its policy.

    A run's model is loaded with its settings of training, except device, precision and memory savings. `said` are the
    names of settings of `loading` that were given explicitly, even if they have their default value. `at` chooses a
    checkpoint of a run: an iteration, or `best`, the one with the best headline score (none: the newest).
    Without a `precision`, a run or an export is loaded in the precision of its training, any other model in `auto`.

    Raises:
        ValueError: the model, run, checkpoint, adapters or weights do not exist, a run is loaded at another size, or it
            is no run over images.
    """
    path = Path(name := models.located(str(name)))
    refuse_other_kinds(path)
    if at is not None and not (path / "config.yaml").is_file():
        raise ValueError(f"{name} is not a run, so it has no checkpoints: leave out --at")
    if files := exported.palette(name):
        found = soup({own: str(file) for own, file in files.items()}, weights, loading, precision)
        found.name = name
        return found
    if exported_model := exported.load(name, precision or trained_in(name) or "auto", loading):
        return exported_model
    if not (path / "config.yaml").is_file():
        return models.load(name, precision=precision or "auto", loading=loading)
    folder = RunFolder.open(path)
    given = folder.config()  # only these keys, since a run from Python may have an algorithm without a name
    state = folder.state("identity", "iteration", "weights", at=at, within=f"weights.{weights}.")
    if state is None:
        raise ValueError(f"{path} contains no checkpoint yet: wait for the first one, or set --checkpoint-every lower")
    keys = (*MADE_FROM, *OF_PALETTES) if given.get("palette") else MADE_FROM
    if given.get("palette") and given.get("reward") is None:  # a user's own, whose names the checkpoint has
        given = {**given, "reward": _names(state["identity"])}
    settings = config.from_dict({key: given[key] for key in keys if key in given})
    how = loading.of_run(name, settings.loading, said) if loading else settings.loading
    adapters = settings.stored_adapters
    policy = models.load(settings.model, None, precision or settings.precision, loading=how, adapters=adapters)
    with folder.explained():
        if other := policy.unlike(state["identity"]):
            what = f"different {', '.join(other)}"
            raise ValueError(f"the checkpoint of {path} does not belong to the model '{settings.model}': {what}")
        if weights not in state["weights"]:
            raise ValueError(f"{path} has no weights '{weights}': choose one of {', '.join(state['weights'])}")
        policy.weights.load("policy", state["weights"][weights])
    policy.name = f"{name} ({weights}, iteration {state['iteration']})"
    return policy


def _names(identity: Mapping[str, Any]) -> list[str]:
    """The objectives of a palette, as its checkpoint has them."""
    return str(identity["weights"]).partition("-palette-")[2].split("+")


def soup(
    names: Mapping[str, str],
    weights: str = "policy",
    loading: Loading | None = None,
    precision: Wish | None = None,
    said: Collection[str] = (),
) -> Policy:
    """A palette of adapters that were trained one by one: `names` are runs or exports, by their objective.

    Raises:
        ValueError: see `load`; or they have no adapters, or adapters of different models, or there are too few.
    """
    wish = precision or common_precision(names.values())
    first = next(iter(names.values()), "")
    kept: list[Policy] = []

    def parts() -> Iterator[tuple[str, Policy]]:
        for own, name in names.items():
            policy = load(name, weights, loading, wish, said)
            kept[:] = [policy]
            yield own, policy

    def base(adapters: Adapters) -> Policy:
        used = kept[0]
        return models.load(base_of(first), None, used.precision, loading=used.loading, adapters=adapters)

    return soups.joined(parts(), base)


def base_of(name: str) -> str:
    """The model that a run or an export was trained on.

    Raises:
        ValueError: it is neither.
    """
    path = Path(name := models.located(name))
    found = RunFolder.open(path).config().get("model") if (path / "config.yaml").is_file() else None
    found = found or exported.facts(name).get("base_model")
    if not found:
        raise ValueError(f"{name} is neither a run nor an export: name the folder of one")
    return str(found)


def trained_in(name: str) -> Precision | None:
    """The precision that a run or an export was trained in; None if it does not say, or for any other model.

    Raises:
        ValueError: its config.yaml, or the file of an export, cannot be read.
    """
    path = Path(name := models.located(name))
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
