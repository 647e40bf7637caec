"""Make a reward from its name, a package's entry point, `module:function`, a file, or a server address."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor

from ..system import tables, user_code
from ..system.errors import first_invalid, named, unknown
from ..system.paths import absolute, absolute_code, short_codes
from ..system.threads import refuse_fewer
from .images.aesthetic import Aesthetic
from .images.clip import CLIPScore, PickScore
from .images.diversity import Diversity
from .images.hps import HPSv2
from .images.imagereward import ImageReward
from .images.jpeg import Compressible, Incompressible
from .images.looks import Brightness, Colourfulness, Contrast, Variety
from .images.scenes import Balance, SceneNet, Scenes, Soft, Strict
from .judges.judge import Judge
from .objects.geneval import GenEval, StrictGenEval
from .reward import Reward, refuse, score
from .service.remote import Remote
from .sound.clap import CLAPScore
from .sound.levels import Loudness, Sounding, Unclipped
from .sound.tempo import Tempo
from .text.ocr import OCR, StrictOCR
from .videos.motion import Motion, SourceFrame
from .videos.steady import Steady

REWARDS: dict[str, Callable[..., Reward]] = {
    "scenes": Scenes,
    "scenes-strict": Strict,
    "scenes-soft": Soft,
    "scenes-net": SceneNet,
    "balance": Balance,
    "jpeg-compressibility": Compressible,
    "jpeg-incompressibility": Incompressible,
    "brightness": Brightness,
    "contrast": Contrast,
    "colourfulness": Colourfulness,
    "variety": Variety,
    "pickscore": PickScore,
    "clipscore": CLIPScore,
    "hpsv2": HPSv2,
    "imagereward": ImageReward,
    "aesthetic": Aesthetic,
    "diversity": Diversity,
    "motion": Motion,
    "source-frame": SourceFrame,
    "steady": Steady,
    "loudness": Loudness,
    "sounding": Sounding,
    "unclipped": Unclipped,
    "tempo": Tempo,
    "clap": CLAPScore,
    "remote": Remote,
    "judge": Judge,
    "geneval": GenEval,
    "geneval-strict": StrictGenEval,
    "ocr": OCR,
    "ocr-strict": StrictOCR,
}
ENTRY_POINTS = "flowward.rewards"  # entry-point group for rewards of other packages


@dataclass(frozen=True)
class Sum:
    """A weighted sum of rewards."""

    takes_videos: ClassVar[bool] = True  # each term gets the whole video and handles frames itself

    terms: tuple[tuple[str, float, Reward], ...]  # (name, weight, reward)

    @property
    def compares(self) -> bool:
        """Whether any term makes the score of an image depend on other images in the call."""
        return any(getattr(reward, "compares", False) for _, _, reward in self.terms)

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError that names the first prompt that a term does not understand."""
        for name, _, reward in self.terms:
            refuse(reward, prompts, metadata, name)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        parts = [weight * score(name, reward, images, prompts, metadata) for name, weight, reward in self.terms]
        return torch.stack(parts).sum(0)


def terms(reward: Reward) -> tuple[tuple[str, float, Reward], ...]:
    """(name, weight, reward) of each term of a weighted sum; any other reward is its own only term."""
    return reward.terms if isinstance(reward, Sum) else ((_name(reward), 1.0, reward),)


def refuse_kind(reward: Reward, kind: str) -> None:
    """Raise ValueError if a built-in reward cannot score what a model makes.

    Args:
        kind: `images`, `videos` or `sounds`; empty: nobody knows, and nothing is refused.
    """
    table = tables.load(tables.PACKAGE / "rewards" / "table.yaml")
    for name, _, _ in terms(reward):
        able = table.get(name, {}).get("scores", ["images", "videos"]) if name in REWARDS else [kind]
        if kind and kind not in able:
            said = " and ".join(able)
            raise ValueError(f"the reward {name} scores {said}, but this model makes {kind}; choose another reward")


def _name(reward: Reward) -> str:
    """The name of a built-in reward; for others, that of the function or class."""
    own = getattr(reward, "__name__", type(reward).__qualname__)
    return next((name for name, kind in REWARDS.items() if kind is type(reward)), own)


