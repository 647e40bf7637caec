"""From settings to an agent, and to a run that is ready to start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..evaluation.leakage import leak
from ..evaluation.provenance import hash_of
from ..prompts import PromptSet
from ..rewards.code import code_of
from ..system import distributed
from ..system.paths import fingerprint
from ..training import inputs
from ..training.folder import RunFolder
from ..training.inputs import Change, Inputs
from . import config, questions, rewards, search, world
from .chat import ChatModel
from .config import Settings
from .episode import SAME
from .evaluation import AgentEvaluator
from .language import Language
from .modules import (
    AnalystByModel,
    ExecutorByModel,
    GeneratorByModel,
    PlannerByTemplate,
    Rule,
    VerifierByModel,
    context_as_input,
    last_result,
    no_analysis,
    stop_after_a_final_tool,
)
from .rewards import Judge, Term
from .rollout import Before, InProcess, OnServer, Player, Sampler
from .serving import ServedPlanner
from .system import Reader, System
from .templates import Templates
from .toolbox import Toolbox
from .trainer import AgentTrainer

RULES = ("rule", "none", "world")  # modules that ask no model


@dataclass(frozen=True)
class AgentAssembly:
    """A run over episodes that is ready to start."""

    settings: Settings
    trainer: AgentTrainer
    evaluator: AgentEvaluator
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    inputs: Inputs
    changes: tuple[Change, ...] = ()

    @property
    def described(self) -> dict[str, Any]:
        """The settings for config.yaml."""
        return config.to_dict(self.settings)

    @property
    def introduction(self) -> str:
        """What is trained, and what comes first."""
        trainer, done = self.trainer, self.trainer.iteration
        begins = f"going on after iteration {done}" if done else f"measuring on {self.evaluator.questions.name} first"
        return f"planner {trainer.language.name}, {len(trainer.questions)} questions; {begins}"


def assembled(settings: Settings, resume: bool = False, changed_inputs: bool = False) -> AgentAssembly:
    """Load everything that the settings name, and check that it fits together.

    Args:
        resume: continue from the newest checkpoint of the run folder.
        changed_inputs: questions, tools or reward code may have changed since the run was started.

    Raises:
        ValueError: the settings do not fit together, a server is missing, or the run folder is damaged.
    """
    terms = terms_of(settings)
    asked = questions.weighted(questions.load(settings.questions, settings.question_column), settings.question_weights)
    if settings.evaluation.questions in questions.BUILT_IN and settings.questions not in questions.BUILT_IN:
        whole = settings.questions.removeprefix("train:")
        raise ValueError(
            f"the evaluation would use the questions of the built-in world: name yours, such as "
            f"--questions train:{whole} --evaluation.questions held-out:{whole}"
        )
    held_out = questions.load(settings.evaluation.questions, settings.evaluation.question_column)
    found = inputs_of(settings, asked, held_out, terms)
    changes = inputs.compared(settings.run.output, found, changed_inputs) if resume and settings.run.output else []
    language = language_of(settings)
    settings = replace(settings, precision=language.precision)  # a resumed run keeps its precision
    player = player_of(settings, language)
    for text in dict.fromkeys((*asked.texts, *held_out.texts)):
        player.system.refuse(text)
    trainer = AgentTrainer(
        settings.algorithm, language, player, terms, asked, settings.run, settings.temperature, settings.correct
    )
    if SAME in player.models and "reference" not in trainer.algorithm.anchors:
        language.weights.add("reference")
    if resume and settings.run.output:
        _restore(trainer, RunFolder.open(settings.run.output), changes)
    evaluator = AgentEvaluator(player, held_out, terms, settings.evaluation, facts(settings))
    said = [*_leaks(asked, held_out, evaluator), inputs.sentence(changes)]
    warnings = tuple(each for each in said if each)
    return AgentAssembly(settings, trainer, evaluator, language.notes, warnings, found, tuple(changes))


def evaluator_of(settings: Settings, player: Player) -> AgentEvaluator:
    """What measures an agent that is not trained here.

    Raises:
        ValueError: questions or rewards cannot be loaded, or a question does not fit into the planner's context.
    """
    how = settings.evaluation
    asked = questions.load(how.questions, how.question_column)
    for text in asked.texts:
        player.system.refuse(text)
    return AgentEvaluator(player, asked, terms_of(settings), how, facts(settings))


def _restore(trainer: AgentTrainer, folder: RunFolder, changes: Sequence[Change]) -> None:
    """Continue from the newest checkpoint, if there is one.

    Raises:
        ValueError: it belongs to another model, or is damaged.
    """
    state = folder.state(*(name for name in trainer.state_dict() if name != "curriculum"), shards=trainer.shards())
    if state is None:
        return
    if "questions" in {change.key for change in changes}:
        state.pop("curriculum", None)
    with folder.explained():
        trainer.load_state_dict(state)


def language_of(settings: Settings) -> Language:
    """The planner. Raises ValueError if it cannot be loaded, or processes prefer different precisions."""
    language = Language.load(
        settings.model, settings.adapters, settings.precision, settings.run.seed, settings.device, settings.revision
    )
    bf16 = language.precision == "bf16"
    if distributed.any_of(bf16) and distributed.any_of(not bf16):
        raise ValueError("the processes of this run prefer different precisions: name one with --precision")
    return language


def player_of(settings: Settings, language: Language) -> Player:
    """The agent with what answers its requests.

    Raises:
        ValueError: a tool or a server is missing, or a module's name is unknown.
    """
    limits = settings.limits
    reader = language.reader(limits.max_tokens, settings.max_prompt)
    tools = Toolbox.load(settings.tools, settings.python_unconfined, lambda name: _server(settings, name).ask)
    sampler: Sampler = InProcess(language, settings.temperature, limits.max_tokens)
    if settings.server:
        sampler = OnServer(language, _planner_server(settings), (settings.run.output or Path(".")) / "served")
    return Player(
        system_of(settings, reader, tools), sampler, tools, models_of(settings, language), settings.run.rollout_batch
    )


def models_of(settings: Settings, language: Language | None = None) -> dict[str, Any]:
    """What answers the other modules' requests, by the name in the settings."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(list(settings.modules.values())[1:]):
        if name == SAME:
            if language is None:
                raise ValueError("'same' needs the planner in this process: name a chat server, URL#MODEL")
            found[name] = Before(language, settings.module_tokens)
        elif name not in RULES:
            found[name] = _server(settings, name)
    return found


