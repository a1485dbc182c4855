"""Draws bars and curves as inline SVG in the colours of the page: for light and dark, and without a script.

Coordinates inside a plot are those of the data; `Axes` turns them into pixels.
"""

import math
from collections.abc import Mapping, Sequence

from train_utils.show.pages import Html, joined, tag

WIDTH, HEIGHT = 520, 260  # pixels of a plot; the page makes it narrower
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44  # room around it for ticks and labels
COLORS = 7  # --c0 .. of page.css
LETTER, DIGIT = 6.5, 7.5  # pixels that a letter of a word and one of a number take, about
ROW, MARK = 18, 26  # of the legend: pixels of a row, and of the line before a name


class Axes:
    """The axes of a plot, which turn data into pixels.

    x_range, y_range: (low, high) of the data; whole: y counts something, so that only whole ticks make sense.
    """

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_label: str,
        y_label: str,
        whole: bool = False,
    ) -> None:
        self.least = 1.0 if whole else 0.0
        self.x_range, self.y_range, self.x_label, self.y_label = _widened(x_range), _widened(y_range), x_label, y_label

    def x(self, value: float) -> float:
        """Returns the pixel column of a value."""
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Returns the pixel row of a value."""
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def y_ticks(self) -> Html:
        """Draws a grid line and a number at each tick of y."""
        lines = []
        for value in ticks(*self.y_range, least=self.least):
            lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value), class_="grid"))
            lines.append(_text(LEFT - 6, self.y(value) + 4, f"{value:,.10g}", "end"))
        return joined(*lines)

    def x_ticks(self) -> Html:
        """Draws a number at each tick of x."""
        return joined(*(_text(self.x(value), HEIGHT - BOTTOM + 16, f"{value:,.10g}") for value in ticks(*self.x_range)))

    def labels(self) -> Html:
        """Draws the names of both axes: that of y left of its numbers."""
        middle, at = (TOP + HEIGHT - BOTTOM) / 2, 14 - self.widened
        return joined(
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, self.x_label),
            tag("text", self.y_label, x=at, y=middle, text_anchor="middle", transform=f"rotate(-90 {at} {middle})"),
        )

    @property
    def widened(self) -> float:
        """The pixels that y's numbers need left of the plot's usual edge."""
        longest = max(len(f"{value:,.10g}") for value in ticks(*self.y_range, least=self.least))
        return max(0.0, round(DIGIT * longest - (LEFT - 6 - 22), 1))


def bars(values: Sequence[float], labels: Sequence[str], x_label: str, y_label: str) -> Html:
    """Draws a bar for each value, and the label of every bar that has room for it."""
    whole = all(float(value).is_integer() for value in values)
    axes = Axes((0, max(len(values), 1)), (0, max([*values, 0]) or 1), x_label, y_label, whole)
    every = max(1, math.ceil(max(map(len, labels), default=1) * LETTER * len(labels) / (WIDTH - LEFT - RIGHT)))
    parts = []
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        top = axes.y(value)
        width, height = round(axes.x(0.84) - axes.x(0), 1), round(axes.y(0) - top, 1)
        box = tag("rect", x=axes.x(i + 0.08), y=top, width=width, height=height, fill="var(--c0)")
        parts.append(tag("g", tag("title", f"{label}: {value:,.10g}"), box))
        if i % every == 0:
            parts.append(_text(axes.x(i + 0.5), HEIGHT - BOTTOM + 16, label))
    summary = ", ".join(f"{label}: {value:,.10g}" for label, value in zip(labels, values, strict=True))
    return _plot(f"{y_label} by {x_label}. {summary}", (axes.widened, 0), axes.y_ticks(), *parts, axes.labels())


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Html:
    """Draws a curve for each name -> (x, y), and above the plot a legend of several; diagonal: y = x too."""
    known = [[value for xy in lines.values() for value in xy[axis]] or [0, 1] for axis in (0, 1)]
    axes = Axes(x_range or (min(known[0]), max(known[0])), y_range or (min(known[1]), max(known[1])), x_label, y_label)
    parts = []
    if diagonal:
        low, high = axes.x_range
        ends = {"x1": axes.x(low), "y1": axes.y(low), "x2": axes.x(high), "y2": axes.y(high)}
        parts.append(tag("line", **ends, class_="grid", stroke_dasharray="4 4"))
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        points = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in zip(xs, ys, strict=True))
        color = f"stroke:var(--c{i % COLORS})"
        parts.append(tag("polyline", tag("title", name), points=points, class_="curve", style=color))
    legend, above = _legend(list(lines)) if len(lines) > 1 else ("", 0)
    summary = f"{y_label} over {x_label}: {', '.join(lines)}"
    return _plot(summary, (axes.widened, above), axes.y_ticks(), axes.x_ticks(), *parts, axes.labels(), legend)


def _legend(names: Sequence[str]) -> tuple[Html, int]:
    """Draws the colour of each curve and its name in rows above the plot; returns them, and the pixels they need."""
    parts, x, rows = [], float(LEFT), [[]]
    for i, name in enumerate(names):
        width = round(MARK + LETTER * len(name) + 16, 1)
        if rows[-1] and x + width > WIDTH:
            x = float(LEFT)
            rows.append([])
        rows[-1].append((i, name, x))
        x += width
    for row, entries in enumerate(rows):
        y = TOP - ROW * (len(rows) - row) + 6
        for i, name, x in entries:
            color = f"stroke:var(--c{i % COLORS})"
            parts.append(tag("line", x1=x, x2=x + MARK - 6, y1=y - 4, y2=y - 4, class_="curve", style=color))
            parts.append(_text(x + MARK, y, name, "start"))
    return joined(*parts), ROW * len(rows)


def ticks(low: float, high: float, about: int = 5, least: float = 0.0) -> list[float]:
    """Returns round numbers from low to high: steps of 1, 2 or 5 times a power of ten, of at least `least`."""
    rough = max((high - low) / about, least)
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _widened(low_high: tuple[float, float]) -> tuple[float, float]:
    low, high = low_high
    return (low, high) if high > low else (low, low + 1)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


def _plot(summary: str, more: tuple[float, float], *parts: Html) -> Html:
    """Puts a plot together; more: pixels that it needs left of and above its usual edges."""
    left, above = more
    width, height = WIDTH + left, HEIGHT + above
    box = f"{0 - left:g} {0 - above:g} {width:g} {height:g}"
    return tag("svg", *parts, viewBox=box, width=f"{width:g}", height=f"{height:g}", role="img", aria_label=summary)
