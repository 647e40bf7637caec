"""The configuration of a run: one dataclass for the command line and for config.yaml."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import TypeAdapter, ValidationError

from .. import prompts as prompt_table
from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import Algorithm
from ..algorithms.presets import PRESETS, Preset, published
from ..evaluation.evaluate import Evaluation
from ..models import is_pipeline, world_of
from ..models.adapters import Adapters, Reference
from ..models.layout import Layout
from ..models.loading import Loading
from ..models.lora import LoRA
from ..process.policy import Policy
from ..prompts import PromptSet
from ..rewards import REWARDS, Reward, Sum
from ..system.errors import first_invalid, positive, unknown
from ..system.nested import each_word, lists_of_one, over, refuse_unknown
from ..system.paths import expanded
from ..system.precision import Wish
from . import palettes
from .drawing import Drawing
from .record import FLOWS
from .run import Run

DEFAULT_ALGORITHM = "advantageflow"
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # making one takes fifty times as long as using it


@dataclass(frozen=True)
class Settings:
    """Post-train a flow model with online reinforcement learning."""

    model: str = "scenes"
    """train this model: `scenes` (built in), a folder, owner/name on the hub, or file.py:function"""
    reward: tuple[str, ...] = ("scenes",)
    """score images with these rewards; several are added up by their weights"""
    reward_options: tuple[str, ...] = ()
    """set options of a reward, e.g. pickscore.batch=64"""
    prompts: str = "scenes"
    """use these prompts: a built-in set, a file, or hf:owner/name"""
    prompt_column: str | None = None
    """read prompts from this column or key, in any case (none: prompt, text, caption)"""
    prompt_weights: tuple[str, ...] = ()
    """set the sampling weight of a prompt category, e.g. position=4; 0 excludes it"""
    preferences: Path | None = None
    """train on pairs from this JSONL file (prompt, chosen, rejected) instead of own samples"""
    exemplars: Path | None = None
    """replace samples of some groups by images from this JSONL file (prompt, image)"""
    exemplar_share: float = 1 / 6
    """use exemplars in this share of the groups that have some"""
    exemplars_per_group: int = 4
    """replace at most this many samples of a group"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    lora_rank: int | None = None
    """train LoRA adapters of this rank (none: train all weights)"""
    lora_alpha: float | None = None
    """scale LoRA adapters by this number / rank (none: twice the rank, so by 2)"""
    lora_targets: tuple[str, ...] | None = None
    """train LoRA adapters on layers with these names (none: those of the model family)"""
    init_lora: str | None = None
    """start from this LoRA, a file or folder; rank, alpha and layers are taken from it"""
    init_lora_sha256: str | None = None
    """check that --init-lora has this SHA-256 (recorded in config.yaml)"""
    palette: bool = False
    """train an adapter of --lora-rank per reward, to be mixed by any weights after training"""
    reference: Reference = "init"
    """reference model for KL terms: the model with --init-lora (`init`) or without it (`base`)"""
    teachers: tuple[str, ...] = ()
    """learn a prompt category from this run or LoRA, e.g. position=runs/position (for opd)"""
    teacher_guidance: tuple[str, ...] = ()
    """set the guidance of the teacher of one category, e.g. position=4.5"""
    precision: Wish = "auto"
    """evaluate networks in this precision (auto: bf16 if the processor has it)"""
    threads: int | None = None
    """use this many CPU threads (default: torch's choice)"""
    layout: Annotated[Layout, tyro.conf.OmitArgPrefixes] = field(default_factory=Layout)
    patience: float = 600.0
    """end the run if one of its processes does not answer the others for so many seconds"""
    drawing: Annotated[Drawing, tyro.conf.OmitArgPrefixes] = field(default_factory=Drawing)
    run: Annotated[Run, tyro.conf.OmitArgPrefixes] = field(default_factory=Run)
    evaluation: Evaluation = field(default_factory=Evaluation)
    algorithm: Any = None

    def __post_init__(self) -> None:
        positive(self, "patience")

    @property
    def adapters(self) -> Adapters | None:
        """Which LoRA adapters to train; None for all weights.

        Raises:
            ValueError: a value is impossible, or there is neither a rank nor a LoRA to start from.
        """
        if self.init_lora and self.palette:
            raise ValueError("a palette starts from new adapters: leave out --init-lora or --palette")
        if self.init_lora:
            return Adapters(start=self.init_lora, reference=self.reference)
        return self.stored_adapters

    @property
    def stored_adapters(self) -> Adapters | None:
        """The same for a run with a checkpoint, which has the weights: the LoRA that it started from is not read."""
        if self.lora_rank is not None:
            reference = self.reference if self.init_lora else None
            names = palettes.named_by(self.reward) if self.palette else ()
            return Adapters(self.lora_rank, self.lora_alpha, self.lora_targets, reference=reference, palette=names)
        if self.palette:
            raise ValueError("a palette is made of LoRA adapters: set lora_rank (--lora-rank), or leave out palette")
        if given := [name for name in ("lora_alpha", "lora_targets") if getattr(self, name) is not None]:
            raise ValueError(
                f"all weights are trained; set lora_rank (--lora-rank), or leave out {' and '.join(given)}"
            )
        return None


