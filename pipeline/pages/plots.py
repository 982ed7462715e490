"""Small plots as inline SVG, which take their colours from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.terminal import escape

_HEIGHT = 100
_STEP, _BAR = 10, 8  # units from one column to the next, and of a column
_LEAST_COLUMNS = 12  # that a plot has room for, so that a single one is no wall
_LEAST = 1.5  # units of height: what is not zero can be seen
_WIDTH, _LOW = 100, 24  # of a sparkline
_FLAT = 0.05  # of the value: what changes less is noise, and a sparkline shows it as such

_FIGURE = Markup(
    '<figure class="plot"><figcaption>{}</figcaption><div class="plot-area">'
    '<span class="plot-top">{}</span>'
    '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    '</div><div class="plot-ends of-{}"><span>{}</span><span>{}</span></div></figure>'
)
_GROUP = Markup(
    '<g><title>{}: {}</title><rect class="hover" x="{}" y="0" width="{}" height="{}"/>{}</g>'
)
_RECTANGLE = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
_LINE = Markup(
    '<svg class="sparkline" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>'
    '<path d="{}"/><circle cx="{}" cy="{}" r="2"/></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a plot."""

    label: str
    """What it is of, such as a date."""
    parts: tuple[tuple[str, float], ...]
    """From the bottom up: a class of the page's style, such as `failed`, and a value that is not
    negative."""
    text: str
    """What the column says in words."""

    @property
    def total(self) -> float:
        return sum(value for _, value in self.parts)


def columns(title: str, values: Sequence[Column], *, top: str) -> Markup:
    """A plot of columns as a figure. `top` is the greatest total, as people write it.

    Each column tells its text to who points at it, and the figure all of them to who listens.
    """
    greatest = max((each.total for each in values), default=0.0)
    drawn = Markup("").join(
        _draw_column(number, each, _HEIGHT / greatest if greatest > 0 else 0.0)
        for number, each in enumerate(values)
    )
    told = "; ".join(f"{each.label}: {each.text}" for each in values)
    first, last = (values[0].label, values[-1].label) if values else ("", "")
    return _FIGURE.format(
        *_safe(title, top, max(len(values), _LEAST_COLUMNS) * _STEP, _HEIGHT),
        *_safe(f"{title}: {told or 'nothing yet'}", drawn),
        *_safe(min(len(values), _LEAST_COLUMNS), first, last if values[1:] else ""),
    )


def _draw_column(number: int, column: Column, scale: float) -> Markup:
    rectangles, bottom = [], float(_HEIGHT)
    for kind, value in column.parts:
        if value <= 0:
            continue
        height = max(value * scale, _LEAST)
        bottom -= height
        rectangles.append(
            _RECTANGLE.format(
                *(kind, number * _STEP + 1, f"{max(bottom, 0):.1f}", _BAR, f"{height:.1f}")
            )
        )
    return _GROUP.format(
        *_safe(column.label, column.text),
        *(number * _STEP, _STEP, _HEIGHT, Markup("").join(rectangles)),
    )


def sparkline(title: str, values: Sequence[float | None]) -> Markup:
    """A line from the oldest to the newest value, whose height is from the least to the greatest; a
    None is a gap. `title` says it in words. Of fewer than two values there is no line."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    least, most = min(known), max(known)
    room = max(most - least, abs(most) * _FLAT)
    middle = (least + most) / 2

    def at(number: int, value: float) -> str:
        x = 2 + number * (_WIDTH - 4) / (len(values) - 1)
        y = _LOW / 2 - (value - middle) / (room or 1) * (_LOW - 6)
        return f"{x:.1f} {y:.1f}"

    path, drawing = [], False
    for number, value in enumerate(values):
        if value is not None:
            path.append(f"{'L' if drawing else 'M'}{at(number, value)}")
        drawing = value is not None
    last = next(number for number in reversed(range(len(values))) if values[number] is not None)
    x, y = at(last, known[-1]).split()
    return _LINE.format(_WIDTH, _LOW, *_safe(title, title), "".join(path), x, y)


def _safe(*values: object) -> list[object]:
    return [value if hasattr(value, "__html__") else escape(str(value)) for value in values]
