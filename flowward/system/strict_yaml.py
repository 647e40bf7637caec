"""YAML as a user means it: what can be read in two ways is refused, with its line.

PyYAML follows YAML 1.1, editors and other tools mostly YAML 1.2. They differ in plain words such as `on` and in numbers
such as 010. PyYAML also takes the last of two equal keys without a word.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

DEEPEST = 50  # levels; a configuration has five
MOST = 100_000  # values after aliases are written out: a few lines can stand for billions

TWO_MEANINGS = {  # plain words that YAML 1.1 and 1.2 read differently
    r"(?i:yes|no|on|off)": "write true or false, or put it in quotes",
    r"[-+]?0[0-9_]+": "write the number without a leading 0, or put it in quotes",
    r"0o[0-7]+|[-+]?0b[01_]+": "write it as a decimal number, or put it in quotes",
    r"[-+]?(?:[0-9][0-9_]*)?[0-9]_[0-9_.]*": "write the number without _, or put it in quotes",
    r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?": "put it in quotes, or it may be read in base 60",
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?": "put it in quotes, or it may be read as a date",
}
NUMBER = re.compile(  # 1e-4, 1.5e3 and -.5: numbers in YAML 1.2, and what everybody means
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


class _Loader(yaml.SafeLoader):
    """Safe loading with one meaning per file."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def loads(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is not YAML, says something twice, or can be read in two ways; the sentence names the line.
    """
    return deepcopy(_read(text))


@lru_cache(maxsize=16)  # one command reads config.yaml several times, and reading takes 10 ms
def _read(text: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse(node, loader)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{_line(mark)}{_problem(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ValueError(f"line {line}: the character U+{error.character:04X} is not allowed in YAML") from error
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    if "\\t" in problem:
        return "a tab; indent with spaces"
    return " ".join(part for part in (error.context, problem) if part)


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}: " if mark else ""


def _refuse(root: yaml.Node, loader: _Loader) -> None:
    sizes: dict[int, int] = {}

    def visit(node: yaml.Node, depth: int) -> int:
        """How many values a node stands for."""
        if depth > DEEPEST:
            raise ValueError(f"{_line(node.start_mark)}it is nested more than {DEEPEST} levels deep")
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise ValueError(f"{_line(node.start_mark)}it contains itself")
            return sizes[id(node)]
        sizes[id(node)] = 0
        if node.tag not in PLAIN or node.tag != _implicit(node, loader):
            name = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ValueError(f"{_line(node.start_mark)}the tag {name} is not read; write a plain value")
        total = 1
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            total += sum(visit(key, depth + 1) + visit(value, depth + 1) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(visit(each, depth + 1) for each in node.value)
        elif isinstance(node, yaml.ScalarNode):
            _refuse_ambiguous(node)
        if total > MOST:
            raise ValueError(f"{_line(node.start_mark)}it stands for more than {MOST:,} values")
        sizes[id(node)] = total
        return total

    visit(root, 0)


def _implicit(node: yaml.Node, loader: _Loader) -> str:
    """The tag that a node has if none is written."""
    if not isinstance(node, yaml.ScalarNode):
        return str(node.tag)
    plain = node.style is None
    return str(loader.resolve(yaml.ScalarNode, node.value, (plain, not plain)))


def _refuse_twice(node: yaml.MappingNode) -> None:
    lines: dict[Hashable, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key must be a plain word")
        if key.value in lines:
            raise ValueError(f"line {line}: '{key.value}' is given twice (first in line {lines[key.value]})")
        lines[key.value] = line


def _refuse_ambiguous(node: yaml.ScalarNode) -> None:
    if node.style is not None or node.tag == "tag:yaml.org,2002:merge":
        return  # in quotes
    for pattern, advice in TWO_MEANINGS.items():
        if re.fullmatch(pattern, node.value):
            raise ValueError(
                f"{_line(node.start_mark)}'{node.value}' has different meanings in YAML 1.1 and 1.2: {advice}"
            )
