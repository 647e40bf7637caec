"""What a run depends on outside its folder: prompts, rewards with their code and options, and images from files.

The run folder keeps an identity of each in inputs.json. A resumed run must have the same ones, unless the user says
otherwise: a setting was given anew, or `--changed-inputs`. Folders of older versions have no inputs.json; they are
resumed without this check, and get one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import models, prompts, rewards
from ..evaluation.code_hashes import CODE, code_differs, without_code
from ..evaluation.provenance import PLACES, described, hash_of
from ..prompts import PromptSet
from ..rewards import Reward
from ..system import strict_json
from ..system.paths import absolute, absolute_code, fingerprint, short_codes
from .record import INPUTS, Record, read_json

Inputs = dict[str, dict[str, Any]]
"""what it is (`prompts`, `reward NAME`) -> `named`: its name in the settings, `identity`: what must stay the same"""


@dataclass(frozen=True)
class Change:
    """One input that differs from that of the run so far."""

    key: str  # of Inputs
    said: str  # as in 'the code of reward mine.py:bright'
    chosen: bool  # the user named another one


def located(settings: Any, before: Any = None) -> Any:
    """config.Settings with absolute paths, so that the run can be resumed from another folder.

    Args:
        before: settings of the run that is resumed, if any. What is equal to them stays as it is: relative paths of
            older runs mean what they meant.
    """
    how = _placed(settings.evaluation, before and before.evaluation)
    return _placed(replace(settings, evaluation=how), before)


def _placed(settings: Any, before: Any) -> Any:
    named = {name: getattr(settings, name) for name in PLACED if hasattr(settings, name)}
    fresh = {name for name, value in named.items() if before is None or value != getattr(before, name)}
    return replace(settings, **{name: PLACED[name](named[name]) for name in fresh})


def _model(name: str) -> str:
    """Only of what can be loaded: an error about anything else has the name that was typed."""
    if models.is_code(name):
        return absolute_code(name)
    folder = Path(name)
    known = any((folder / file).is_file() for file in ("model_index.json", "text_encoder/config.json"))
    return absolute(name) if known and name not in models.BUILT_IN else name


def _codes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(absolute_code(name) for name in names)


def _options(options: Iterable[str]) -> tuple[str, ...]:
    return tuple(rewards.located_option(option) for option in options)


def _file(path: Path | None) -> Path | None:
    return path and Path(absolute(str(path)))


def _assigned(word: str) -> str:
    """`category=name` with an absolute path."""
    key, equals, name = word.partition("=")
    return f"{key}{equals}{absolute(name)}"


PLACED: Mapping[str, Any] = {  # settings that can name files, and how each is made absolute
    "model": _model,
    "prompts": prompts.located,
    "reward": _codes,
    "rewards": _codes,
    "guard": _codes,
    "reward_options": _options,
    "preferences": _file,
    "exemplars": _file,
    "init_lora": lambda name: name and absolute(name),
    "teachers": lambda words: tuple(_assigned(word) for word in words),
}


def of(settings: Any, reward: Reward, texts: PromptSet, held_out: PromptSet, measured: Mapping[str, Reward]) -> Inputs:
    """The inputs of a run, without its preference pairs and exemplars: see `of_images`."""
    how = settings.evaluation
    found = {"evaluation prompts": _prompts(how.prompts, held_out)}
    if not settings.preferences:  # they bring prompts and a reward of their own
        found["prompts"] = _prompts(settings.prompts, texts)
        names = [rewards.weighted(item)[0] for item in settings.reward]
        short = short_codes(names)
        for name, (_, _, own) in zip(names, rewards.terms(reward), strict=True):
            found[f"reward {short[name]}"] = _reward(name, settings.reward_options, own)
    for name, label in how.names.items():
        options = [*settings.reward_options, *how.reward_options]
        found[f"evaluation reward {label}"] = _reward(rewards.weighted(name)[0], options, measured[label])
    return found


def of_images(what: str, file: Path, identity: str) -> Inputs:
    """Preference pairs or exemplars (`what`) from a file; their identity includes the images."""
    return {what: {"named": str(file), "identity": {"hash": identity}}}


def _prompts(name: str, found: PromptSet) -> dict[str, Any]:
    return {"named": name, "identity": {"hash": hash_of(found), "prompts": len(found)}}


def _reward(name: str, options: Sequence[str], reward: Reward) -> dict[str, Any]:
    own = sorted(option for option in options if rewards.owner(option) == name)
    known = {key: value for key, value in described(reward).items() if key not in PLACES}
    files = {key: fingerprint(Path(value)) for key, value in known.items() if _is_file(value)}
    return {"named": " ".join([name, *own]), "identity": known | ({"files": files} if files else {})}


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)


def compared(folder: Path, now: Inputs, allowed: bool = False) -> list[Change]:
    """The inputs that differ from those of a run so far; none if its folder does not know them.

    Args:
        allowed: inputs may have changed under the same name.

    Raises:
        ValueError: one has, and this is not allowed; or inputs.json is damaged.
    """
    if not (folder / INPUTS).is_file():
        return []
    before = read_json(folder / INPUTS).get("inputs")
    if not isinstance(before, dict) or not all(map(_is_whole, before.values())):
        raise ValueError(f"{folder / INPUTS} is damaged: delete it to continue without a check of the inputs")
    found = list(_changes(before, strict_json.loads(strict_json.dumps(now))))
    if (silent := [change.said for change in found if not change.chosen]) and not allowed:
        raise ValueError(
            f"the inputs of {folder} have changed since it was started: {', '.join(silent)}; restore them, or add "
            "--changed-inputs to continue with the new ones"
        )
    return found


def _is_whole(known: Any) -> bool:
    identity = known.get("identity") if isinstance(known, dict) else None
    return isinstance(identity, dict) and isinstance(identity.get("files", {}), dict)


def _changes(before: Inputs, now: Inputs) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *now]):
        one, other, trained = before.get(key), now.get(key), key.removeprefix("evaluation ")
        if trained != key and (one, other) == (before.get(trained), now.get(trained)):
            continue  # it is said of the training already
        if one is None or other is None:
            yield Change(key, f"{key} ({'removed' if other is None else 'added'})", chosen=True)
            continue
        chosen, named = one.get("named") != other["named"], other["named"]
        for said in _differences(key, one["identity"], other["identity"], named):
            yield Change(key, f"{said}, which was {one.get('named')}" if chosen else said, chosen)


def _differences(key: str, one: Mapping[str, Any], other: Mapping[str, Any], named: str) -> Iterator[str]:
    """What differs, in words. A key that only one of them has belongs to another version of flowward."""
    if "hash" in other:
        if one.get("hash") != other["hash"]:
            counts = [each.get("prompts") for each in (one, other)]
            yield f"{key} {named}" + (f" ({counts[0]} before, {counts[1]} now)" if counts[0] != counts[1] else "")
        return
    if code_differs(one, other):
        yield f"the code of {key}"
    for name in sorted(one.keys() & other.keys() - {"files", CODE}):
        before, now = without_code(one[name]), without_code(other[name])
        if before != now:
            yield f"{name} of {key}" + ("" if name.endswith("sha256") else f" ({before} before, {now} now)")
    files = [each.get("files", {}) for each in (one, other)]
    for name in sorted(files[0].keys() & files[1].keys()):
        if files[0][name] != files[1][name] and f"{name}_sha256" not in other:
            yield f"the content of {name} of {key}"


def write(run: Record, now: Inputs, iteration: int, changes: Sequence[Change] = ()) -> None:
    """Keep the inputs in a run folder, and what has changed after which iteration.

    Raises:
        OSError: the file cannot be written.
    """
    said = [change.said for change in changes]
    before = [*run.changes(), *([{"iteration": iteration, "changed": said}] if said else [])]
    run.write_text(INPUTS, strict_json.dumps({"inputs": now, "changes": before}, 2) + "\n")


def sentence(changes: Sequence[Change]) -> str | None:
    """A warning about changed inputs; None if there are none."""
    said = ", ".join(change.said for change in changes)
    return f"the run continues with other inputs: {said}" if said else None
