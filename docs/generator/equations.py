"""Equations as they stand in a docstring, set for a browser: Greek letters, subscripts and superscripts.

Plain HTML, so pages need no script and no font from outside.
"""

from __future__ import annotations

import re
from html import escape

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "lambda": "λ", "omega": "ω", "rho": "ρ", "sigma": "σ", "tau": "τ",
         "theta": "θ", "delta": "δ"}  # fmt: skip
TOKEN = re.compile(
    r"(?P<power>\b1e-(?P<exponent>\d+))|(?P<word>[A-Za-z]+)(?P<digit>\d*)"
    r"(?P<sign>(?:\+-|[+-])(?=[ ,|\]/]|$))?(?:_(?P<sub>\w+?)(?=\^|\b|_))?(?:\^(?P<sup>\w+))?"
    r"|(?P<closing>[\])‖]+)\^(?P<over>\w+)|(?P<gap> {3,})|(?P<other>.)"
)
SIGNS = {"-": "−", "<": "⟨", ">": "⟩"}


def html(text: str) -> str:
    """A block of equations, one per line."""
    lines = "<br>\n".join(_line(line.strip()) for line in text.strip().splitlines())
    return f'<div class="equation">\n{lines}\n</div>'


def _line(line: str) -> str:
    return "".join(map(_token, TOKEN.finditer(line.replace("||", "‖"))))


def _token(found: re.Match[str]) -> str:
    if found["power"]:
        return f"10<sup>−{int(found['exponent'])}</sup>"
    if found["closing"]:
        return f"{found['closing']}<sup>{_name(found['over'])}</sup>"
    if found["gap"]:
        return "&emsp;&emsp;"
    if found["other"]:
        return SIGNS.get(found["other"], escape(found["other"]))
    below = "".join(f"<sub>{_name(part)}</sub>" for part in (found["digit"], found["sub"]) if part)
    sign = {"+": "+", "-": "−", "+-": "±"}.get(found["sign"] or "", "")
    above = "".join(f"<sup>{part}</sup>" for part in (sign, _name(found["sup"] or "")) if part)
    return _name(found["word"]) + below + above


def _name(word: str) -> str:
    if word == "sum":
        return "Σ"
    sign = GREEK.get(word, word)
    return f"<i>{sign}</i>" if len(sign) == 1 and sign.isalpha() else sign
