"""Inputs that nobody would write on purpose, by area, and what must be true of each: a value, or one sentence.

`tests/test_fuzz.py` runs some of them, `benchmarks/fuzz.py` many.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from flowward import prompts
from flowward.algorithms import CLASSES
from flowward.commands import train
from flowward.commands.help import options_of
from flowward.evaluation import measurement, outcome
from flowward.rewards.judges import template
from flowward.rewards.judges.wording import Unreadable
from flowward.rewards.service import wire
from flowward.system import strict_yaml
from flowward.training import config
from flowward.training.datasets import Exemplars, Preferences
from flowward.training.folder import RunFolder
from flowward.training.record import read_yaml


@dataclass(frozen=True)
class Area:
    """One kind of input."""

    inputs: SearchStrategy[Any]
    check: Callable[[Any, Path], None]  # an input, an empty folder; raises if anything but a sentence comes of it
    few: int  # cases in the tests


def asked(cases: int, **more: Any) -> settings:
    """How hypothesis asks: so many cases, however long one takes, and none remembered from earlier runs."""
    return settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more)


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


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def read_bytes(content: bytes, folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    sentence(lambda: config.from_dict(read_yaml(file)))


# Prompt files

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(st.text(max_size=4), part, max_size=3)),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["prompt", "caption", "text", "source", "category", "Prompt", "id", "quote"])
LINES = st.lists(st.dictionaries(COLUMNS, JSON, max_size=4).map(json.dumps), max_size=4).map("\n".join)
TABLES = st.lists(st.lists(st.text(max_size=5), max_size=3).map(",".join), max_size=4).map("\n".join)
ENDS = st.sampled_from([".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".PNG", ""])
FILES = st.tuples(ENDS, st.one_of(st.binary(max_size=60), st.one_of(LINES, TABLES, st.text(max_size=60)).map(encoded)))


def read_prompts(given: tuple[str, bytes], folder: Path) -> None:
    end, content = given
    file = folder / f"prompts{end}"
    file.write_bytes(content)
    sentence(lambda: prompts.load(str(file)))
    sentence(lambda: Preferences.load(file))
    sentence(lambda: Exemplars.load(file, 0.5, 2))


# Answers of judges

TOKENS = st.fixed_dictionaries(
    {}, optional={"token": st.one_of(JSON, st.sampled_from(["Yes", "no", " YES", "<think>", "\n"])), "logprob": JSON,
                  "top_logprobs": st.one_of(JSON, st.lists(JSON, max_size=2))},
)  # fmt: skip
SAID = '<think> </think> Final Score: ** 4 4/10 3,5 40% 1e-1 \\boxed{ } {"score": 0.5 - yes no image 1'
WORDING = st.lists(
    st.one_of(
        st.sampled_from(SAID.split()), st.text(max_size=5), st.integers().map(str), st.floats().map(str)
    ), max_size=8,
).map(" ".join)  # fmt: skip


def maybe(**parts: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """A mapping with some of these parts, or anything else."""
    return st.one_of(JSON, st.fixed_dictionaries({}, optional=parts))


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "message": maybe(content=st.one_of(WORDING, JSON), reasoning_content=JSON),
        "logprobs": maybe(content=st.one_of(JSON, st.lists(TOKENS, max_size=3))),
        "finish_reason": st.one_of(JSON, st.sampled_from(["stop", "length"])),
    },
)
TEMPLATES = [template.load(name) for name in template.SHIPPED]


def read_answer(choice: dict[str, Any], folder: Path) -> None:
    for each in TEMPLATES:
        try:
            score = each.read.read(choice)
        except Unreadable as error:
            assert str(error).strip()
        else:
            assert 0 <= score <= 1


# Calls of a reward server

KINDS = st.sampled_from(["application/json", "application/x-safetensors", "application/octet-stream", "text/html", ""])
CALLS = st.dictionaries(st.sampled_from(["images", "prompts", "metadata", "encoding", "x"]), JSON, max_size=4)
BODIES = st.tuples(KINDS, st.one_of(st.binary(max_size=40), CALLS.map(json.dumps).map(encoded)))


def read_call(given: tuple[str, bytes], folder: Path) -> None:
    kind, body = given
    sentence(lambda: wire.decode(body, kind, 1e6))
    sentence(lambda: wire.asked_of(body))


# Folders of runs, checkpoints and measurements that were damaged

RUN = Path(__file__).parent / "data" / "run"
NAMES = [str(file.relative_to(RUN)) for file in sorted(RUN.rglob("*")) if file.is_file()]
WAYS = st.sampled_from(["cut", "flip", "empty", "gone", "json"])
DAMAGE = st.lists(st.tuples(st.sampled_from(NAMES), WAYS, st.integers(0, 10**6), JSON), min_size=1, max_size=3)


def damaged(content: bytes, how: str, where: int, value: Any) -> bytes:
    at = where % (len(content) + 1)
    match how:
        case "cut":
            return content[:at]
        case "flip":
            return content[:at] + bytes([where % 256]) + content[at + 1 :]
        case "empty":
            return b""
    return json.dumps(value).encode()


def read_run(damage: list[tuple[str, str, int, Any]], folder: Path) -> None:
    copy = Path(shutil.copytree(RUN, folder / "run"))
    for name, how, where, value in damage:
        file = copy / name
        if how == "gone":
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(damaged((RUN / name).read_bytes(), how, where, value))
        if file.suffix == ".json" and file.exists():
            sentence(lambda file=file: measurement.read(file))

    def everything() -> None:
        run = RunFolder.open(copy)
        sentence(lambda: config.from_dict(run.config()))
        sentence(lambda: outcome.of(run.lines()))
        for each in (run.state, run.origin, run.summary, run.changes, run.samples):
            sentence(each)

    sentence(everything)


AREAS = {
    "words": Area(st.lists(WORDS, max_size=6), parse_words, 40),
    "yaml text": Area(PIECES, read_text, 600),
    "settings": Area(st.dictionaries(KEYS, TREES, max_size=5), read_config, 120),
    "config file": Area(st.one_of(st.binary(max_size=60), PIECES.map(encoded)), read_bytes, 240),
    "prompt file": Area(FILES, read_prompts, 300),
    "judge answer": Area(CHOICES, read_answer, 400),
    "reward call": Area(BODIES, read_call, 200),
    "run folder": Area(DAMAGE, read_run, 100),
}
