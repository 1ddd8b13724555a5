"""The two objectives of a search against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from converters.slim.errors import SlimError
from converters.slim.objective import MES, LatencyObjective, Objective, Standing, price_of

# Millions of parameters and milliseconds on an iPhone 12 (EfficientFormer's README), and the score.
PUBLISHED = {
    "s0": (3.5, 0.9, 102.9),
    "s1": (6.1, 1.1, 63.8),
    "s2": (12.6, 1.6, 30.5),
    "l": (26.1, 2.7, 12.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_of_the_published_networks(name: str) -> None:
    size, latency, score = PUBLISHED[name]
    assert MES(1, 1).of(Standing(0, latency, size)) == pytest.approx(score, abs=0.05)


def test_the_constants_are_the_callers() -> None:
    mes = MES(1, 1, alpha_size=1, alpha_latency=2, unit_size_m=4, unit_latency_ms=0.5, score=10)
    assert mes.of(Standing(0, 0.5, 4)) == 10
    assert mes.of(Standing(0, 1.0, 2)) == pytest.approx(10 * 2 / 4)


def test_latency_prices_by_hand() -> None:
    objective, now = LatencyObjective(2.0), Standing(80, 3.0, 5)
    assert objective.price(now, Standing(79, 2.5, 5)) == pytest.approx(2.0)
    assert objective.price(now, Standing(78, 1.0, 5)) == pytest.approx(1.0)
    assert objective.price(now, Standing(80, 3.0, 1)) == math.inf
    assert objective.price(now, Standing(81, 3.5, 5)) == math.inf
    assert not objective.reached(Standing(0, 2.001, 0)) and objective.reached(Standing(0, 2.0, 9))


def test_score_prices_by_hand() -> None:
    mes, now = MES(1.5, 0.5), Standing(80, 1.0, 3.0)
    assert mes.of(now) == 100
    assert mes.price(now, Standing(79, 0.5, 3.0)) == pytest.approx(1 / 100)
    assert mes.price(now, Standing(79, 1.0, 0.75)) == pytest.approx(1 / 100)
    assert mes.price(now, Standing(79, 2.0, 3.0)) == math.inf


@pytest.mark.parametrize(
    ("latency", "size", "reached"),
    [(0.5, 1.5, True), (0.4, 1.6, False), (0.6, 1.0, False), (0.6, 1.6, False)],
)
def test_both_targets_must_be_reached(latency: float, size: float, reached: bool) -> None:
    assert MES(1.5, 0.5).reached(Standing(0, latency, size)) is reached


@pytest.mark.parametrize("objective", [LatencyObjective(1.0), MES(1.0, 1.0)])
def test_of_steps_that_lose_nothing_the_larger_gain_is_cheaper(objective: Objective) -> None:
    now = Standing(80, 3.0, 5.0)
    small, large = Standing(81, 2.9, 5.0), Standing(81, 2.0, 5.0)
    assert objective.price(now, large) < objective.price(now, small) < 0
    assert objective.price(now, Standing(80, 2.0, 5.0)) == 0
    assert objective.price(now, Standing(79, 2.0, 5.0)) > 0


def test_prices_have_no_unit_that_gains_nothing() -> None:
    assert price_of(1, 4) == 0.25 and price_of(-1, 4) == -4 and price_of(-1, 0) == math.inf


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_impossible_targets_are_refused(target: float) -> None:
    for make in (LatencyObjective, lambda ms: MES(1.0, ms), lambda size: MES(size, 1.0)):
        with pytest.raises(SlimError, match="must be above 0, got") as caught:
            make(target)
        assert caught.value.exit_code == 2
    with pytest.raises(SlimError, match="the alpha of latency must be 0 or more, got -1"):
        MES(1, 1, alpha_latency=-1)
