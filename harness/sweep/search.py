"""Grid search over a learning rate and up to two other fields, with a grid that grows until its best is inside.

The grid starts with every combination of the given values. While the best point has the smallest or the largest value
of a learning rate that was tried at that point's other values, the next value on that side is tried too: a geometric
sequence with the ratio of its last two values, 10 at most. A point that diverged ends its side. The search stops when
the best point is inside, or at the limit of points. Fields other than learning rates keep their given values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

Point = tuple[JsonValue, ...]  # one value for each axis
Results = Mapping[Point, float | None]  # the mean on dev by point; None: training diverged
_RATIO: Final = 3.0  # from one value to the next where a field has only one
_LARGEST_RATIO: Final = 10.0  # from one value to the next where the given values are further apart


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A field and its values at the start, ascending where they are numbers."""

    key: str
    values: tuple[JsonValue, ...]

    @classmethod
    def of(cls, key: str, values: Sequence[JsonValue]) -> Axis:
        """The axis of a field; numbers are put in ascending order."""
        axis = cls(key=key, values=tuple(values))
        return cls(key=key, values=tuple(sorted(axis.values))) if axis.grows else axis  # type: ignore[type-var]

    @property
    def grows(self) -> bool:
        """Whether further values follow from these: learning rates and factors on them, whose keys end in lr."""
        return self.key.endswith("lr") and all(_is_number(value) and value > 0 for value in self.values)  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The rule. axes: the learning rate first. max_points: the largest number of points in one search."""

    axes: tuple[Axis, ...]
    max_points: int

    def start(self) -> list[Point]:
        """Every combination of the given values."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def following(self, results: Results) -> list[Point]:
        """The points to try next, given the results of all points so far; none when the search has ended."""
        best = self.best(results)
        wanted = self._lower(results) if best is None else [p for _, p in self._beyond(best, results)]
        return wanted[: max(0, self.max_points - len(results))]

    def best(self, results: Results) -> Point | None:
        """The point with the highest mean; None if all diverged.

        Of equal ones it is one that is inside, so that a flat part of the curve ends the search, else the smallest.
        """
        highest = max((mean for mean in results.values() if mean is not None), default=None)
        if highest is None:
            return None
        equal = [point for point, mean in results.items() if mean == highest]
        return min(equal, key=lambda point: (len(list(self._beyond(point, results))), self._order(point)))

    def open_ends(self, results: Results) -> tuple[str, ...]:
        """The keys in which the best point is at an end of what was tried; empty if the best is inside."""
        best = self.best(results)
        if best is None:
            return ()
        return tuple(dict.fromkeys(self.axes[i].key for i, _ in self._beyond(best, results)))

    def _beyond(self, best: Point, results: Results) -> Iterator[tuple[int, Point]]:
        """For each axis at whose end the best point is, the axis and the next point on that side."""
        for i, axis in enumerate(self.axes):
            if not axis.grows:
                continue
            line = sorted(p[i] for p in results if _others(p, i) == _others(best, i))  # type: ignore[type-var]
            for values, ratio in ((line, _RATIO), (line[::-1], 1 / _RATIO)):
                following = _after(values, ratio)
                if best[i] == values[-1] and following != best[i]:
                    yield i, (*best[:i], following, *best[i + 1 :])

    def _lower(self, results: Results) -> list[Point]:
        """Where every point diverged, the next smaller learning rate."""
        smallest = min(results, key=self._order)
        line = sorted((p[0] for p in results if p[1:] == smallest[1:]), reverse=True)  # type: ignore[type-var]
        return [(_after(line, 1 / _RATIO), *smallest[1:])] if self.axes[0].grows else []

    def _order(self, point: Point) -> tuple[float, ...]:
        """Numbers by value, other values by their place in the file."""
        return tuple(
            float(value) if axis.grows else float(axis.values.index(value))  # type: ignore[arg-type]
            for axis, value in zip(self.axes, point, strict=True)
        )


def _others(point: Point, i: int) -> Point:
    return point[:i] + point[i + 1 :]


def _after(values: list[JsonValue], ratio: float) -> JsonValue:
    """The value that follows a geometric sequence, rounded to two digits, or to a whole number where all are whole.

    Args: ratio: of one value to the one before, for a sequence of only one.
    """
    numbers = [float(value) for value in values]  # type: ignore[arg-type]
    last = numbers[-1] / numbers[-2] if len(numbers) > 1 else ratio
    exact = numbers[-1] * min(max(last, 1 / _LARGEST_RATIO), _LARGEST_RATIO)
    if all(isinstance(value, int) for value in values):
        return max(1, round(exact))
    rounded = float(f"{exact:.2g}")
    return exact if rounded in numbers else rounded


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
