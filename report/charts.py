"""Numbers over steps -> inline SVG."""

import math
from collections.abc import Sequence

from ross3d.report.html import Markup, element


WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 10, 26
# Share of the previous smoothed value in the next.
SMOOTHING = 0.7


def choose_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` of them, within [low, high]."""
    span = max(high - low, 1e-12)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(total / weight)
    return smoothed


def make_line_chart(title: str, steps: Sequence[float], values: Sequence[float], color: str = "#2457c5") -> Markup:
    """A curve with pale raw values and strong smoothed values, and the last value in its title.

    Values that are not finite are left out of the curve and counted in the title.
    """
    points = [(float(x), float(y)) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    left_out = len(values) - len(points)
    if not points:
        return element("div", element("div", f"{title}: no finite values", class_="chart-title"))
    xs, ys = zip(*points, strict=True)
    low, high = min(*ys, 0.0) if min(ys) < 0.3 * max(ys) else min(ys), max(ys)
    high = high if high > low else low + 1.0
    first, last = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def draw(line: Sequence[float], stroke_width: float, opacity: float) -> Markup:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in zip(xs, line, strict=True)))
        return element(
            "polyline",
            points=path,
            fill="none",
            stroke=color,
            stroke_width=stroke_width,
            opacity=opacity,
            stroke_linejoin="round",
        )

    grid = []
    for tick in choose_ticks(low, high):
        _, y = place(first, tick)
        grid.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", stroke="#e8ecf1"))
        grid.append(make_text(LEFT - 7, y + 4, format_tick(tick), "end"))
    for tick in choose_ticks(first, last):
        x, _ = place(tick, low)
        grid.append(make_text(x, HEIGHT - 8, format_tick(tick), "middle"))
    label = f"{title}: {values[-1]:.4g} at step {steps[-1]:.0f}, the last of the log"
    if left_out:
        label += f", {left_out} values not finite"
    drawing = element(
        "svg",
        *grid,
        draw(ys, 1, 0.3),
        draw(smooth(ys), 2, 1),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width="100%",
        role="img",
        aria_label=label,
    )
    return element("div", element("div", label, class_="chart-title"), drawing)


def make_text(x: float, y: float, text: str, anchor: str, color: str = "#5b6675", size: float = 11) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, fill=color, font_size=size)


__all__ = ["choose_ticks", "make_line_chart", "make_text", "smooth"]
