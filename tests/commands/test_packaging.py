"""What is installed: extras that live with any torch, and everything that a wheel has to hold."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

import flowward
from flowward.system import tables

ROOT = Path(__file__).parents[2]


def needed(name: str, known: set[str]) -> set[str]:
    """Every requirement of a package and of what it needs, as far as it is installed and not behind an extra."""
    found: set[str] = set()
    try:
        lines = [line for line in requires(name) or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return found
    for line in lines:
        found.add(line)
        other = re.split(r"[^\w.-]", line, maxsplit=1)[0].lower()
        if other not in known:
            found |= needed(other, known | {other})
            known.add(other)
    return found


@pytest.mark.parametrize("extra", ["agent", "data", "rewards", "server"])
def test_no_extra_pins_what_others_need(extra: str) -> None:
    """Nothing that comes with it fixes the version of torch, numpy or transformers."""
    own = [line for line in requires("flowward") or [] if f'extra == "{extra}"' in line.replace("'", '"')]
    assert own
    everything = {line for each in own for line in needed(re.split(r"[^\w.-]", each, maxsplit=1)[0], set())}
    pins = [line for line in everything if re.match(r"(torch|numpy|transformers)\b[^;]*==", line)]
    assert not pins


def test_what_is_no_module_is_in_the_package() -> None:
    """Weights, templates, pages, presets: a wheel takes every file under flowward/ that git does not ignore."""
    package = Path(flowward.__file__).parent
    assert list((package / "rewards" / "judges" / "templates").glob("*.yaml"))
    assert {file.stem for file in (package / "algorithms" / "presets").glob("*.yaml")} == set(flowward.ALGORITHMS)
    assert list((package / "studies" / "shipped").glob("*.yaml"))
    assert (package / "py.typed").is_file() and (package / "pages" / "templates" / "page.html.j2").is_file()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["packages"] == ["flowward"]
    assert build["force-include"] == {name: f"flowward/{name}" for name in ("recipes", "examples")}
    assert all(tables.shipped(name) == ROOT / name for name in build["force-include"])


def test_the_lock_has_the_versions_that_are_tested() -> None:
    """And a hash of each; whoever changes constraints.txt makes it anew (docs/notes/libraries.md)."""

    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text("utf-8").splitlines()
        pairs = [re.match(r"([\w.-]+)==([^ ;\\]+)", line) for line in lines]
        return {each[1].lower().replace("_", "-"): each[2] for each in pairs if each}

    tested, locked = versions("constraints.txt"), versions("requirements.lock")
    own = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert {re.split(r"[^\w-]", each)[0].replace("_", "-") for each in own} <= locked.keys()
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
    text = (ROOT / "requirements.lock").read_text("utf-8")
    assert text.count("--hash=sha256:") >= len(locked) and "://" not in text