def settings_type(algorithm: str, preset: str = "scenes") -> type[Settings]:
    """Settings with the fields of one algorithm and the values of a preset as defaults.

    Evaluations use the guidance of training.

    Raises:
        ValueError: there is no such algorithm or preset, or the preset has an unknown setting.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(unknown("algorithm", algorithm, ALGORITHMS))
    if preset not in PRESETS[algorithm]:
        raise ValueError(unknown(f"preset of {algorithm}", preset, PRESETS[algorithm]))
    chosen = PRESETS[algorithm][preset]
    key = f"{algorithm} {preset} {chosen}"  # with its values, which may be changed
    if key not in _TYPES:
        _TYPES[key] = _type_of(chosen, ALGORITHMS[algorithm], f"presets/{algorithm}.yaml: {preset}")
    return _TYPES[key]


_TYPES: dict[str, type[Settings]] = {}  # made so far; there is one adapter per type


def _type_of(chosen: Preset, algorithm: type, where: str) -> type[Settings]:
    """Settings with the values of one preset; `where` it is written."""
    refuse_unknown(chosen.run, {each.name: None for each in fields(Run)}, where, "run.")
    refuse_unknown(chosen.settings, {each.name: None for each in fields(Settings)}, where, "settings.")
    refuse_unknown(chosen.evaluation, {each.name: None for each in fields(Evaluation)}, where, "evaluation.")
    run = replace(Run(), **chosen.run)
    watched: dict[str, Any] = {name: tuple(value) for name, value in chosen.evaluation.items()}
    how = replace(Evaluation(), **watched)
    changed: list[tuple[str, Any, Any]] = [
        ("algorithm", algorithm, field(default=chosen.algorithm)),
        ("run", Annotated[Run, tyro.conf.OmitArgPrefixes], field(default=run)),
        ("evaluation", Evaluation, field(default=_jumping(_alike(how, chosen.algorithm), chosen.algorithm))),
    ]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.settings.items()}
    changed += [(name, Settings.__annotations__[name], field(default=value)) for name, value in given.items()]
    made = make_dataclass("Train", changed, bases=(Settings,), frozen=True)
    made.__doc__ = Settings.__doc__
    return made


def starting(algorithm: str, preset: str | None, model: str | None) -> Any:
    """A preset's settings: the named one, or that of scenes, or for a real model the first that was published.

    That one then takes the time grid of the model, which need not be the published one's.

    Raises:
        ValueError: there is no such algorithm or preset.
    """
    if preset or not is_pipeline(model or "scenes"):
        return _in_world(settings_type(algorithm, preset or "scenes")(), world_of(model or "scenes"))
    default = settings_type(algorithm, published(algorithm))()
    rollout = replace(default.algorithm.rollout, grid="model", shift=1.0)
    few = replace(default.evaluation, images=60)
    return replace(default, algorithm=replace(default.algorithm, rollout=rollout), evaluation=few)


def _in_world(settings: Settings, world: str) -> Settings:
    """The settings with the prompts of another built-in world, if they are those of `scenes`."""
    how = settings.evaluation
    if settings.prompts != "scenes" or how.prompts != "scenes-held-out":
        return settings
    return replace(settings, prompts=world, evaluation=replace(how, prompts=f"{world}-held-out"))


def _alike(how: Evaluation, algorithm: Algorithm) -> Evaluation:
    return replace(how, sampler=replace(how.sampler, guidance=algorithm.rollout.guidance))


def _jumping(how: Evaluation, algorithm: Algorithm) -> Evaluation:
    """The evaluation with the jumps of the rollout, if it jumps: a few-step model is measured as it is trained."""
    drawn: Any = algorithm.rollout
    if not getattr(drawn, "jumps", False):
        return how
    return replace(how, sampler=replace(how.sampler, solver=drawn.solver, steps=drawn.steps))


def measured_alike(settings: Settings) -> Settings:
    """The settings with the guidance of training in the evaluation, so that the trained model is evaluated."""
    return replace(settings, evaluation=_alike(settings.evaluation, settings.algorithm))


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings for YAML; the algorithm's name is stored next to its fields."""
    name = next(name for name, kind in ALGORITHMS.items() if kind is type(settings.algorithm))
    found: dict[str, Any] = _adapter(type(settings)).dump_python(settings, mode="json")
    return {**found, "algorithm": {"name": name, **found["algorithm"]}}


