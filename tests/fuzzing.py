"""Inputs that nobody would write on purpose, by area, and what must be true of each: a value, or one sentence.

`tests/test_fuzz.py` runs some of them, `benchmarks/fuzz.py` many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from flowward.algorithms import CLASSES
from flowward.commands import train
from flowward.commands.help import options_of
from flowward.system import strict_yaml
from flowward.training import config
from flowward.training.record import read_yaml


@dataclass(frozen=True)
class Area:
    """One kind of input."""

    inputs: SearchStrategy[Any]
    check: Callable[[Any, Path], None]  # an input, an empty folder; raises if anything but a sentence comes of it
    few: int  # cases in the tests


def sentence(run: Callable[[], object]) -> None:
    """The call returns, or refuses in one sentence; any other exception is a fault."""
    try:
        run()
    except (ValueError, OSError) as error:
        assert str(error).strip(), f"{type(error).__name__} without a word"
    except SystemExit as end:
        assert end.code in (0, None), end.code


# Words of the command line

FLAGS = [
    f"--{each.name}" for each in options_of(config.settings_type("flow_grpo"), config.settings_type("flow_grpo")())
]
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.sampled_from(["1e3", "0x10", "1_0", "٣", "1/6", "--", ""]),
)
NAMES = st.sampled_from(
    [*CLASSES, "scenes", "auto", "none", "None", "true", "[1]", "{}", "~", "~root", "a=b=c", "hf:", "NaN"]
)
WORDS = st.one_of(
    st.sampled_from(
        [*FLAGS, *(f"--no-{flag[2:]}" for flag in FLAGS), "--preset", "--algorithm", "--config", "--help", "-h"]
    ),
    NUMBERS,
    NAMES,
    st.text(max_size=12),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl"]), max_size=4),
    st.tuples(st.sampled_from(FLAGS), st.one_of(NUMBERS, NAMES, st.text(max_size=6))).map("=".join),
)


def parse_words(words: list[str], folder: Path) -> None:
    sentence(lambda: train.chosen(words))


# YAML

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([*CLASSES, "scenes"])
)
WORLD = """
model reward prompts run evaluation algorithm loading name preset rollout steps guidance sampler credit points
times iterations group_size learning_rate lora_rank precision threads size own window output"""
KEYS = st.one_of(st.sampled_from(WORLD.split()), st.text(max_size=5), st.integers())
TREES = st.recursive(
    SCALARS, lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(KEYS, part, max_size=4)), max_leaves=12
)
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["a:", "- ", "&x ", "*x", "<<: ", "{", "}", "[", "]", ", ", "!!int ", "!", "'", '"', "|\n", ">\n"]
        ),
        st.sampled_from(
            ["\n", "\n  ", "\t", "# ", "---\n", "...", "? ", "%YAML 1.1\n", "on", "010", "1e5", "2024-01-01", "~"]
        ),
        st.text(max_size=4),
    ),
    max_size=14,
).map("".join)


def read_text(text: str, folder: Path) -> None:
    sentence(lambda: strict_yaml.loads(text))


def read_config(tree: Any, folder: Path) -> None:
    sentence(lambda: config.from_dict(tree))


def read_bytes(content: bytes, folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    sentence(lambda: config.from_dict(read_yaml(file)))


AREAS = {
    "words": Area(st.lists(WORDS, max_size=6), parse_words, 40),
    "yaml text": Area(PIECES, read_text, 800),
    "settings": Area(st.dictionaries(KEYS, TREES, max_size=5), read_config, 150),
    "config file": Area(
        st.one_of(st.binary(max_size=60), PIECES.map(lambda text: text.encode("utf-8", "replace"))), read_bytes, 300
    ),
}
