"""The calculator: a tool that works out one arithmetic expression.

The expression is parsed, never run as code. Its length, its depth and the size of every number are bounded, so that no
expression takes long. Only a power grows fast, so it is bounded before it is computed.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from ..system.errors import unknown
from .tools import Card, ToolError

LONGEST = 1000  # characters of an expression
DEEPEST = 200  # levels of an expression
DIGITS = 1000  # of a whole number
BITS = int(DIGITS * math.log2(10))
FIGURES = 15  # significant digits of a result that is not whole: 0.1 + 0.2 is shown as 0.3

Number = int | float

SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})  # as models write them
_GLUED = re.compile(r"\d(?![eE][+-]?\d)[A-Za-z_]")  # 2pi, 0x1f, 3j


def _divided(a: Number, b: Number) -> Number:
    """Exact if both are whole and it comes out even."""
    return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


def _power(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b > 0:
        _bounded(math.log2(abs(a)) * b)
    found = a**b
    if isinstance(found, complex):
        raise ToolError("a root of a negative number is not a real number")
    return float(found) if not isinstance(found, int) else found


def _square_root(a: Number) -> Number:
    if a < 0:
        raise ToolError("a root of a negative number is not a real number")
    return math.isqrt(a) if isinstance(a, int) and math.isqrt(a) ** 2 == a else math.sqrt(a)


def _rounded(a: Number, places: Number = 0) -> Number:
    if not isinstance(places, int) or abs(places) > DIGITS:
        raise ToolError(f"round needs a whole number of places, at most {DIGITS}")
    return round(a, places) if places else round(a)


def _least(*values: Number) -> Number:
    return min(values)


def _greatest(*values: Number) -> Number:
    return max(values)


BINARY: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divided,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": _greatest,
    "min": _least,
    "round": _rounded,
    "sin": math.sin,
    "sqrt": _square_root,
    "tan": math.tan,
}
CONSTANTS = {"e": math.e, "pi": math.pi}


class Calculator:
    """The tool `calculator`."""

    card = Card(
        "calculator",
        "Works out one arithmetic expression, such as (3 + 4) * 12 or sqrt(2) ** 3.",
        {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "numbers, + - * / // % **, parentheses"}},
            "required": ["expression"],
        },
        f"Numbers only: no variables, units or equations. Functions: {', '.join(FUNCTIONS)}; constants: e, pi.",
    )

    def __call__(self, **arguments: Any) -> str:
        return calculate(str(arguments["expression"]))


def calculate(expression: str) -> str:
    """The value of an expression, as text. Whole numbers are exact, others have 15 significant digits.

    Raises:
        ToolError: it is not arithmetic, has no value, or is too long, too deep or too large.
    """
    try:
        return _written(_value(_parsed(expression), 0))
    except ZeroDivisionError as error:
        raise ToolError("division by zero") from error
    except OverflowError as error:
        raise ToolError("the result is too large") from error
    except (ValueError, TypeError) as error:  # of a function: log(0), min()
        raise ToolError(f"this has no value: {error}") from error


def _parsed(expression: str) -> ast.expr:
    text = expression.strip().translate(SIGNS).replace("^", "**")
    if not text:
        raise ToolError("the expression is empty")
    if len(text) > LONGEST:
        raise ToolError(f"the expression has {len(text)} characters, but at most {LONGEST} are allowed")
    if glued := _GLUED.search(text):
        raise ToolError(f"cannot read '{glued[0]}': write a sign between a number and a name, such as 2*pi")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolError(f"'{text[:60]}' is not an arithmetic expression") from error


def _value(node: ast.expr, depth: int) -> Number:
    """Raises ToolError for everything that is not arithmetic."""
    if depth > DEEPEST:
        raise ToolError(f"the expression is nested more than {DEEPEST} levels deep")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            found: Number = value
        case ast.Name(id=name):
            if name not in CONSTANTS:
                raise ToolError(unknown("name", name, [*CONSTANTS, *FUNCTIONS]))
            found = CONSTANTS[name]
        case ast.UnaryOp(op=sign, operand=one) if type(sign) in UNARY:
            found = UNARY[type(sign)](_value(one, depth + 1))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
            found = BINARY[type(sign)](_value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]):
            if name not in FUNCTIONS:
                raise ToolError(unknown("function", name, FUNCTIONS))
            found = FUNCTIONS[name](*[_value(each, depth + 1) for each in given])
        case _:
            raise ToolError(f"cannot work out '{ast.unparse(node)[:60]}': only numbers, + - * / // % ** and functions")
    return _sized(found)


def _sized(value: Number) -> Number:
    if isinstance(value, int):
        _bounded(value.bit_length())
    elif not math.isfinite(value):
        raise ToolError("the result is too large")
    return value


def _bounded(bits: float) -> None:
    if bits > BITS:
        raise ToolError(f"whole numbers can have at most {DIGITS} digits")


def _written(value: Number) -> str:
    return str(value) if isinstance(value, int) else f"{value:.{FIGURES}g}"
