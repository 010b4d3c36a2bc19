"""Inline SVG for the accuracy report: line chart, heat map, legend, and a bar with its error.

Figures are 360 units wide, like a phone, so that text is never scaled down; a wide page shows several side by side. The
page's style sheet has the colors; shapes only have classes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

WIDTH, LEFT, RIGHT, TOP, PLOT_HEIGHT = 360, 50, 12, 22, 132
PLOT_WIDTH = WIDTH - LEFT - RIGHT
BAR_WIDTH = 130
NOISE_BOUNDS = range(15, 49, 3)  # dB; 3 dB halve the noise
_LARGEST = 1e9  # larger values are not drawn


def noise_class(decibels: float) -> int:
    """Color class of a signal-to-noise ratio, from 0, the noisiest, to len(NOISE_BOUNDS), the cleanest."""
    return sum(decibels >= bound for bound in NOISE_BOUNDS)


def variant_class(name: str) -> str:
    """CSS class of the variant `name`, the same in every figure."""
    return f"v-{name if name in ('attention', 'linears', 'both') else 'other'}"


def bar(value: float | None, error: float | None, top: float, bound: float | None = None, variant: str = "") -> Markup:
    """A bar from 0 to `value` on an axis that ends at `top`, with a whisker of ± `error` and a tick at `bound`.

    It is shown next to its number, so it is hidden from screen readers.
    """
    if value is None or not 0 < top < math.inf:
        return Markup("")

    def x(at: float) -> float:
        return BAR_WIDTH * min(max(at / top, 0.0), 1.0)

    parts = [_tag("rect", x=0, y=3, width=x(value), height=8, class_=variant_class(variant))]
    if error:
        low, high = _number(x(value - error)), _number(x(value + error))
        parts.append(_tag("path", class_="whisker", d=f"M{low} 4v6m0-3H{high}m0-3v6"))
    if bound is not None and bound <= top:
        parts.append(_tag("path", class_="bound", d=f"M{_number(x(bound))} 0v14"))
    return _tag(
        "svg",
        *parts,
        class_="bar",
        viewBox=f"-1 0 {BAR_WIDTH + 2} 14",
        width=BAR_WIDTH + 2,
        height=14,
        aria_hidden="true",
    )


def line_chart(
    label: str,
    x_name: str,
    y_name: str,
    x_ticks: Sequence[float],
    lines: Mapping[str, Sequence[tuple[float, float | None]]],
    from_zero: bool = True,
) -> Markup | None:
    """One line per variant through its (x, y), interrupted where y is None or too large; None if there is no y."""
    drawn = {name: [(x, y) for x, y in line if _drawable(x)] for name, line in lines.items()}
    values = [y for line in drawn.values() for _, y in line if y is not None and _drawable(y)]
    if not values:
        return None
    y_ticks = _round_ticks(min(values), max(values), from_zero)
    low, high = y_ticks[0], y_ticks[-1]
    x_ticks = sorted(filter(_drawable, x_ticks))
    places = [x for line in drawn.values() for x, _ in line] + x_ticks
    left, span = min(places), (max(places) - min(places)) or 1.0

    def x_of(x: float) -> float:
        return LEFT + PLOT_WIDTH * (x - left) / span

    def y_of(y: float) -> float:
        return TOP + PLOT_HEIGHT * (high - y) / (high - low)

    parts: list[Markup] = [_text(0, 11, y_name)]
    for tick, written in zip(y_ticks, _written(y_ticks), strict=True):
        parts.append(_tag("path", class_="grid", d=f"M{LEFT} {_number(y_of(tick))}h{PLOT_WIDTH}"))
        parts.append(_text(LEFT - 6, y_of(tick) + 4, written, "end"))
    base = TOP + PLOT_HEIGHT
    parts += _x_axis([(x_of(tick), f"{tick:,.0f}") for tick in x_ticks], base, x_name)
    for name, line in drawn.items():
        path, pen, dots, radius = "", "M", [], 2.5 if len(line) <= 40 else 1.5
        for x, y in line:
            if y is None or not _drawable(y):
                pen = "M"
                continue
            path += f"{pen}{_number(x_of(x))} {_number(y_of(y))}"
            pen = "L"
            title = _tag("title", f"{_clipped(name, 60)} at {x:,.6g}: {y:.4g}")
            dots.append(_tag("circle", title, cx=x_of(x), cy=y_of(y), r=radius))
        parts.append(_tag("g", _tag("path", d=path), *dots, class_=f"line {variant_class(name)}"))
    return _figure(label, base + 36, parts)


def heat_map(label: str, rows: Sequence[str], values: Sequence[Sequence[float | None]]) -> Markup | None:
    """Signal-to-noise ratios in dB: `values[row][layer]`, None for float. Returns None if there is no value."""
    layers = max(map(len, values), default=0)
    if not any(value is not None for row in values for value in row):
        return None
    height = max(4.0, min(14.0, PLOT_HEIGHT / len(rows)))
    cells: list[Markup] = []
    for y, (name, row) in enumerate(zip(rows, values, strict=True)):
        title = _clipped(name, 40)
        # Cells of one unit in a scaled group, for compactness: a large model has tens of thousands of cells.
        for x, value in enumerate(row):
            if value is None:
                cells.append(Markup('<path class="float" d="M{} {}h1"></path>').format(x, y + 0.5))
                continue
            cells.append(
                Markup('<path class="c{}" d="M{} {}h1v1h-1z"><title>layer {}, {}: {}</title></path>').format(
                    noise_class(value), x, y, x, title, f"{value:.1f}"
                )
            )
    parts = []
    free = 0.0
    for y, name in enumerate(rows):
        middle = TOP - 14 + (y + 0.5) * height
        if middle - 5.5 >= free - 0.01:
            parts.append(
                _text(LEFT - 6, middle + 4, _clipped(name.removeprefix("head ").removesuffix("_proj"), 6), "end")
            )
            free = middle + 6.5
    width = PLOT_WIDTH / layers
    frame = f"translate({LEFT} {TOP - 14}) scale({width:.5g} {height:.5g})"
    parts.append(_tag("g", *cells, class_="cells", transform=frame))
    base = TOP - 14 + height * len(rows)
    parts.append(_tag("rect", class_="frame", x=LEFT, y=TOP - 14, width=PLOT_WIDTH, height=base - TOP + 14))
    ticks = [(LEFT + (tick + 0.5) * width, str(tick)) for tick in layer_ticks(layers)]
    return _figure(label, base + 36, [*parts, *_x_axis(ticks, base, "layer")])


def noise_legend() -> Markup:
    """The legend of the heat maps' colors, noisiest first."""
    count, width = len(NOISE_BOUNDS) + 1, 20
    parts = [_tag("path", class_=f"c{i}", d=f"M{i * width} 0h{width}v10h-{width}z") for i in range(count)]
    parts.append(_tag("path", class_="frame", d=f"M0.5 0.5h{count * width - 1}v9.5h-{count * width - 1}z"))
    parts += [_text((i + 1) * width, 22, str(bound), "middle") for i, bound in enumerate(NOISE_BOUNDS) if i % 2 == 0]
    label = f"Colors, from the strongest, below {NOISE_BOUNDS[0]} dB, to the palest, above {NOISE_BOUNDS[-1]} dB."
    return _tag(
        "svg",
        *parts,
        class_="legend",
        viewBox=f"0 0 {count * width} 26",
        width=count * width,
        role="img",
        aria_label=label,
    )


