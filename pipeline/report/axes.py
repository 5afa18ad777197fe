"""Scales of plots: round ticks, and places in percent of the drawing, so that it fits a phone as it fits a desk."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.ratings import Comparison


class Axis(NamedTuple):
    """A linear scale with its ticks; places are percentages of the drawing."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]

    def at(self, value: float) -> float:
        """Place of a value from the left, 0 to 100; what lies outside is put on the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def up(self, value: float) -> float:
        """Place of a value from the top, as SVG counts."""
        return round(100 - self.at(value), 2)


def axis(values: Iterable[float], label: Callable[[float], str] = "{:g}".format, wanted: int = 4) -> Axis:
    """A scale around the values whose ticks are 1, 2 or 5 times a power of ten apart."""
    values = list(values) or [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(place * step, 12) for place in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, label)


def rate_axis(comparisons: Iterable[Comparison]) -> Axis:
    """A scale of win rates with 50 % in its middle, as wide as the widest interval needs."""
    reach = max((max(abs(found.low - 0.5), abs(found.high - 0.5)) for found in comparisons), default=0.0)
    half = min(0.5, max(0.1, math.ceil(round(reach * 10, 6)) / 10))
    step = 0.05 if half <= 0.1 else 0.1 if half <= 0.3 else 0.25 if half == 0.5 else half / 2
    count = round(half / step)
    ticks = tuple(round(0.5 + place * step, 4) for place in range(-count, count + 1))
    return Axis(0.5 - half, 0.5 + half, ticks, lambda share: f"{100 * share:g}")
