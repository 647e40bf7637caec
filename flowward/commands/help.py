"""Help pages of commands, built from the dataclass that a command's options are parsed into.

`--help` shows the options that most readers want, `--help-all` every one of them under a plain title. No torch.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

WIDEST = 100  # columns; longer lines are hard to read
NARROW = 72  # below, the text of an option stands under its name
LEFT = 30  # columns of names, at most
METAVARS = {
    "model": "MODEL",
    "reward": "NAME[=WEIGHT] ...",
    "rewards": "NAME ...",
    "gpu": "NAME|GB|none",
    "guard": "NAME ...",
    "reward_options": "NAME.OPTION=VALUE ...",
    "prompts": "SET|FILE",
    "prompt_weights": "CATEGORY=WEIGHT ...",
    "questions": "SET|FILE",
    "question_weights": "CATEGORY=WEIGHT ...",
    "tools": "TOOL ...",
    "executor": "rule|world|same|URL#MODEL",
    "verifier": "rule|world|same|URL#MODEL",
    "generator": "rule|same|URL#MODEL",
    "analysis": "none|same|URL#MODEL",
    "server": "URL#MODEL",
    "lora_targets": "LAYER ...",
    "init_lora": "LORA",
    "init_lora_sha256": "HASH",
    "loading.size": "HEIGHT WIDTH",
    "memory": "GB|auto",
    "betas": "BETA1 BETA2",
}
TITLES = {
    "loading": "Loading the model: size, device, memory, speed",
    "layout": "Sharing one model among processes",
    "drawing": "Drawing images in Ray actors",
    "run": "Training loop",
    "evaluation": "Evaluation",
    "evaluation.sampler": "Evaluation: how images are sampled",
    "sampler": "Sampling",
    "algorithm": "Algorithm",
    "limits": "Limits of an episode",
    "modules": "Which agent",
    "algorithm.rollout": "Algorithm: sampling of training images",
    "algorithm.rollout.window": "Algorithm: window of random steps",
    "algorithm.rollout.churn": "Algorithm: random pushes between the two images of a pair",
    "algorithm.credit": "Algorithm: from rewards to advantages",
    "algorithm.points": "Algorithm: training points",
    "algorithm.points.times": "Algorithm: times of training points",
    "algorithm.old": "Algorithm: updates of the old policy",
    "algorithm.ema": "Algorithm: updates of the EMA policy",
}


@dataclass(frozen=True)
class Option:
    """One option, or a word without a flag (`positional`)."""

    name: str  # as on the command line, without the two dashes
    metavar: str
    text: str
    group: str = ""  # path of the part that it belongs to
    positional: bool = False
    optional: bool = False  # may be none
    switch: bool | None = None  # the default of a flag that takes no value

    @property
    def left(self) -> str:
        """The column of names."""
        if self.positional:
            return self.metavar
        path, dot, last = self.name.rpartition(".")
        return f"--{path}{dot}{'[no-]' if self.switch else ''}{last} {self.metavar}".rstrip()


@dataclass(frozen=True)
class Page:
    """What a command says about itself."""

    about: str = ""
    examples: Sequence[tuple[str, str]] = ()  # (words after `flowward`, what they do)
    first: Sequence[str] = ()  # the options that --help shows, in this order; empty: all
    beside: Sequence[Option] = ()  # options that the command takes out of the words before the others are parsed
    title: str = "Options"  # of those that belong to no part


class Shown(SystemExit):
    """The end of a command that has printed its help page."""

    def __init__(self, page: Page, options: Sequence[Option]):
        super().__init__(0)
        self.options = [*page.beside, *options]


def options_of(kind: Any, default: Any = None) -> list[Option]:
    """The options that tyro makes of a dataclass, in its order."""
    return list(_walk(kind, default, "", "", omit=False))


def _walk(kind: Any, default: Any, prefix: str, group: str, omit: bool) -> Iterator[Option]:
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    for each in fields(kind):
        value = _default(each) if default is None else getattr(default, each.name)
        marks = get_args(hints[each.name])[1:] if get_origin(hints[each.name]) is Annotated else ()
        path = f"{group}.{each.name}" if group else each.name
        if is_dataclass(value):
            bare = omit or tyro.conf.OmitArgPrefixes in marks
            yield from _walk(type(value), value, "" if bare else f"{prefix}{each.name}.", path, bare)
        else:
            yield _option(each.name, hints[each.name], value, texts.get(each.name, ""), prefix, group)


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _option(name: str, hint: Any, value: Any, text: str, prefix: str, group: str) -> Option:
    marks: Sequence[Any] = ()
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
    positional = tyro.conf.Positional in marks
    given = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    switch = value if hint is bool and isinstance(value, bool) else None
    metavar = (
        "" if switch is not None else given or METAVARS.get(f"{group}.{name}") or METAVARS.get(name) or _metavar(kinds)
    )
    flag = (prefix + name).replace("_", "-")
    said = " ".join(re.sub(r"\bNone\b", "none", text).split())
    if not positional and value is not MISSING and (shown := _said(value, said)):
        said = f"{said} (default: {shown})".strip()
    return Option(flag, metavar, said, group, positional, NoneType in kinds, switch)


def _metavar(kinds: Sequence[Any]) -> str:
    """`euler|dpm2`, `N`, `NUMBER|auto` and the like, of the types that a value may have."""
    return "|".join(_one(kind) for kind in kinds if kind is not NoneType)


def _one(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        own = get_args(kind)
        return f"{_one(own[0])} ..." if own[-1] is Ellipsis else " ".join(map(_one, own))
    return {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false"}.get(kind, "VALUE")


def _said(value: Any, text: str) -> str:
    """A default in words; nothing where the text tells it, or where it is off."""
    if value is False or (value is None and "none:" in text) or "(default" in text:
        return ""
    if value is None or value == ():
        return "none"
    if value is True:
        return "on"
    if isinstance(value, float) and len(repr(value)) > 8:
        near = Fraction(value).limit_denominator(100)
        return str(near) if abs(near - Fraction(value)) < 1e-12 else f"{value:.6g}"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _texts(kind: Any) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it is made from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        found |= _own_texts(each)
    return found


@cache
def _own_texts(kind: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError):  # built in, or made while the program runs
        return {}
    found, name = {}, ""
    for line in tree.body if isinstance(tree, ast.ClassDef) else ():
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and name:
            found[name] = str(line.value.value)
        name = line.target.id if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) else ""
    return found


def show(page: Page, command: str, options: Sequence[Option], full: bool, width: int | None = None) -> str:
    """The text of `--help`, or of `--help-all` (full)."""
    width = min(WIDEST, width or shutil.get_terminal_size().columns)
    every = [*page.beside, *options]
    words = " ".join(each.metavar for each in every if each.positional)
    parts = [f"usage: flowward {command} [options] {words}".rstrip(), textwrap.fill(page.about, width)]
    if page.examples:
        parts.append("\n".join(["Examples", *(example(words, what, width) for words, what in page.examples)]))
    if positional := [each for each in every if each.positional]:
        parts.append(_list("", positional, width))
    flags = [each for each in every if not each.positional]
    if page.first and not full:
        own = {each.name: each for each in flags}
        parts.append(_list("Options", [own[name] for name in page.first if name in own], width))
        parts.append(f"--help-all shows all {len(flags)} options.")
    else:
        parts += [_list(title(group, page), own, width) for group, own in _groups(flags).items()]
    return "\n\n".join(part for part in parts if part)


def _groups(options: Sequence[Option]) -> Mapping[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for each in options:
        found.setdefault(each.group, []).append(each)
    return found


def title(group: str, page: Page) -> str:
    if not group:
        return page.title
    return TITLES.get(group) or f"{group.partition('.')[0].capitalize()}: {group.rpartition('.')[2].replace('_', ' ')}"


def example(words: str, what: str, width: int) -> str:
    """What a command does, as a comment, and the command, broken before its options as a shell takes it."""
    lines = [""]
    for part in re.split(r" (?=--)", f"flowward {words}"):
        if lines[-1] and len(lines[-1]) + len(part) + 5 > width:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    told = textwrap.wrap(what, width - 4, initial_indent="# ", subsequent_indent="# ")
    return textwrap.indent("\n".join([*told, *lines]), "  ")


def _list(title: str, options: Sequence[Option], width: int) -> str:
    """Options with their texts, in two columns where there is room."""
    lines = [title] if title else []
    left = min(LEFT, max((len(each.left) for each in options), default=0) + 4)
    for each in options:
        if width < NARROW:
            lines += [
                f"  {each.left}",
                *textwrap.wrap(each.text, width - 6, initial_indent="      ", subsequent_indent="      "),
            ]
            continue
        text = textwrap.wrap(each.text, width - left) or [""]
        if len(each.left) + 4 > left:
            lines.append(f"  {each.left}")
        else:
            lines.append(f"  {each.left}".ljust(left) + text.pop(0))
        lines += [" " * left + line for line in text]
    return "\n".join(line.rstrip() for line in lines)
