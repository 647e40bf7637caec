"""Pages of the documentation's site that are made from the code (docs/generator)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from generator import algorithms, config, equations, examples, links, markdown, navigation, pages

from flowward.agent import config as agents
from flowward.algorithms import CLASSES
from flowward.algorithms.presets import facts
from flowward.cli import main
from flowward.commands import every, train
from flowward.system.nested import flat
from flowward.training import config as settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> Mapping[str, str]:
    return pages()


def words(text: str) -> list[str]:
    """The first column of all tables."""
    return [re.sub(r"[`|\\]", "", line.split(" | ")[0]).strip() for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("command", every())
def test_the_page_of_a_command_has_the_options_of_its_help(
    command: str, made: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        main([*command.split(), "--help-all"])
    told = re.findall(r"^  (--[\w.\[\]-]+)", capsys.readouterr().out, re.MULTILINE)
    page = made[f"reference/commands/{command.replace(' ', '-')}.md"]
    listed = [word for word in words(page) if word.startswith("--")]
    assert sorted(listed) == sorted(told)
    assert f"`flowward {command} " in page
    assert f"({command.replace(' ', '-')}.md)" in made["reference/commands/index.md"]


def test_the_reference_of_config_yaml_has_exactly_its_keys(made: Mapping[str, str]) -> None:
    given, _ = train.chosen(["--output", "runs/x"])
    known = dict(flat(settings.to_dict(given)))
    assert sorted(words(made[config.PAGE])) == sorted([*known, "algorithm.preset"])


def test_the_reference_of_an_agents_config_yaml_has_exactly_its_keys(made: Mapping[str, str]) -> None:
    known = dict(flat(agents.to_dict(agents.starting(None, None))))
    assert sorted(words(made[config.AGENTS])) == sorted([*known, "algorithm.preset"])


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_of_an_algorithm_is_complete(name: str, made: Mapping[str, str]) -> None:
    page, own = made[f"algorithms/{name}.md"], facts(name)
    assert f"arxiv.org/abs/{own.arxiv}" in page and markdown.plain(own.when) in page
    assert 'class="equation"' in page
    assert {f"| `{preset}` |" for preset in own.presets} <= set(re.findall(r"\| `[\w-]+` \|", page))
    assert page.count("32 |") + page.count("bf16 |") == len(algorithms.runs(name))
    assert len(algorithms.runs(name)) >= 3 or "are recorded yet" in page
    assert f"[{own.title}]({name}.md)" in made["algorithms/index.md"]


def test_equations_are_set_as_they_read() -> None:
    html = equations.html("    l = ||v - v_old||^2 + beta mean((v+ - x0)^2) + <r_theta> / 1e-10,   m_i^ref f+-")
    told = html.replace("<i>", "").replace("</i>", "").splitlines()[1]
    assert told == (
        "l = ‖v − v<sub>old</sub>‖<sup>2</sup> + β mean((v<sup>+</sup> − x<sub>0</sub>)<sup>2</sup>) + "
        "⟨r<sub>θ</sub>⟩ / 10<sup>−10</sup>,&emsp;&emsp;m<sub>i</sub><sup>ref</sup> f<sup>±</sup>"
    )


@pytest.mark.parametrize("module", [*CLASSES, algorithms.SHARED])
def test_no_sign_of_an_equation_is_left_as_it_is_typed(module: str) -> None:
    for html in algorithms.prose(algorithms.docstring(module)):
        if html.startswith("<div"):
            assert not re.search(r"[_^]|\|\||\b(alpha|beta|gamma|lambda|theta|sigma|rho)\b", html), html


class Open(HTMLParser):
    """Tags that were opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag


def test_tags_of_equations_are_closed(made: Mapping[str, str]) -> None:
    for text in made.values():
        for block in re.findall(r"<div.*?</div>", text, re.DOTALL):
            parser = Open()
            parser.feed(block)
            assert not parser.tags


@pytest.mark.parametrize(
    ("text", "page", "moved"),
    [
        ("[a](../examples/own_algorithm.py)", "verify.md", "[a](examples/own_algorithm.md)"),
        ("[a](../../examples/bare_loop.py)", "tutorials/x.md", "[a](../examples/bare_loop.md)"),
        ("[a](../README.md#documentation)", "x.md", f"[a]({links.SOURCE}README.md#documentation)"),
        ("[a](../models.md#memory)", "howto/x.md", "[a](../models.md#memory)"),
        ("[a](https://arxiv.org/abs/1)", "x.md", "[a](https://arxiv.org/abs/1)"),
    ],
)
def test_links_out_of_the_folder_lead_to_a_page_or_to_the_source(text: str, page: str, moved: str) -> None:
    assert links.inside(text, page) == moved


def test_bars_in_code_within_tables_lose_their_backslash() -> None:
    assert markdown.unescaped("| `a\\|b` | c \\| d |\n`e\\|f`") == "| `a|b` | c \\| d |\n`e\\|f`"


@pytest.mark.parametrize("text", ["a * b_c [d] <e> & f", "no signs"])
def test_plain_text_shows_what_it_says(text: str) -> None:
    assert unescape(re.sub(r"\\([\\*_\[\]])", r"\1", markdown.plain(text))) == text


def _paths(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [path for each in (nav.values() if isinstance(nav, dict) else nav) for path in _paths(each)]


def test_every_page_is_in_the_navigation_once(made: Mapping[str, str]) -> None:
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    given = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(_paths(navigation.whole(given, [*made, *written]))) == sorted([*written, *made])


def test_a_folder_in_the_navigation_stands_for_its_pages() -> None:
    given = [{"A": ["a/", "x.md"]}, {"B": "b/"}]
    found = navigation.whole(given, ["a/one.md", "a/index.md", "a/deep/two.md", "b/README.md", "x.md"])
    assert found == [{"A": ["a/index.md", "a/one.md", "x.md"]}, {"B": ["b/README.md"]}]


def test_every_example_has_a_page(made: Mapping[str, str]) -> None:
    assert {f"examples/{file.stem}.md" for file in examples.files()} <= set(made)
    assert "```python" in made["examples/first_hour.md"]


def test_a_page_that_loads_something_is_found(tmp_path: Path, load_check: Callable[[Path], list[str]]) -> None:
    page = '<link rel="canonical" href="https://a.org"><a href="https://a.org">x</a><script src="js/a.js"></script>'
    (tmp_path / "good.html").write_text(page, "utf-8")
    assert not load_check(tmp_path)
    (tmp_path / "bad.html").write_text('<script src="//cdn.org/a.js"></script>', "utf-8")
    (tmp_path / "bad.css").write_text("@font-face {src: url(https://fonts.org/a.woff)}", "utf-8")
    assert len(load_check(tmp_path)) == 2


@pytest.fixture
def load_check() -> Callable[[Path], list[str]]:
    given: dict[str, Any] = {"__name__": "check_docs"}
    exec((ROOT / ".ci" / "check_docs.py").read_text("utf-8"), given)
    check: Callable[[Path], list[str]] = given["faults"]
    return check


def test_the_leaderboard_is_a_page_with_every_algorithm_of_its_results() -> None:
    """Curves, and tables that sort, in one file."""
    from generator import leaderboard

    from flowward.studies import shipped

    (text,) = leaderboard.files().values()
    names = shipped.leaderboard()["costs"]
    assert len(names) >= 24 and all(f">{name}<" in text for name in names) and "sortable" in text
