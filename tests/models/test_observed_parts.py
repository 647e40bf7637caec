"""What observation is made of: maps of numbers, times, rows of calls, rules of guidance, and stored arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowward.models.families.family import pack
from flowward.models.observed import guidance, maps, rows, times
from flowward.models.observed.leaves import Stored


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_is_the_function_and_its_inverse(dtype: torch.dtype) -> None:
    """Packing, a scale for each channel and a shift, in half precision too."""
    scale = torch.tensor([0.5, -2.0, 1.0, 4.0])[:, None, None].to(dtype)

    def function(x: Tensor) -> Tensor:
        return pack(scale * x + 0.25)

    found = maps.found(function, torch.zeros(1, 4, 8, 8, dtype=dtype))
    x, near = random(3, 4, 8, 8), 1e-6 if dtype == torch.float32 else 2e-2
    expected = pack(scale.float() * x + 0.25)
    torch.testing.assert_close(found(x)[:, 0], expected, rtol=near, atol=near)
    torch.testing.assert_close(found.back(expected[:, None]), x, rtol=near, atol=near)
    assert found.whole and not found.plain
    assert maps.found(lambda x: x.reshape(1, 4, 64), torch.zeros(1, 4, 8, 8)).plain


def test_a_map_knows_what_is_not_of_the_sample() -> None:
    """As tokens of a source image after those of the sample."""
    source = random(1, 5, 4)
    found = maps.found(lambda x: torch.cat([x, source], 1), torch.zeros(1, 3, 4))
    x, other = random(1, 3, 4, seed=1), random(1, 5, 4, seed=2)
    both = found(x, torch.cat([torch.zeros(1, 3, 4), other], 1))[:, 0]
    torch.testing.assert_close(both, torch.cat([x, other], 1))
    assert not found.whole and int((found.index >= 0).sum()) == 12


@pytest.mark.parametrize("function", [torch.tanh, lambda x: x - x.mean(), lambda x: x * x, lambda x: x.cumsum(1)])
def test_a_function_that_is_no_map_is_refused(function: Any) -> None:
    with pytest.raises(maps.NotElementwise):
        maps.found(function, torch.zeros(1, 20))


@pytest.mark.parametrize(("a", "b", "shift"), [(0, 1, 1), (1, -1, 1), (0, 1000, 1), (0, 1000, 0.6), (1000, -1000, 3)])
def test_a_clock_is_found_from_four_times(a: float, b: float, shift: float) -> None:
    """Also one per token, where some tokens have no time."""
    tokens, grid = torch.tensor([1.0, 0.0, 1.0]), [1.0, 0.9, 0.6, 0.3]
    values = [a + b * tokens * t / (t + shift * (1 - t)) for t in grid]
    found = times.clock(values, grid, 1e-5)
    assert found and found.shift == pytest.approx(shift, rel=1e-3)
    torch.testing.assert_close(
        found(torch.tensor(0.5)), a + b * tokens * 0.5 / (0.5 + shift * 0.5), rtol=1e-4, atol=1e-4
    )
    assert times.clock([value.sin() for value in values], grid, 1e-5) is None


def test_rows_are_joined_and_split_as_in_the_call_that_was_learned_from() -> None:
    """Tensors along any axis, lists, and constants; what has no rule is refused."""

    def call(many: int) -> Any:
        words = [torch.ones(3, 2)] * many
        return [
            torch.zeros(many, 4),
            {"words": words, "layers": torch.zeros(2, many, 5), "ids": torch.zeros(7, 3), "m": None},
        ]

    rule = rows.learned(call(1), call(2))
    three = rows.joined([call(1)] * 3, rule)
    assert three[0].shape == (3, 4) and three[1]["layers"].shape == (2, 3, 5) and three[1]["ids"].shape == (7, 3)
    assert len(three[1]["words"]) == 3 and rows.count(three, call(1), rule) == 3
    assert all(rows.learned(each, call(1)) for each in rows.split(three, rule, 3))
    masked = [torch.zeros(1, 4), {**call(1)[1], "m": torch.ones(1, 6)}]
    assert rows.joined([masked, masked], rule)[1]["m"].shape == (2, 6)
    with pytest.raises(rows.Unlike, match="words"):
        rows.learned({"words": torch.zeros(1, 3)}, {"words": torch.zeros(2, 4)})
    with pytest.raises(rows.Unlike, match="other entries"):
        rows.split([call(2)[0], {**call(2)[1], "new": 1}], rule, 2)


@pytest.mark.parametrize("name", guidance.RULES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_rule_is_recognised_among_the_others(name: str, offset: float) -> None:
    v = random(1, 6, 4)
    v_0 = v * torch.linspace(0.5, 1.5, 6)[None, :, None] + 0.1 * random(1, 6, 4, seed=1)
    seen = [guidance.Seen(v, v_0, guidance.RULES[name](v, v_0, scale + offset), scale) for scale in (2.0, 3.0)]
    assert guidance.recognised(seen, 1e-5) == (name, offset)
    other = [guidance.Seen(v, v_0, each.got.tanh(), each.argument) for each in seen]
    assert guidance.recognised(other, 1e-5) is None


@pytest.mark.parametrize(
    "value",
    [torch.arange(600)[None], torch.ones(1, 4, dtype=torch.bool), random(1, 5, 3), torch.tensor(700), 512, None],
)
def test_an_argument_is_read_as_it_was_stored(value: Any) -> None:
    """In half precision, and padded as beside a longer text."""
    own = Stored(
        "mask", torch.ones(1, 9) if value is None else value, 1 if isinstance(value, Tensor) and value.ndim else 0
    )
    if value is None:
        own = Stored("mask", torch.ones(1, 9), 1)
    row = own.write(value)
    length = own.length(row)
    padded = torch.cat([row, torch.zeros(4, *row.shape[1:])]) if isinstance(value, Tensor) and value.ndim else row
    found = own.read(padded.bfloat16(), length)
    if value is None or isinstance(value, int):
        assert found == value
    else:
        torch.testing.assert_close(found, value, rtol=1e-2, atol=1e-2)
        assert found.dtype == value.dtype
    with pytest.raises(ValueError, match="outside 0 to 65535"):
        Stored("mask", torch.tensor([1]), 0).write(torch.tensor([-1]))
