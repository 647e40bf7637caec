"""Teachers: frozen weights beside the policy, one for each category of prompts (on-policy distillation).

A teacher is a run folder, an export of flowward, or a LoRA file of another program, made from the policy's base model.
The number of a row's teacher is a tensor of its condition, so it travels with the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import TEACHER, Objective, refuse_incomplete
from ..models import names
from ..models.lora import LoRA
from ..process.policy import Condition, Policy, Velocity, row_by_row
from ..prompts import Prompt, PromptSet
from ..system import strict_json
from ..system.errors import unknown
from ..system.paths import absolute
from .folder import RunFolder
from .record import refuse_other_kinds

Values = dict[str, Tensor]
Identity = dict[str, Any]
BASE = ("family", "base", "transformer")  # entries of a model's identity that a teacher must share
FACTS = "flowward.json"  # beside merged weights of an export


@dataclass(frozen=True)
class Teachers:
    """The teachers that a policy has beside its own weights. Several categories can share one."""

    named: Mapping[str, str] = field(default_factory=dict)  # category -> run, export or LoRA
    scales: Mapping[str, float] = field(default_factory=dict)  # category -> guidance, where it is not the usual one
    identities: Mapping[str, Identity] = field(default_factory=dict)  # category -> content

    def __bool__(self) -> bool:
        return bool(self.named)

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """For inputs.json: a resumed run must have the same teachers."""
        found = {key: {"named": name, "identity": self.identities[key]} for key, name in self.named.items()}
        return {f"teacher {key}": each for key, each in found.items()}

    @property
    def described(self) -> dict[str, list[str]]:
        """For config.yaml."""
        return {
            "teachers": [f"{category}={name}" for category, name in self.named.items()],
            "teacher_guidance": [f"{category}={scale:g}" for category, scale in self.scales.items()],
        }

    def velocity(self, policy: Policy, usual: float) -> Velocity:
        """The velocity of each row's teacher; `usual` is the guidance of those without their own."""
        every = [self.scales.get(category, usual) for category in self.named]
        return row_by_row(policy, TEACHER, [weights_of(name) for name in self.named.values()], every)

    def beside(self, condition: Condition, prompts: Sequence[Prompt], texts: PromptSet) -> Condition:
        """The condition of these prompts of a set, with the number of each row's teacher."""
        if not self:
            return condition
        category = texts.categories
        numbers = [self._number.get(category[texts.places[prompt]], 0) for prompt in prompts]
        device = next(iter(condition.tensors.values())).device
        return condition.beside({TEACHER: torch.tensor(numbers, device=device)})

    @cached_property
    def _number(self) -> dict[str, int]:
        return {category: number for number, category in enumerate(self.named)}

    def refuse(self, algorithm: Objective, texts: PromptSet) -> None:
        """Raise ValueError if they do not fit the algorithm or the categories of the prompts."""
        if TEACHER not in algorithm.anchors:
            if self:
                fit = [name for name, kind in ALGORITHMS.items() if TEACHER in kind().anchors]
                raise ValueError(f"this algorithm has no teachers: choose --algorithm {' or '.join(fit)}, or leave out "
                                 "--teachers")  # fmt: skip
            return
        known = list(dict.fromkeys(texts.categories))
        if not self:
            raise ValueError(
                "this algorithm learns from teachers: name one for each category of prompts, e.g. --teachers "
                f"{known[0]}=runs/{known[0]}"
            )
        for name in self.named:
            if name not in known:
                raise ValueError("teachers: " + unknown("prompt category", name, known))
        for name in known:
            if name not in self.named and texts.weights.get(name, 1):
                raise ValueError(
                    f"prompts of the category '{name}' have no teacher: add {name}=RUN to --teachers, or leave these "
                    f"prompts out with --prompt-weights {name}=0"
                )


NONE = Teachers()
PALETTE = "{} is a palette, which is another model for every mixture: name a run or a LoRA with a single adapter"