def layer_ticks(layers: int) -> list[int]:
    """At most a dozen round layer numbers."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, layers) if layers <= 12 * step)
    return list(range(0, layers, step))


def _x_axis(ticks: Sequence[tuple[float, str]], base: float, name: str) -> list[Markup]:
    """Ticks, evenly thinned until their labels do not overlap, and the name of the axis below."""
    placed = [(x, min(x, WIDTH - 3.4 * len(written)), written) for x, written in ticks]
    while any(b - a < 3.4 * (len(p) + len(q)) + 6 for (_, a, p), (_, b, q) in pairwise(placed)):
        placed = placed[::2]
    parts = [_text(LEFT + PLOT_WIDTH / 2, base + 31, name, "middle")]
    for x, center, written in placed:
        parts.append(_tag("path", class_="tick", d=f"M{_number(x)} {_number(base)}v4"))
        parts.append(_text(center, base + 16, written, "middle"))
    return parts


def _round_ticks(low: float, high: float, from_zero: bool) -> list[float]:
    """Three to seven round numbers around low and high."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9 * max(1.0, abs(low)):
        high = low + max(1.0, abs(low))
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _written(ticks: Sequence[float]) -> list[str]:
    """Tick labels of up to six characters."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if max(map(abs, ticks)) >= 10 * unit:
            return [f"{tick / unit:,.4g}{name}" if tick else "0" for tick in ticks]
    step = ticks[1] - ticks[0]
    decimals = next((d for d in range(4) if all(abs(tick - round(tick, d)) < step * 1e-6 for tick in ticks)), None)
    if decimals is None:
        return [f"{tick:.1e}".replace("e-0", "e-") if tick else "0" for tick in ticks]
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _drawable(value: float) -> bool:
    return abs(value) <= _LARGEST


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return _tag("text", text, x=x, y=y, text_anchor=anchor)


def _figure(label: str, height: float, parts: Sequence[Markup]) -> Markup:
    return _tag("svg", *parts, viewBox=f"0 0 {WIDTH} {_number(height)}", role="img", aria_label=label)


def _tag(name: str, *children: Markup | str, **attributes: float | str) -> Markup:
    """An element with escaped strings; `class_` becomes class, `text_anchor` becomes text-anchor."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _number(value)
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))
