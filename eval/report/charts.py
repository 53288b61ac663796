"""Line and bar charts as inline SVG: no script, colours by class (the page's style), so they follow light and
dark mode and print. Series differ by dash and marker too, never by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, BARS_WIDTH, HEIGHT = 360, 264, 232  # of the drawing; several bar charts stand in one row
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 40
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MOST_POINTS = 240  # of one drawn line; more would not be seen
SERIES = 6  # styles s0 … s5 of the page; after these they come again

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One drawn series: points in 0..1 on both axes, in order of x or along a curve."""

    label: str
    points: Sequence[Point]
    marks: Sequence[Point] = field(default=())  # drawn large
    dots: bool = False  # draw each point


def bars(title: str, counts: Sequence[int], names: Sequence[str], label: str, first_apart: bool) -> str:
    """Bars of counts over named classes; with `first_apart` the first one stands in another colour."""
    top = max(max(counts), 1)
    total = max(sum(counts), 1)
    wide = BARS_WIDTH - LEFT - RIGHT
    step = wide / len(counts)
    spoken = ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True))
    parts = [_open(title, f"{title}: {spoken}", BARS_WIDTH)]
    parts += _grid_y([0, top / 2, top] if top > 1 else [0, 1], top, "", wide)
    for k, (count, name) in enumerate(zip(counts, names, strict=True)):
        tall = PLOT_H * count / top
        x, y = LEFT + k * step, TOP + PLOT_H - tall
        kind = "apart" if first_apart and k == 0 else "s0"
        tip = f"<title>{escape(name)}: {count:,} ({100 * count / total:.1f} %)</title>"
        parts.append(
            f'<rect class="f {kind}" x="{x + 1.5:.1f}" y="{y:.1f}" width="{step - 3:.1f}" height="{tall:.1f}">'
            f"{tip}</rect>"
        )
        if k == 0 or k % 2:  # every second name: more would touch
            parts.append(_text(x + step / 2, TOP + PLOT_H + 14, name, "middle"))
    parts.append(_text(LEFT + wide / 2, HEIGHT - 6, label, "middle", "axis"))
    return "".join(parts) + "</svg>"


def lines(
    title: str, series: Sequence[Line], x_label: str, y_label: str, *, diagonal: tuple[Point, Point] | None
) -> str:
    """Series over a square of 0..100 percent; `diagonal` is a thin line to compare with."""
    parts = [_open(title, f"{title}: {y_label} over {x_label}; numbers in the table below", WIDTH)]
    ticks = [0, 0.25, 0.5, 0.75, 1]
    parts += _grid_y(ticks, 1, "%", PLOT_W)
    for t in ticks:
        parts.append(_text(LEFT + t * PLOT_W, TOP + PLOT_H + 14, f"{100 * t:.0f}", "middle"))
    if diagonal:
        (x0, y0), (x1, y1) = (_place(point) for point in diagonal)
        parts.append(f'<line class=diagonal x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    for k, line in enumerate(series):
        kind = f"s{k % SERIES}"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(_place, _thinned(line.points)))
        parts.append(f'<polyline class="l {kind}" points="{path}"/>')
        if line.dots:
            parts += [_dot(point, kind, 2.6, line.label) for point in line.points]
        parts += [_dot(point, f"{kind} mark", 5.5, f"{line.label}: chosen") for point in line.marks]
    parts.append(_text(LEFT + PLOT_W / 2, HEIGHT - 6, x_label, "middle", "axis"))
    parts.append(_text(4, 12, y_label, "start", "axis"))
    return "".join(parts) + "</svg>" + _legend(series)


def _legend(series: Sequence[Line]) -> str:
    items = [
        f'<li><svg viewBox="0 0 28 10" aria-hidden=true><line class="l s{k % SERIES}" x1=1 y1=5 x2=27 y2=5 />'
        f"</svg>{escape(line.label)}</li>"
        for k, line in enumerate(series)
    ]
    return f"<ul class=legend>{''.join(items)}</ul>"


def _open(title: str, description: str, width: int) -> str:
    return (
        f'<svg class=chart viewBox="0 0 {width} {HEIGHT}" role=img aria-label="{escape(description)}">'
        f"<title>{escape(title)}</title>"
    )


def _grid_y(values: Sequence[float], top: float, unit: str, wide: float) -> list[str]:
    """Thin lines across at some values, numbered at the left (as percent of 1 where the unit is %)."""
    parts = []
    for value in values:
        y = TOP + PLOT_H * (1 - value / top)
        parts.append(f'<line class=grid x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + wide}" y2="{y:.1f}"/>')
        shown = f"{100 * value:.0f}" if unit == "%" else f"{value:,.0f}"
        parts.append(_text(LEFT - 6, y + 3.5, shown, "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class={kind} x="{x:.1f}" y="{y:.1f}" text-anchor={anchor}>{escape(text)}</text>'


def _dot(point: Point, kind: str, radius: float, label: str) -> str:
    x, y = _place(point)
    tip = f"<title>{escape(label)}: {100 * point[0]:.1f}, {100 * point[1]:.1f}</title>"
    return f'<circle class="d {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{tip}</circle>'


def _place(point: Point) -> Point:
    return LEFT + point[0] * PLOT_W, TOP + (1 - point[1]) * PLOT_H


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MOST_POINTS of the points, evenly, the first and last among them."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]
