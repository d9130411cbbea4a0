"""Drawings in SVG: curves over the epochs, a mark on a scale, points on a map. Colours are classes of `style.css`.

In: arrays of numbers. Out: elements to stand in the page. Curves of many steps are drawn by the means of equal
stretches, with a band from the least to the largest value of each.
"""

import math
from dataclasses import dataclass

import numpy as np

from mocoembed.report.html import Element, element

WIDTH, HEIGHT = 400.0, 232.0  # of a chart, in pixels where it is drawn at its own size
TOP, RIGHT, BOTTOM = 10.0, 14.0, 38.0
LETTER = 6.4  # width of a digit
STRETCHES = 240  # that a curve is drawn by
DOTS = 60  # points that get a dot each
COLOURS = 10
MARK_WIDTH, MARK_HEIGHT = 200.0, 18.0
MAP_SIDE, MAP_EDGE = 720.0, 14.0
MOST_ON_MAP = 6000


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False
    """Drawn as what others are held against."""


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    curves: list[Curve]
    unit: str = ""
    """Behind the numbers of the vertical axis."""
    across: str = "epoch"
    from_zero: bool = False
    digits: int = 2
    """Of the last value, which stands beside the title or, of several curves, in the legend."""
    detail: str = ""
    """Behind the title: what the numbers are of."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A tick's number, short: `20k` for 20,000."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def stretches(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, least, largest) of at most `STRETCHES` equal stretches of a curve."""
    if len(x) <= STRETCHES:
        return x, y, y, y
    ends = np.linspace(0, len(x), STRETCHES + 1).astype(int)
    starts, counts = ends[:-1], np.diff(ends)
    return (np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts,
            np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))


@dataclass(frozen=True)
class _Axes:
    """From values to places in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float

    def across(self, value):
        """Place of a value of the horizontal axis."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - RIGHT - self.left)

    def up(self, value):
        """Place of a value of the vertical axis."""
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - BOTTOM - TOP)

    def path(self, x: np.ndarray, y: np.ndarray) -> str:
        """A line through the points."""
        return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(self.across(x), self.up(y)))


def chart(what: Chart) -> Element | None:
    """A figure of the curves, with axes, ticks and a legend; `None` where there is not a single number."""
    curves = [Curve(one.name, one.x[np.isfinite(one.y)], one.y[np.isfinite(one.y)], one.dashed) for one in what.curves]
    curves = [one for one in curves if len(one.x)]
    if not any(not one.dashed for one in curves):
        return None
    drawn = [stretches(one.x, one.y) for one in curves]
    axes = _axes(what, drawn)
    svg = element("svg", *_frame(what, axes), viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img",
                  aria_label=_described(what, curves))
    for number, (curve, (x, mean, least, largest)) in enumerate(zip(curves, drawn)):
        kind = "held" if curve.dashed else f"c{number % COLOURS}"
        if least is not mean:
            band = axes.path(x, largest) + "L" + axes.path(x[::-1], least[::-1])[1:] + "Z"
            svg.append(element("path", d=band, class_=f"band {kind}"))
        svg.append(element("path", d=axes.path(x, mean), class_=f"curve {kind}"))
        if len(x) <= DOTS and not curve.dashed:
            svg.extend(element("circle", element("title", f"{curve.name}, {what.across} {a:g}: {b:.4g}{what.unit}"),
                               cx=f"{axes.across(a):.1f}", cy=f"{axes.up(b):.1f}", r="2.6", class_=f"dot {kind}")
                       for a, b in zip(x, mean))
    return element("figure", _caption(what, curves), svg, class_="chart")


def _axes(what: Chart, drawn) -> _Axes:
    x = np.concatenate([one[0] for one in drawn])
    low, high = (float(reach(np.concatenate([one[i] for one in drawn]))) for reach, i in ((np.min, 2), (np.max, 3)))
    low = min(0.0, low) if what.from_zero else low
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if what.from_zero and low == 0 else low - room), high + room
    left = 12 + LETTER * max(len(tick_text(one) + what.unit) for one in ticks(low, high))
    return _Axes((0.0, max(float(x.max()), 1e-9)), (low, high), left)