def weights_of(name: str) -> str:
    """The name of a teacher among the weights of a policy."""
    return f"{TEACHER} {name}"


def parsed(teachers: Sequence[str], guidance: Sequence[str] = ()) -> Teachers:
    """Teachers from words such as position=runs/position, and guidance scales such as position=4.5. Nothing is read.

    Raises:
        ValueError: a word has another form, or comes twice.
    """
    named, scales = _pairs(teachers, "a teacher", "runs/NAME"), _pairs(guidance, "the guidance of a teacher", "4.5")
    for category, scale in scales.items():
        try:
            float(scale)
        except ValueError as error:
            raise ValueError(f"the guidance of the teacher of '{category}' must be a number, not '{scale}'") from error
    return of(named, {category: float(scale) for category, scale in scales.items()})


def of(teachers: Mapping[str, str | Path], guidance: Mapping[str, float] | None = None) -> Teachers:
    """Teachers by the category of prompts; nothing is read.

    Raises:
        ValueError: a guidance scale belongs to a category without a teacher.
    """
    for category, scale in (guidance or {}).items():
        if category not in teachers:
            raise ValueError(f"there is no teacher of '{category}' that could have a guidance of its own: name one")
        if not isfinite(scale):
            raise ValueError(f"the guidance of the teacher of '{category}' must be a finite number, not {scale:g}")
    return Teachers({category: absolute(str(name)) for category, name in teachers.items()}, dict(guidance or {}))


