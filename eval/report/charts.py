"""Geometry of the bar and line charts; `templates/charts.html` draws them as inline SVG.

Colours come from classes of the page's style, so that charts follow light mode, dark mode and print. Series also
differ by dash, never by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, BARS_WIDTH, HEIGHT = 360, 264, 232  # several bar charts stand in one row
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 40  # margins around the plot
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MAX_POINTS = 240  # of one drawn line; more would not be visible
SERIES = 6  # styles s0 to s5 of the page; further series repeat them

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series: points in 0..1 on both axes, in order of x or along a curve."""

    label: str
    points: Sequence[Point]
    marks: Sequence[Point] = ()  # drawn large
    dots: bool = False  # draw each point


@dataclass(frozen=True, slots=True)
class Shape:
    """One bar, dot, line or legend entry: its class, its coordinates and the text of its tooltip or label."""

    style: str
    at: Sequence[float]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything that one SVG drawing holds, in its own pixels."""

    title: str
    description: str
    x_label: str
    width: int
    grid: Sequence[tuple[float, str]]  # y and label of the horizontal lines
    ticks: Sequence[tuple[float, str]]  # x and label under the plot
    y_label: str = ""
    bars: list[Shape] = field(default_factory=list)  # x, y, width, height
    diagonal: Sequence[float] | None = None  # x1, y1, x2, y2
    lines: list[Shape] = field(default_factory=list)  # x1, y1, x2, y2, …
    dots: list[Shape] = field(default_factory=list)  # x, y, radius


def bar_chart(title: str, counts: Sequence[int], names: Sequence[str], x_label: str) -> Chart:
    """Counts of named classes as bars; the first bar has a colour of its own."""
    top, total = max(*counts, 1), max(sum(counts), 1)
    step = (BARS_WIDTH - LEFT - RIGHT) / len(counts)
    listed = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    levels = [0, top / 2, top] if top > 1 else [0, 1]
    grid = [(TOP + PLOT_HEIGHT * (1 - level / top), f"{level:,.0f}") for level in levels]
    every_second = [k for k in range(len(names)) if k == 0 or k % 2]  # more labels would overlap
    ticks = [(LEFT + (k + 0.5) * step, names[k]) for k in every_second]
    chart = Chart(title, f"{title}: {listed}", x_label, BARS_WIDTH, grid, ticks)
    for k, (count, name) in enumerate(zip(counts, names, strict=True)):
        height = PLOT_HEIGHT * count / top
        at = (LEFT + k * step + 1.5, TOP + PLOT_HEIGHT - height, step - 3, height)
        tooltip = f"{name}: {count:,} ({100 * count / total:.1f} %)"
        chart.bars.append(Shape("s0" if k else "apart", at, tooltip))
    return chart


def line_chart(
    title: str, series: Sequence[Line], x_label: str, y_label: str, diagonal: tuple[Point, Point]
) -> Chart:
    """Series over a square of 0 to 100 percent; `diagonal` is a thin line to compare with."""
    levels = (0, 0.25, 0.5, 0.75, 1)
    grid = [(_pixels((0, level))[1], f"{100 * level:.0f}") for level in levels]
    ticks = [(_pixels((level, 0))[0], f"{100 * level:.0f}") for level in levels]
    description = f"{title}: {y_label} over {x_label}; the table below has the numbers"
    ends = (*_pixels(diagonal[0]), *_pixels(diagonal[1]))
    chart = Chart(title, description, x_label, WIDTH, grid, ticks, y_label, diagonal=ends)
    for k, line in enumerate(series):
        style = f"s{k % SERIES}"
        path = [value for point in _thinned(line.points) for value in _pixels(point)]
        chart.lines.append(Shape(style, path, line.label))
        dots = [(point, style, 2.6, line.label) for point in line.points if line.dots]
        marks = [(point, f"{style} mark", 5.5, f"{line.label}: chosen") for point in line.marks]
        for (x, y), dot_style, radius, label in dots + marks:
            tooltip = f"{label}: {100 * x:.1f}, {100 * y:.1f}"
            chart.dots.append(Shape(dot_style, (*_pixels((x, y)), radius), tooltip))
    return chart


def _pixels(point: Point) -> Point:
    return LEFT + point[0] * PLOT_WIDTH, TOP + (1 - point[1]) * PLOT_HEIGHT


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MAX_POINTS of the points, evenly spaced, with both ends."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (MAX_POINTS - 1))] for k in range(MAX_POINTS)]