def _frame(what: Chart, axes: _Axes):
    """Grid, numbers and names of the axes."""
    bottom = HEIGHT - BOTTOM
    for value in ticks(*axes.y):
        y = f"{axes.up(value):.1f}"
        yield element("line", x1=axes.left, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield element("text", tick_text(value) + what.unit, x=axes.left - 6, y=y, dy="0.32em", class_="tick up")
    yield element("line", x1=axes.left, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis")
    for value in ticks(*axes.x):
        x = f"{axes.across(value):.1f}"
        yield element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
        yield element("text", tick_text(value), x=x, y=bottom + 17, class_="tick across")
    yield element("text", what.across, x=(axes.left + WIDTH - RIGHT) / 2, y=HEIGHT - 5, class_="tick across")


def _caption(what: Chart, curves: list[Curve]) -> Element:
    own = [f"{one.y[-1]:.{what.digits}f}{what.unit}".replace("-", "−") for one in curves if not one.dashed]
    heading = element("span", element("strong", what.title), " ",
                      element("span", (own[0] if len(own) == 1 else "") + (f" ({what.detail})" if what.detail else ""),
                              class_="last"))
    if len(curves) == 1:
        return element("figcaption", heading)
    return element("figcaption", heading, legend([
        (one.name, "held") if one.dashed else (f"{one.name} {own[number]}" if len(own) > 1 else one.name,
                                               f"c{number % COLOURS}") for number, one in enumerate(curves)]))


def legend(entries: list[tuple[str, str]]) -> Element:
    """Names with the colours that they have."""
    return element("span", *(element("span", element(
        "svg", element("path", d="M1,6H17", class_=f"curve {kind}"), viewBox="0 0 18 12", aria_hidden="true"), name)
        for name, kind in entries), class_="legend")


def _described(what: Chart, curves: list[Curve]) -> str:
    """The chart in words, for who does not see it."""
    words = [f"{one.name} {one.y[-1]:.4g}{what.unit}" if one.dashed else
             f"{one.name} from {one.y[0]:.4g}{what.unit} to {one.y[-1]:.4g}{what.unit}" for one in curves]
    return f"{what.title} by {what.across}: {'; '.join(words)}"


def mark(value: float | None, interval: list[float] | None, chance: float | None = None, kind: str = "c0") -> Element:
    """A value in percent on a scale from 0 to 100, with its interval as a bar and chance as a line across."""
    def at(number: float) -> str:
        return f"{4 + min(max(number, 0), 100) / 100 * (MARK_WIDTH - 8):.1f}"

    middle = f"{MARK_HEIGHT / 2:g}"
    svg = element("svg", *(element("line", x1=at(one), x2=at(one), y1="1", y2=MARK_HEIGHT - 1, class_="grid")
                           for one in (0, 25, 50, 75, 100)), viewBox=f"0 0 {MARK_WIDTH:g} {MARK_HEIGHT:g}",
                  class_="mark", aria_hidden="true")
    if chance is not None:
        svg.append(element("line", x1=at(chance), x2=at(chance), y1="1", y2=MARK_HEIGHT - 1, class_="curve held"))
    if interval:
        svg.append(element("line", x1=at(interval[0]), x2=at(interval[1]), y1=middle, y2=middle,
                           class_=f"whisker {kind}"))
    if value is not None:
        svg.append(element("circle", cx=at(value), cy=middle, r="3.6", class_=f"dot {kind}"))
    return svg


def bar(value: float | None) -> Element:
    """A value in percent as a bar."""
    width = 0.0 if value is None else min(max(value, 0.0), 100.0)
    return element("svg", element("rect", width=100.0, height=8.0, rx="2", class_="empty"),
                   element("rect", width=width, height=8.0, rx="2", class_="full"), viewBox="0 0 100 8", class_="bar",
                   aria_hidden="true")


def scatter(places: np.ndarray, kinds: np.ndarray, described: str) -> Element:
    """Points (N, 2), their colour by `kinds` (N,) int: 0 to 9, or -1 for those without; the rarest lie on top."""
    extent = np.ptp(places, axis=0)
    at = MAP_EDGE + (places - places.min(axis=0)) / max(float(extent.max()), 1e-9) * MAP_SIDE
    width, height = (2 * MAP_EDGE + extent / max(float(extent.max()), 1e-9) * MAP_SIDE).tolist()
    size = min(9.0, max(3.0, 220 / math.sqrt(len(at))))
    svg = element("svg", viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=described, class_="map")
    names, counts = np.unique(kinds, return_counts=True)
    for kind in names[np.lexsort((-counts, names >= 0))].tolist():
        some = at[kinds == kind]
        svg.append(element("path", d="".join(f"M{x:.1f},{height - y:.1f}h0" for x, y in some),
                           class_=f"points {'other' if kind < 0 else f'c{kind}'}", stroke_width=size))
    return svg