def load(spec: str | Sequence[str], options: Sequence[str] = ()) -> Reward:
    """Load a reward by name (a string or a list with one), or a weighted sum from several `name=weight`.

    A name is one of REWARDS, a reward of an installed package, `package.module:function`, `path/to/file.py:function`,
    or the address of a reward server (several joined by commas). Options are `name.field=value`, for rewards that are
    dataclasses.

    Raises:
        ValueError: a name is unknown or cannot be loaded, a weight is not a number, an option does not exist, or torch
            would compute wrong numbers here (OMP_DYNAMIC, OMP_THREAD_LIMIT).
    """
    refuse_fewer()
    spec = [spec] if isinstance(spec, str) else spec  # a string is a sequence, too
    asked = _options(options)
    names = [weighted(item)[0] for item in spec]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"reward '{twice}' is named twice; name it once, with the sum of its weights")
    short = short_codes(names)
    found = [(short[name], weight, make(name, asked.pop(name, {}))) for name, weight in map(weighted, spec)]
    if not found:
        raise ValueError("name at least one reward")
    if asked:
        raise ValueError(
            f"there are options for reward '{next(iter(asked))}', but it is not used; add the reward or remove them"
        )
    return found[0][2] if len(found) == 1 and found[0][1] == 1 else Sum(tuple(found))


def weighted(item: str) -> tuple[str, float]:
    """Split `name=weight`; the default weight is 1.

    Raises:
        ValueError: the weight is not a number.
    """
    name, equals, weight = item.rpartition("=")
    if not equals or (_is_address(item) and "?" in name):  # this = belongs to the query of the address
        return item, 1.0
    try:
        factor = float(weight or 1)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise ValueError(f"the weight of reward '{name}' must be a number, not '{weight}'")
    return name, factor


def located_option(option: str) -> str:
    """An option with absolute paths: of its reward's file, and of a value that is a file, a folder or a cache."""
    where, equals, value = option.partition("=")
    name, dot, key = where.rpartition(".")
    if key == "cache" and value:
        value = os.path.abspath(value)
    elif os.sep in value or os.path.isfile(value):  # a bare word that is also a folder here means something else
        value = absolute(value)
    return f"{absolute_code(name)}{dot}{key}{equals}{value}"


def owner(option: str) -> str:
    """The reward that an option `name.field=value` belongs to."""
    return option.partition("=")[0].rpartition(".")[0]


def _options(given: Sequence[str]) -> dict[str, dict[str, str]]:
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for item in given:
        where, equals, value = item.partition("=")
        name, dot, key = where.rpartition(".")
        if not (equals and dot and name):
            raise ValueError(f"'{item}' is not a reward option; write it as reward.option=value")
        found[name][key] = value
    return dict(found)


def make(name: str, options: Mapping[str, str] | None = None) -> Reward:
    """Make a reward from its name and options.

    Raises:
        ValueError: see `load`.
    """
    kind = find(name)
    if _is_address(name):
        options = {**(options or {}), "address": name}
    try:
        return _of_kind(name, kind, options or {})
    except (Exception, SystemExit) as error:  # a user's class may fail in any way
        if isinstance(error, ValueError) and str(error):
            raise
        raise ValueError(f"cannot make reward '{name}': {named(error)}") from error


def _of_kind(name: str, kind: Any, options: Mapping[str, str]) -> Reward:
    if isinstance(kind, type) and is_dataclass(kind):
        return _made(name, kind, options)
    if options:
        raise ValueError(f"reward '{name}' has no options")
    found: Reward = kind() if name in REWARDS or isinstance(kind, type) else kind
    return found


def _made(name: str, kind: type, options: Mapping[str, str]) -> Reward:
    strict = with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))(kind)
    try:
        made: Reward = TypeAdapter(strict).validate_python(dict(options))
    except ValidationError as error:
        option, wrong = first_invalid(error)
        raise ValueError(f"reward '{name}'{f', option {option}' if option else ''}: {wrong}") from error
    return made


def find(name: str) -> Any:
    """The class or function of a reward name.

    Raises:
        ValueError: the name is unknown, or it cannot be imported.
    """
    if name in REWARDS:
        return REWARDS[name]
    if _is_address(name):
        return Remote
    if ":" in name or name.endswith(".py"):
        return user_code.find("reward", name)
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise ValueError(unknown("reward", name, [*REWARDS, *offered]))
    try:
        return offered[name].load()
    except (Exception, SystemExit) as error:  # another package may fail in any way
        raise ValueError(f"cannot import reward '{name}': {named(error)}") from error


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))