def _pairs(words: Sequence[str], what: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        category, _, value = word.partition("=")
        if not (category and value):
            raise ValueError(
                f"'{word}' is not {what}; write category={example}, e.g. {category or 'position'}={example}"
            )
        if category in found:
            raise ValueError(f"the category '{category}' has two values, {found[category]} and {value}: leave out one")
        found[category] = value
    return found


def imagined(policy: Policy, teachers: Teachers) -> Teachers:
    """The teachers as copies of a policy's weights, for counting memory: nothing is read."""
    for name in dict.fromkeys(teachers.named.values()):
        policy.weights.add(weights_of(name))
    return replace(teachers, identities={category: {} for category in teachers.named})


def held(policy: Policy, teachers: Teachers, algorithm: Objective, texts: PromptSet) -> Teachers:
    """Read the teachers, each once, and hold their weights beside those of the policy.

    Raises:
        ValueError: they do not fit the algorithm or the prompts, or one cannot be read or does not fit the policy.
    """
    refuse_incomplete(algorithm)
    teachers.refuse(algorithm, texts)
    read: dict[str, Identity] = {}
    for category, name in teachers.named.items():
        if name in read:
            continue
        try:
            values, about = _read(policy, name)
            policy.weights.hold(weights_of(name), values)
        except ValueError as error:
            raise ValueError(f"the teacher of '{category}' cannot be used: {error}") from error
        read[name] = {**about, "sha256": _digest(values)}
    return replace(teachers, identities={category: read[name] for category, name in teachers.named.items()})


def _digest(values: Values) -> str:
    found = hashlib.sha256()
    for key in sorted(values):
        found.update(key.encode())
        found.update(values[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read(policy: Policy, name: str) -> tuple[Values, Identity]:
    """The weights of a teacher as tensors of the policy, and what it says about itself."""
    if policy.weights.collective and not isinstance(policy.weights, LoRA):
        raise ValueError("weights that are split among processes have no copies of others: leave out --shard, or train "
                         "adapters (--lora-rank)")  # fmt: skip
    path = Path(name)
    if (path / "config.yaml").is_file():
        return _of_run(policy, path)
    if (path / FACTS).is_file():
        return _of_weights(policy, path), {}
    return _of_lora(policy, name), {}


def _of_run(policy: Policy, path: Path) -> tuple[Values, Identity]:
    refuse_other_kinds(path)
    folder = RunFolder.open(path)
    given = folder.config()
    if given.get("palette"):
        raise ValueError(PALETTE.format(path))
    state = folder.state("identity", "iteration", "weights", within="weights.policy.")
    if state is None:
        raise ValueError(f"{path} contains no checkpoint yet: wait for the first one")
    with folder.explained():
        identity, values = state["identity"], state["weights"]["policy"]
        rounded = bool((given.get("loading") or {}).get("quantise")) or _quantised(policy)
        _refuse_other_base(policy, {key: identity.get(key) for key in BASE}, str(path), rounded)
        about = {"iteration": int(state["iteration"])}
        rank = given.get("lora_rank")
        if not isinstance(policy.weights, LoRA):
            if rank is not None:
                raise ValueError(_adapters(path, rank))
            return values, about
        if rank is None:
            raise ValueError(
                f"all weights of {path} were trained, so adapters cannot hold it: train all weights (--lora-rank none)"
            )
        scale = (given.get("lora_alpha") or 2.0 * rank) / rank
        return policy.weights.padded(_layers(values), scale), about


def _layers(values: Values) -> dict[str, tuple[Tensor, Tensor]]:
    ends = (".lora_A.weight", ".lora_B.weight")
    stems = [key.removesuffix(ends[0]) for key in values if key.endswith(ends[0])]
    return {stem: (values[stem + ends[0]], values[stem + ends[1]]) for stem in stems}


def _adapters(name: object, rank: int) -> str:
    return f"{name} is a LoRA, and all weights of the model are trained: train adapters too (--lora-rank {rank})"


def _quantised(policy: Policy) -> bool:
    return bool(policy.loading and policy.loading.quantise)


def _refuse_other_base(policy: Policy, identity: Mapping[str, Any], name: str, rounded: bool) -> None:
    """Raise ValueError if a teacher was made from another model; weights that are rounded have other fingerprints."""
    keys = [key for key in identity if identity[key] is not None and not (rounded and key == "base")]
    if other := [key for key in keys if identity[key] != policy.identity.get(key)]:
        raise ValueError(f"{name} was trained from another base model than {policy.name} (different {other[0]}); a "
                         "teacher must share the base model")  # fmt: skip


def _of_weights(policy: Policy, folder: Path) -> Values:
    """Merged weights that `flowward export` wrote."""
    facts = strict_json.loads((folder / FACTS).read_text("utf-8"))
    if isinstance(facts.get("palette"), dict):
        raise ValueError(PALETTE.format(folder))
    _refuse_other_base(policy, {"base": facts.get("base")}, str(folder), bool(facts.get("quantise")))
    if isinstance(policy.weights, LoRA):
        raise ValueError(f"{folder} has all weights merged, so adapters cannot hold it: give its run or its LoRA, or "
                         "train all weights (--lora-rank none)")  # fmt: skip
    parts = [part for part in ("transformer", "transformer_2") if (folder / part).is_dir()]
    found: Values = {}
    try:
        for part in parts:
            for file in sorted((folder / part).glob("*.safetensors")):
                found |= {f"{part}.{key}" if len(parts) > 1 else key: each for key, each in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    mine = policy.weights.tensors("policy")
    return {key: tensor for key, tensor in found.items() if key in mine}  # the others are buffers


def _of_lora(policy: Policy, name: str) -> Values:
    """An export of flowward, or a LoRA of another program, of which only the layers can be compared."""
    weights = policy.weights
    if not isinstance(weights, LoRA):
        file = names.lora(name)  # raises for what is no LoRA
        raise ValueError(_adapters(file, 32))
    start = weights.read(name)
    facts = strict_json.loads(names.header_of(start.file).get("flowward", "{}"))
    rounded = bool(facts.get("quantise")) or _quantised(policy)
    _refuse_other_base(policy, {"base": facts.get("base")}, str(start.file), rounded)
    return weights.padded(start.layers, start.alpha / start.rank)