def _planner_server(settings: Settings) -> ServedPlanner:
    """Raises ValueError if it does not answer, or lacks an option that it must be started with."""
    found = ServedPlanner(
        settings.server or "",
        temperature=settings.temperature,
        max_tokens=settings.limits.max_tokens,
        concurrency=settings.concurrency,
        patience=settings.patience,
    )
    found.refuse()
    return found


def terms_of(settings: Settings) -> list[Term]:
    """The rewards. Raises ValueError if one is unknown, or a judge does not answer."""
    templates = Templates(settings.templates)
    return rewards.load(settings.reward, lambda address: Judge(_server(settings, address), templates))


def _server(settings: Settings, name: str) -> ChatModel:
    return ChatModel(
        name, max_tokens=settings.module_tokens, concurrency=settings.concurrency, patience=settings.patience
    )


def system_of(settings: Settings, reader: Reader, tools: Toolbox) -> System:
    """The agent itself: modules, tools and limits.

    Raises:
        ValueError: there is no tool, or a module has no such rule.
    """
    if not tools.tools:
        raise ValueError("an agent needs at least one tool: name some with --tools, e.g. --tools calculator")
    templates = Templates(settings.templates)
    templates.refuse()

    def module(name: str, rules: Mapping[str, Any], by_model: Any) -> Any:
        chosen = getattr(settings, name)
        if chosen in rules:
            return Rule(rules[chosen])
        return by_model(chosen, templates)

    return System(
        world.Planner() if settings.planner == "world" else PlannerByTemplate(templates),
        module("executor", {"rule": context_as_input, "world": world.executor}, ExecutorByModel),
        module("verifier", {"rule": stop_after_a_final_tool, "world": world.verdict}, VerifierByModel),
        module("generator", {"rule": last_result}, GeneratorByModel),
        tools.tools,
        settings.limits,
        reader,
        module("analysis", {"none": no_analysis}, AnalystByModel),
    )


def inputs_of(settings: Settings, asked: PromptSet, held_out: PromptSet, terms: Sequence[Term]) -> Inputs:
    """What a run depends on outside its folder."""
    found: Inputs = {
        "questions": {"named": settings.questions, "identity": _questions(asked)},
        "evaluation questions": {"named": settings.evaluation.questions, "identity": _questions(held_out)},
    }
    for term in terms:
        known = getattr(term.reward, "identity", {})
        found[f"reward {term.name}"] = {"named": term.name, "identity": {**known, "code": code_of(term.reward)}}
    if settings.templates:
        found["templates"] = {
            "named": str(settings.templates), "identity": {"hash": fingerprint(settings.templates)}
        }  # fmt: skip
    return found


def _questions(found: PromptSet) -> dict[str, Any]:
    return {"hash": hash_of(found), "prompts": len(found)}


def facts(settings: Settings) -> dict[str, Any]:
    """What the scores of an evaluation depend on besides the weights."""
    limits = settings.limits
    return {
        "modules": settings.modules,
        "model": {"name": settings.model},
        "temperature": settings.temperature,
        "tools": list(settings.tools),
        "max_turns": limits.max_turns,
        "max_tokens": limits.max_tokens,
        "rewards": {name: {} for name in settings.reward},
    }


def _leaks(asked: PromptSet, held_out: PromptSet, evaluator: AgentEvaluator) -> Iterator[str | None]:
    """Warnings about questions that training and evaluation share, or that stand in documents of `search`."""
    said = leak(asked, held_out, evaluator.chosen, ("", ""))
    yield said and said.replace("prompts", "questions").replace("prompt", "question")
    for tool in evaluator.player.system.tools.values():
        if isinstance(tool, search.Search):
            yield search.leak(tool.documents, [*dict.fromkeys((*asked.texts, *held_out.texts))])
