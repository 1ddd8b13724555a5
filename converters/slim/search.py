"""The search: of all ways to make a network one step smaller the cheapest, again and again.

The cheapest loses the least accuracy for what it gains (converters/slim/objective.py). The end is
not merely below the target but just below: its predicted latency in a band under it, and then its
measured one. Where the whole network, measured, is off, the search aims again, corrected by what
was measured, and goes on from the way it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from converters.slim.candidates import (
    Candidate,
    Clock,
    Score,
    Scorer,
    candidates_of,
    standing,
)
from converters.slim.errors import SlimError, SlimFailed
from converters.slim.families.base import Family, Importance, Subnet
from converters.slim.objective import MES, LatencyObjective
from converters.slim.trajectory import Found, Landing, Point

LOWEST = 0.96  # of the target, where the end's predicted latency may lie at the least
MOST_LANDINGS = 5  # measured ends
MOST_TURNS = 24  # steps taken back on the way to one end

Goal = LatencyObjective | MES


@dataclass
class _Node:
    """A point of the way, with the scores of the candidates that were looked at from there."""

    point: Point
    candidates: list[Candidate] | None = None
    scores: dict[Subnet, Score] = field(default_factory=dict)


@dataclass
class Search:
    """One search. build makes the network of a subnet, to be measured; tell hears of every step.

    tolerance: how far the measured end may be off the target, as a share of it.
    """

    family: Family
    importance: Importance
    scorer: Scorer
    clock: Clock
    goal: Goal
    build: Callable[[Subnet], nn.Module]
    tolerance: float = 0.05
    tell: Callable[[Point, float], None] = lambda point, aim: None
    evaluated: int = 0

    @property
    def target(self) -> float:
        """The latency to reach, ms."""
        return self.goal.latency_ms if isinstance(self.goal, MES) else self.goal.target_ms

    def run(self, whole: Subnet) -> Found:
        """From the whole network to one that, measured, is at the target.

        Raises SlimError where there is nothing to slim, SlimFailed where no end is near enough.
        """
        (ms,) = self.clock.predict([whole.shape])
        (score,) = self._scored([whole], "the whole network")
        if self.goal.reached(standing(score, ms)):
            raise SlimError(
                f"there is nothing to slim: the whole network takes {ms:.4g} ms as predicted, and "
                f"the target is {self.target:.4g} ms"
            )
        path = [_Node(Point(whole, ms, score))]
        dead: set[Subnet] = set()  # ends that were measured, and are no ends again
        landings: list[Landing] = []
        aim = self.target
        while True:
            if not self._descend(path, aim, dead):
                raise SlimFailed(self._missed(landings))
            end = path[-1].point
            measured = self.clock.measure({"end": self.build(end.subnet)})["end"]
            landings.append(Landing(aim, end.ms, measured))
            if self._arrived(measured):
                return Found(tuple(n.point for n in path), tuple(landings), self.evaluated)
            if len(landings) == MOST_LANDINGS:
                raise SlimFailed(self._missed(landings))
            aim = self.target / landings[-1].ratio
            dead.add(end.subnet)
            while len(path) > 1 and path[-1].point.ms <= aim:
                path.pop()
            if path[-1].point.ms <= aim:
                raise SlimFailed(self._missed(landings))

    def _arrived(self, measured: float) -> bool:
        if isinstance(self.goal, MES):
            return measured <= self.target * (1 + self.tolerance)
        return abs(measured / self.target - 1) <= self.tolerance

    def _descend(self, path: list[_Node], aim: float, dead: set[Subnet]) -> bool:
        """Lengthen the path, step by step, to an end whose predicted latency is just under `aim`.

        Where all steps lead too far below, one is taken back and another one tried. False where
        there is no end at all that is not dead.
        """
        lost: dict[Subnet, None] = {}  # ends of blind alleys, for this aim
        nearest: tuple[float, list[_Node], Candidate] | None = None
        for _ in range(MOST_TURNS):
            while True:
                usable = self._usable(path[-1], lost)
                below = [c for c in usable if c.ms < LOWEST * aim and c.subnet not in dead]
                if below and not isinstance(self.goal, MES):
                    best = max(below, key=lambda c: c.ms)
                    if nearest is None or best.ms > nearest[0]:
                        nearest = (best.ms, list(path), best)
                ended = self._step(path, usable, aim, dead)
                if ended is None:
                    break
                self.tell(path[-1].point, aim)
                if ended:
                    return True
            lost[path[-1].point.subnet] = None
            if len(path) == 1:
                break
            path.pop()
        if nearest is None:
            return False
        # No end in the band: the nearest one below it, and what it measures decides.
        path[:] = nearest[1]
        self._append(path, nearest[2], [nearest[2]])
        self.tell(path[-1].point, aim)
        return True

    def _usable(self, node: _Node, lost: dict[Subnet, None]) -> list[Candidate]:
        """The steps from there that are faster than it and were not given up."""
        if node.candidates is None:
            point = node.point
            node.candidates = candidates_of(self.family, point.subnet, self.importance, self.clock)
        kept = [c for c in node.candidates if c.subnet not in lost]
        if isinstance(self.goal, MES):
            return kept
        return [c for c in kept if c.ms < node.point.ms]

    def _step(
        self, path: list[_Node], usable: list[Candidate], aim: float, dead: set[Subnet]
    ) -> bool | None:
        """Take the best step: True at an end, False on the way, None where none leads on."""
        if isinstance(self.goal, MES):
            goal = MES(**(vars(self.goal) | {"latency_ms": aim}))
            if not usable:
                return None
            self._append(path, self._best(path[-1], usable), usable)
            end = path[-1].point
            return end.subnet not in dead and goal.reached(standing(end.score, end.ms))
        inside = [c for c in usable if LOWEST * aim <= c.ms <= aim and c.subnet not in dead]
        above = [c for c in usable if c.ms > aim]
        options = inside or above
        if not options:
            return None
        self._append(path, self._best(path[-1], options), options)
        return bool(inside)

    def _best(self, node: _Node, options: list[Candidate]) -> Candidate:
        """The least accuracy lost for what is gained; of equals the least loss, then the faster."""
        now = standing(node.point.score, node.point.ms)
        self._score(node, options)

        def price(candidate: Candidate) -> tuple[float, float, float]:
            score = node.scores[candidate.subnet]
            then = standing(score, candidate.ms)
            return self.goal.price(now, then), score.loss, candidate.ms

        return min(options, key=price)

    def _score(self, node: _Node, options: list[Candidate]) -> None:
        new = [c.subnet for c in options if c.subnet not in node.scores]
        if new:
            text = f"{len(new)} candidates from {node.point.ms:.4g} ms"
            node.scores |= zip(new, self._scored(new, text), strict=True)

    def _scored(self, subnets: Sequence[Subnet], text: str) -> list[Score]:
        self.evaluated += len(subnets)
        return self.scorer.score(subnets, text)

    def _append(self, path: list[_Node], chosen: Candidate, among: list[Candidate]) -> None:
        node = path[-1]
        self._score(node, [chosen])
        score = node.scores[chosen.subnet]
        path.append(_Node(Point(chosen.subnet, chosen.ms, score, str(chosen.action), len(among))))

    def _missed(self, landings: list[Landing]) -> str:
        told = "; ".join(
            f"predicted {landing.predicted:.4g} ms, measured {landing.measured:.4g} ms"
            for landing in landings
        )
        return (
            f"no network measures within {100 * self.tolerance:g} % of {self.target:.4g} ms"
            + (f" after {len(landings)} tries: {told}" if landings else "")
            + ". The steps of this family may be too coarse here, or the device too unsteady: try "
            "another target, or a wider --tolerance"
        )
