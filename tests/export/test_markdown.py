"""What a run is called, its prompts and its paths are text in a model card, whatever signs they have."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from tiny_policies import policy

from flowward.export import card, markdown
from flowward.training.record import Record

EVIL = [
    "# heading", "- item", "12. item", "> quoted", "---", "===", "~~~", "```", "a | b", "<script>alert(1)</script>",
    "<!-- gone", "&lt;b&gt;", "[click](http://evil.example)", "![x](http://evil.example/x.png)", "two\n\n# lines",
    "*bold* __bold__ `code`", "[x]: http://evil.example", "back\\slash \\[x](y)", "\x1b[31mred", "half \ud83d emoji",
    "    indented", "http://evil.example", "[^1]: note", "$x$",
]  # fmt: skip
READER = MarkdownIt("commonmark").enable("table")


def shown(text: str) -> tuple[list[str], str]:
    """(kinds of the parts of a Markdown text, what a reader sees of it)."""
    tokens = READER.parse(text)
    inner = [each for token in tokens for each in token.children or []]
    return [token.type for token in [*tokens, *inner]], "".join(each.content for each in inner)


@pytest.mark.parametrize("text", EVIL)
def test_a_paragraph_is_nothing_but_its_text(text: str) -> None:
    kinds, seen = shown(markdown.paragraph(text))
    assert set(kinds) == {"paragraph_open", "paragraph_close", "inline", "text"} | ({"text_special"} & set(kinds))
    expected = " ".join(text.split())
    assert seen == re.sub(r"[^\x20-\x7e]", "�", expected)


@pytest.mark.parametrize("text", EVIL)
def test_a_cell_is_nothing_but_its_text(text: str) -> None:
    kinds, seen = shown(markdown.table(["a", text], [[text, "b"]]))
    assert (
        kinds.count("td_open") == kinds.count("th_open") == 2
        and "html_inline" not in kinds
        and "link_open" not in kinds
    )
    assert seen.startswith("a") and seen.endswith("b") and not {"image", "code_inline", "em_open"} & set(kinds)


def test_code_ends_where_it_ends() -> None:
    (block,) = READER.parse(markdown.code("a\n```\n# b\n````", "sh"))
    assert block.type == "fence" and block.content == "a\n```\n# b\n````\n" and block.info == "sh"


def test_a_card_of_a_run_with_evil_names(run: Path, tmp_path: Path) -> None:
    """A table that breaks, a heading, a link or a line of code from a name would be the reader's harm."""
    name = 'x"] \n```\n# evil <script> [a](evil/example) | """ + f() + "'
    about: dict[str, Any] = {
        "base_model": name, "revision": name, "algorithm": name, "reward": [name], "steps": name, "guidance": "1; rm x",
        "lora_rank": 2,
    }  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in filter(lambda each: each.get("evaluation"), lines):
        line["health"] = [name]
        scores = line["evaluation"]["scores"]
        line["evaluation"] |= {"scores": {name: next(iter(scores.values()))}, "prompts": name}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, files = policy("StableDiffusion3Pipeline"), ["pytorch_lora_weights.safetensors"]
    said = card.write(Record(run), tmp_path, one, about, files, f"run '{name}'").read_text("utf-8")
    head, _, body = said.removeprefix("---\n").partition("---\n")
    (index,) = yaml.safe_load(head)["model-index"]
    assert index["results"][0]["dataset"]["name"] == index["results"][0]["metrics"][0]["type"] == name
    tokens = READER.parse(body)
    kinds, _ = shown(body)
    headings = [tokens[i + 1].content for i, each in enumerate(tokens) if each.type == "heading_open"]
    assert headings[1:] == ["Training", "Evaluation", "Reproduce"]
    assert not {"html_inline", "html_block", "link_open", "code_block"} & set(kinds)
    code = next(each for each in tokens if each.type == "fence" and each.info == "python")
    calls = [node.func for node in ast.walk(ast.parse(code.content)) if isinstance(node, ast.Call)]
    assert "f" not in [getattr(call, "id", getattr(call, "attr", "")) for call in calls]
