"""The configuration of an agent's run: one dataclass for the command line and for config.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from ..models.adapters import Adapters
from ..system import tables
from ..system.errors import between, first_invalid, positive, unknown
from ..system.nested import each_word, lists_of_one, over, refuse_unknown
from ..system.paths import absolute, expanded
from ..system.precision import Wish
from .algorithm import AgentFlow
from .evaluation import AgentEvaluation
from .system import Limits
from .trainer import AgentRun

PRESETS: Mapping[str, Mapping[str, Any]] = tables.load(Path(__file__).with_name("presets.yaml"))
MODULES: Mapping[str, tuple[str, ...]] = {  # what decides for a module, besides a chat server
    "executor": ("rule", "world", "same"),
    "verifier": ("rule", "world", "same"),
    "generator": ("rule", "same"),
    "analysis": ("none", "same"),
}
NAME = "agentflow"  # of the algorithm, in config.yaml
KIND = "agent"  # of the run, in config.yaml
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


@dataclass(frozen=True)
class Settings:
    """Train the planner of a language agent with AgentFlow."""

    model: str = "world"
    """train this planner: `world` (built in), a folder, or owner/name on the hub"""
    questions: str = "world"
    """train on these questions: `world`, a file with `question` and `answer`, or hf:owner/name"""
    question_column: str | None = None
    """read questions from this column or key (none: question, prompt, text)"""
    question_weights: tuple[str, ...] = ()
    """set the sampling weight of a category of questions, e.g. sum=2; 0 excludes it"""
    reward: tuple[str, ...] = ("exact",)
    """score answers: exact, number, f1, judge:URL#MODEL or file.py:function; several are added up by their weights"""
    tools: tuple[str, ...] = ()
    """give the agent these tools: world, calculator, search:FOLDER, python, mcp:COMMAND, file.py:function, ..."""
    planner: Literal["chat", "world"] = "chat"
    """prompts of the planner: the `chat` template file, or the few words that the built-in planner knows"""
    executor: str = "rule"
    """turn plans into arguments: `rule`, `world`, `same` (the model before training), or a chat server, URL#MODEL"""
    verifier: str = "rule"
    """decide when to stop: `rule`, `world` (the rule of the built-in world), `same`, or URL#MODEL"""
    generator: str = "rule"
    """write the answer: `rule` (the last result), `same`, or URL#MODEL"""
    analysis: str = "none"
    """analyse the question before the first turn: `none`, `same`, or URL#MODEL"""
    server: str | None = None
    """sample the planner on this vLLM or SGLang server, URL#MODEL (none: in this process)"""
    correct: float | None = None
    """with --server: weight tokens by their probability here over that of the server, at most this (none: 1)"""
    templates: Path | None = None
    """use the prompts in this folder (see `flowward agent prompts`)"""
    python_unconfined: bool = False
    """let the python tool run without isolation from this machine"""
    temperature: float = 1.0
    """sample and train the planner at this temperature"""
    max_prompt: int | None = None
    """shorten the memory so that prompts have at most this many tokens (none: the model's context)"""
    module_tokens: int = 1024
    """most tokens of one answer of another module"""
    patience: float = 600.0
    """wait so many seconds for chat servers, or another process of the run, that do not answer"""
    concurrency: int = 16
    """requests to a chat server at once"""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    lora_rank: int | None = None
    """train LoRA adapters of this rank (none: train all weights)"""
    lora_alpha: float | None = None
    """scale LoRA adapters by this number / rank (none: twice the rank, so by 2)"""
    lora_targets: tuple[str, ...] | None = None
    """train LoRA adapters on layers with these names (none: attention and feed-forward)"""
    revision: str | None = None
    """load this branch, tag or commit of the model from the hub"""
    device: str = "auto"
    """run on this device, e.g. cuda:1 (auto: CUDA if there is one)"""
    precision: Wish = "auto"
    """evaluate networks in this precision (auto: bf16 if the processor has it)"""
    threads: int | None = None
    """use this many CPU threads (default: torch's choice)"""
    run: Annotated[AgentRun, tyro.conf.OmitArgPrefixes] = field(default_factory=AgentRun)
    evaluation: AgentEvaluation = field(default_factory=AgentEvaluation)
    algorithm: AgentFlow = field(default_factory=AgentFlow)

    def __post_init__(self) -> None:
        for name, known in MODULES.items():
            if (chosen := getattr(self, name)) not in known and "://" not in chosen:
                raise ValueError(f"{unknown(f'{name} of an agent', chosen, known)} (or a chat server: URL#MODEL)")
        positive(self, "temperature", "patience")
        between(self, 1, 10_000, "concurrency")
        between(self, 1, 1_000_000, "module_tokens")
        if self.server is not None and self.lora_rank is None:
            raise ValueError("a server gets the planner's new weights as a LoRA adapter: set lora_rank (--lora-rank)")
        if self.max_prompt is not None:
            between(self, 1, 10_000_000, "max_prompt")
        if self.correct is not None:
            if not self.correct >= 1:
                raise ValueError(f"correct, the largest weight of a token, must be at least 1, not {self.correct:g}")
            if self.server is None:
                raise ValueError("correct weights tokens by the probabilities of a server: name one with --server")

    @property
    def adapters(self) -> Adapters | None:
        """Which LoRA adapters to train; None for all weights.

        Raises:
            ValueError: a value is impossible, or something about adapters is given without a rank.
        """
        if self.lora_rank is not None:
            return Adapters(self.lora_rank, self.lora_alpha, self.lora_targets)
        if given := [name for name in ("lora_alpha", "lora_targets") if getattr(self, name) is not None]:
            raise ValueError(
                f"all weights are trained; set lora_rank (--lora-rank), or leave out {' and '.join(given)}"
            )
        return None

    @property
    def modules(self) -> dict[str, str]:
        """Which model decides for each module, as results name it."""
        named = {name: getattr(self, name) for name in ("executor", "verifier", "generator", "analysis")}
        return {"planner": self.model, **named}