def of_python(
    algorithm: Algorithm,
    policy: Policy,
    reward: Reward,
    prompts: PromptSet,
    run: Run,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The same for a run that was started from Python.

    Parts without a name cannot be saved: an algorithm is stored as its text, a reward and prompts as None.
    """
    settings = Settings(
        model=policy.name,
        **recorded(policy),
        precision=policy.precision,
        loading=policy.loading or Loading(),
        run=run,
        evaluation=evaluation or Evaluation(),
    )
    found: dict[str, Any] = _adapter(Settings).dump_python(settings, mode="json")
    even = replace(prompts, weights={})
    built_in = prompts.name in prompt_table.BUILT_IN and prompt_table.load(prompts.name) == even
    named = {
        "reward": _names(reward),
        "prompts": prompts.name if built_in else None,
        "prompt_weights": [f"{name}={weight}" for name, weight in prompts.weights.items()],
    }
    return {**kind_of(policy), **found, **named, "algorithm": _described(algorithm)}


def kind_of(policy: Policy) -> dict[str, str]:
    """The entry of config.yaml that says what the samples of a run are; none for images."""
    noun = policy.medium.noun
    return {} if noun == FLOWS[0] else {"kind": noun}


def recorded(policy: Policy) -> dict[str, Any]:
    """The settings that rebuild the adapters of a policy, without the LoRA that they started from."""
    weights = policy.weights
    if not isinstance(weights, LoRA):
        return {}
    made, start = weights.adapters, weights.start
    usual = made.alpha == 2 * (made.rank or 0)
    found: dict[str, Any] = {"lora_rank": made.rank, "lora_alpha": None if usual else made.alpha}
    if made.palette:
        found["palette"] = True
    if start is None:
        return {**found, "lora_targets": weights.chosen}
    about = {"init_lora": str(start.file.absolute()), "init_lora_sha256": start.sha256}
    return {**found, "lora_targets": made.targets, **about, "reference": "init" if weights.own_reference else "base"}


def _described(algorithm: Algorithm) -> dict[str, Any] | str:
    """An algorithm's name and fields, or its text if the fields do not reproduce it."""
    name = next((name for name, kind in ALGORITHMS.items() if kind is type(algorithm)), None)
    if name:
        with suppress(ValueError), warnings.catch_warnings(action="ignore"):  # of fields that hold code
            own = {"name": name, **_adapter(type(algorithm)).dump_python(algorithm, mode="json")}
            if from_dict({"algorithm": own}).algorithm == algorithm:
                return own
    return repr(algorithm)


def _names(reward: Reward) -> list[str] | None:
    """Reward names for `rewards.load`; None for a reward that is not built in."""
    known: dict[Any, str] = {kind: name for name, kind in REWARDS.items()}
    terms = [(weight, each) for _, weight, each in reward.terms] if isinstance(reward, Sum) else [(1.0, reward)]
    names = [known.get(type(each)) for _, each in terms]
    if None in names:
        return None
    return [f"{name}={weight}" if weight != 1 else f"{name}" for name, (weight, _) in zip(names, terms, strict=True)]


def from_dict(given: dict[str, Any]) -> Settings:
    """Settings from YAML. Missing values come from a preset of the algorithm: `preset` next to its name, or `scenes`.

    If the guidance of the evaluation is missing, it is the guidance of the rollout.

    Raises:
        ValueError: a key is unknown or a value has the wrong type; the message names the place.
    """
    if given.get("kind", "images") not in FLOWS:
        raise ValueError(
            f"these are settings of a run of kind '{given['kind']}', not of images: use flowward {given['kind']} train"
        )
    given = {key: value for key, value in given.items() if key != "kind"}
    own = given.get("algorithm") or {}
    if isinstance(own, str) and own in ALGORITHMS:
        own = {"name": own}
    if not isinstance(own, dict):
        raise ValueError(
            f"config: algorithm must be a mapping with a name and settings, not '{own}'; start a run with your own "
            "algorithm from Python"
        )
    own = dict(own)
    kind = settings_type(str(own.pop("name", DEFAULT_ALGORITHM)), str(own.pop("preset", "scenes")))
    refuse_of_others(type(kind().algorithm), own)
    preset: dict[str, Any] = _adapter(kind).dump_python(kind(), mode="json")
    given = each_word({**given, "algorithm": own}, expanded)
    whole = over(preset, lists_of_one(preset, given))
    try:
        settings = _adapter(kind).validate_python(whole)
    except ValidationError as error:
        where, said = first_invalid(error)
        raise ValueError(f"config: {where or 'setting'}: {said}") from error
    except ArithmeticError as error:  # of a time grid, for example
        raise ValueError(f"config: a number is out of its range ({error})") from error
    refuse_unknown(whole, _adapter(kind).dump_python(settings, mode="json"), "config")
    return settings if names_guidance(given) else measured_alike(settings)


def refuse_of_others(algorithm: type, names: Iterable[str]) -> None:
    """Raises ValueError if a setting has one of these names in other algorithms, and not in this one."""

    def has(kind: type, name: str) -> bool:
        return name in {each.name for each in fields(kind)}

    for name in names:
        others = [other for other, kind in ALGORITHMS.items() if has(kind, name)]
        if others and not has(algorithm, name):
            own = next((own for own, kind in ALGORITHMS.items() if kind is algorithm), algorithm.__name__)
            many = f"{', '.join(others[:-1])} and {others[-1]} have" if len(others) > 1 else f"{others[0]} has"
            raise ValueError(f"{own} has no setting {name}; {many} one")


def names_guidance(given: Mapping[str, Any]) -> bool:
    """Whether YAML for `from_dict` sets the guidance of the evaluation."""
    return "guidance" in ((given.get("evaluation") or {}).get("sampler") or {})
