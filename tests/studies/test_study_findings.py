"""What a study concludes, from curves whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from flowward.pages import study as page
from flowward.studies import findings, plan
from flowward.studies.costs import Cost
from flowward.studies.curves import Curve
from flowward.studies.ranking import ranking
from flowward.studies.schedule import Planned

N, PROMPT = 400, np.repeat(np.arange(100), 4)
COSTS = {"good": Cost(10, 1.0, 1.0, 2.0, 0.01), "cheap": Cost(10, 0.5, 0.25, 2.0, 0.01)}  # 3 and 1 per image
STUDY = plan.of(
    {
        "algorithms": ["awm", "fdfo"],
        "budgets": {"images": 40, "evaluations": 30},
        "scores": ["balance"],
        "rewards": ["scenes-strict"],
    }
)


def curve(name: str, seed: int, means: list[float], failure: str | None = None) -> Curve:
    """Verdicts whose mean is exact: the first ones are right."""
    order = np.random.default_rng(0).permutation(N)  # which images are easy is the same in every run
    scores = np.stack([(order < round(mean * N)).astype(float) for mean in means])
    images = tuple(20 * number for number in range(len(means)))
    beside = {"scenes-strict": scores, "balance": 0.5 * scores}
    return Curve(Planned(f"{name}/{seed}", name, "one", seed, None, {}), images, beside, failure)


def table(**runs: list[Curve]) -> findings.Table:
    return findings.Table(STUDY, "one", runs, COSTS, PROMPT, np.zeros(N, int))


def found(**runs: list[Curve]) -> dict[str, Any]:
    return findings.of(table(**runs))


def test_budgets_are_read_off_the_curves() -> None:
    """At 40 images both are at their ends; 30 evaluations are 10 images of one, and 30 of the other."""
    good, cheap = (
        [curve("good", s, [0.2, 0.5, 0.6]) for s in (0, 1)],
        [curve("cheap", s, [0.2, 0.3, 0.5]) for s in (0, 1)],
    )
    own = found(good=good, cheap=cheap)
    images, passes = (own["budgets"][name]["algorithms"] for name in ("images", "evaluations"))
    assert own["base"]["mean"] == pytest.approx(0.2)
    assert images["good"]["mean"] == pytest.approx(0.6) and images["cheap"]["mean"] == pytest.approx(0.5)
    assert passes["good"]["mean"] == pytest.approx(0.35) and passes["cheap"]["mean"] == pytest.approx(0.4)
    assert own["budgets"]["images"]["best"] == "good" and own["budgets"]["evaluations"]["best"] == "cheap"
    assert images["good"]["area"] == pytest.approx((0.35 + 0.55) / 2) and images["good"]["beside"]["balance"] == 0.3
    difference = images["cheap"]["below_best"]
    assert difference["mean"] == pytest.approx(-0.1) and -0.17 < difference["low"] < difference["high"] < -0.04
    assert difference["high"] - difference["low"] < images["cheap"]["high"] - images["cheap"]["low"]  # equal noise
    assert images["good"]["below_best"] is None


def test_the_page_has_the_numbers_the_best_first() -> None:
    """Escaped, and with a curve that ends at the longest budget: 40 images."""
    good, cheap = (
        [curve("good", s, [0.2, 0.5, 0.6]) for s in (0, 1)],
        [curve("cheap", s, [0.2, 0.3, 0.5]) for s in (0, 1)],
    )
    own = found(good=good, cheap=cheap)
    assert own["curves"]["good"]["images"][-1] == 40 and own["curves"]["good"]["mean"][-1] == pytest.approx(0.6)
    table = page.table("images", own["budgets"]["images"], "scenes-strict")
    assert [row[0] for row in table.rows] == ["good", "cheap"] and table.rows[0][2] == "0 (best)"
    assert table.rows[1][2].startswith("-10.0 [") and table.rows[0][3] == f"{20 * 0.8 / 0.9:.3g}"
    costs = {name: {**vars(cost), "evaluations": cost.evaluations} for name, cost in COSTS.items()}
    study = TypeAdapter(plan.Study).dump_python(STUDY, mode="json")
    search = {"scores": {"one/good": [0.4, None]}, "chosen": {"one/good": 0}, "settings": {"one/good/0": {}}}
    whole = {"study": study, "costs": costs, "search": search, "rewards": [own], "machine": "<b>2 cores", "hours": 1.0}
    text = page.of(whole, "flowward study it.yaml")
    assert (
        "2 algorithms on scenes" in text
        and "&lt;b&gt;2 cores" in text
        and "the preset" in text
        and "40.0 failed" in text
    )


def test_findings_can_be_ranked_for_advice() -> None:
    """At 30 evaluations `cheap` is the best, and `good` at 40 images; evaluations are closer to time."""
    runs = {"good": [0.2, 0.5, 0.6], "cheap": [0.2, 0.3, 0.5]}
    own = {**found(**{name: [curve(name, s, means) for s in (0, 1)] for name, means in runs.items()})}
    study = TypeAdapter(plan.Study).dump_python(STUDY, mode="json")
    costs = {name: {**vars(cost), "evaluations": cost.evaluations} for name, cost in COSTS.items()}
    whole = {
        "study": study,
        "costs": costs,
        "rewards": [own | {"reward": "scenes-strict"}],
        "machine": "2 cores",
        "hours": 1.0,
    }
    ranked = ranking(whole, ["scenes-strict"], True, ["scenes-strict"])
    assert ranked and ranked.budget == "evaluations" and list(ranked.scores) == ["cheap", "good"]
    assert ranked.told_apart("cheap", "good") and ranked.leaders(["good", "cheap"]) == ("cheap",)
    assert ranked.base == pytest.approx(0.2) and ranked.seconds == {"good": 0.01, "cheap": 0.01}


def test_how_much_a_target_takes() -> None:
    """Two thirds of the best gain: .2 + 2/3 (.6 - .2) = .4667, which is 17.8 images or 53.3 evaluations of `good`."""
    own = found(good=[curve("good", 0, [0.2, 0.5, 0.6])], cheap=[curve("cheap", 0, [0.2, 0.3, 0.45])])
    images = own["budgets"]["images"]
    assert images["target"] == pytest.approx(0.2 + 0.4 * 2 / 3)
    assert images["algorithms"]["good"]["to_target"] == [pytest.approx(20 * (images["target"] - 0.2) / 0.3)]
    assert images["algorithms"]["cheap"]["to_target"] == [None]


def test_failed_runs_count_with_the_base_model() -> None:
    runs = [curve("good", 0, [0.2, 0.5, 0.6]), curve("good", 1, [0.2, 0.6], "diverged")]
    own = found(good=runs, cheap=[curve("cheap", s, [0.2, 0.1, 0.1]) for s in (0, 1)])["budgets"]["images"][
        "algorithms"
    ]
    assert own["good"]["seeds"] == pytest.approx([0.6, 0.2]) and own["good"]["failed"] == ["diverged"]
    assert own["good"]["collapsed"] == 1 and own["cheap"]["collapsed"] == 2
    assert own["good"]["better_than"]["cheap"]["mean"] == 1.0 and own["cheap"]["better_than"]["good"]["mean"] == 0.0
    assert own["good"]["area"] == pytest.approx(0.45)  # of the run that has a curve


def test_runs_of_other_settings_cannot_be_merged() -> None:
    from flowward.evaluation.measurement import Measurement
    from flowward.studies.curves import refuse_unlike

    def measured(**settings: Any) -> Measurement:
        return Measurement("m", {"seed": 1234, "model": {}, **settings}, ("a",), ("all",), {}, frozenset())

    both = [curve("good", 0, [0.2]), curve("cheap", 0, [0.2])]
    refuse_unlike(both, [measured(), measured(model={"name": "other"})])
    with pytest.raises(
        ValueError, match="cheap/0 and good/0 were measured with different seed: results of other settings"
    ):
        refuse_unlike(both, [measured(), measured(seed=1)])


def test_what_was_not_optimised_is_on_the_page() -> None:
    """The base model first; nats of the seeds, where they are known."""
    good, cheap = (
        [curve("good", s, [0.2, 0.5, 0.6]) for s in (0, 1)],
        [curve("cheap", s, [0.2, 0.3, 0.5]) for s in (0, 1)],
    )
    whole = table(good=good, cheap=cheap)
    whole = findings.Table(
        STUDY, "one", whole.curves, COSTS, PROMPT, whole.stratum, {"good": [3.0, 12.0], "cheap": [None, None]}
    )
    shown = page.beside(findings.of(whole))
    assert shown is not None and shown.head[:2] == ["algorithm", "balance"]
    assert [row[0] for row in shown.rows] == ["(base model)", "good", "cheap"]
    assert [row[1] for row in shown.rows] == ["0.100", "0.300", "0.250"]
    assert [row[2] for row in shown.rows] == ["0", "3 to 12", "unknown"]