def starting(preset: str | None, model: str | None) -> Settings:
    """The settings of a preset; without one, `world` for the built-in planner and the released ones for any other.

    Raises:
        ValueError: there is no such preset.
    """
    name = preset or ("world" if model in (None, "world") else "qwen2.5-7b")
    if name not in PRESETS:
        raise ValueError(unknown("preset of agentflow", name, PRESETS))
    found = PRESETS[name]
    given = {**found.get("settings", {})}
    for part in ("limits", "run", "evaluation", "algorithm"):
        given[part] = found.get(part, {})
    settings = from_dict(given, Settings())
    return settings if model is None else replace(settings, model=model)


def of_agent(settings: Settings) -> dict[str, Any]:
    """What an exported planner is used with: modules, tools, prompts and limits; for `starting` of that planner."""
    found = to_dict(settings)
    kept = ("kind", "tools", "planner", "executor", "verifier", "generator", "analysis", "templates", "temperature",
            "max_prompt", "limits", "precision")  # fmt: skip
    return {name: found[name] for name in kept}


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings for YAML; the algorithm's name is stored beside its fields."""
    found: dict[str, Any] = _adapter(Settings).dump_python(settings, mode="json")
    return {"kind": KIND, **found, "algorithm": {"name": NAME, **found["algorithm"]}}


def from_dict(given: Mapping[str, Any], default: Settings | None = None) -> Settings:
    """Settings from YAML. Missing values come from `default`, or from a preset (`preset`, or `world`).

    Raises:
        ValueError: a key is unknown or a value has the wrong type; the message names the place.
    """
    given = {key: value for key, value in given.items() if key != "kind"}
    own = given.get("algorithm") or {}
    own = {"name": own} if isinstance(own, str) else dict(own)
    name, preset = own.pop("name", NAME), own.pop("preset", None)
    if name != NAME:
        raise ValueError(f"config: these are settings of {name}, which trains on images: use flowward train")
    base = default or starting(preset and str(preset), None)
    known = _adapter(Settings).dump_python(base, mode="json")
    whole = over(known, lists_of_one(known, each_word({**given, "algorithm": own}, expanded)))
    try:
        settings: Settings = _adapter(Settings).validate_python(whole)
    except ValidationError as error:
        where, said = first_invalid(error)
        raise ValueError(f"config: {where or 'setting'}: {said}") from error
    refuse_unknown(whole, _adapter(Settings).dump_python(settings, mode="json"), "config")
    return settings


def located(settings: Settings) -> Settings:
    """The settings with absolute paths, so that the run can be resumed from another folder."""
    from . import questions, toolbox

    model = absolute(settings.model) if Path(settings.model).is_dir() and settings.model != "world" else settings.model
    how = replace(settings.evaluation, questions=questions.located(settings.evaluation.questions))
    return replace(
        settings,
        model=model,
        questions=questions.located(settings.questions),
        tools=tuple(toolbox.located(name) for name in settings.tools),
        reward=tuple(_reward(name) for name in settings.reward),
        templates=settings.templates and Path(absolute(str(settings.templates))),
        evaluation=how,
    )


def _reward(name: str) -> str:
    from ..system.paths import absolute_code

    return absolute_code(name)


FIELDS = tuple(each.name for each in fields(Settings))
