"""The accuracy report as a self-contained HTML page, without scripts, fonts or images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Template
from markupsafe import Markup

from . import charts
from .limits import CLIPPED_NOTABLY, FLOAT_DRIFT

OUTLIERS_SHOWN = 16
_TENSORS = {"q": "queries", "k": "keys", "v": "values", "p": "probabilities"}


def render(report: Mapping[str, Any]) -> str:
    """Render `report`, which has JSON values.

    Sections that are null or missing are omitted. All text is escaped; values that are not finite numbers are shown as
    a dash.
    """
    texts = _mapping(report.get("texts"))
    search = _mapping(report.get("search"))
    candidates = _rows(search.get("candidates"))
    layers = [_mapping(layer) for layer in report.get("layers") or ()]
    clipped = _clipped(layers)
    # Channels of heads, which belong to the attention, first.
    outliers = sorted(
        _rows(report.get("outliers")), key=lambda row: (row.get("head") is None, -(_value(row.get("ratio")) or 0.0))
    )
    return _template().render(
        report=report,
        verdict=_verdict(texts),
        texts=texts,
        top=max([0.0, *_heights(texts)]),
        positions=list(_positions(report)),
        layers=_layer_figures(layers, _value(report.get("lm_head"))),
        legend=charts.noise_legend(),
        noise_classes=len(charts.NOISE_BOUNDS) + 1,
        clipped=clipped,
        notices=[row for row in clipped if row["share"] > CLIPPED_NOTABLY],
        outliers=outliers[:OUTLIERS_SHOWN],
        outliers_hidden=len(outliers[OUTLIERS_SHOWN:]),
        needles=_rows(_mapping(report.get("needle")).get("rows")),
        tasks=_rows(report.get("tasks")),
        search=search,
        candidates=candidates,
        search_top=max(
            [0.0, *(_value(row.get("kl")) or 0.0 for row in candidates), _value(search.get("max_kl")) or 0.0]
        ),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("faquant.evaluation", ""),
        autoescape=True,
        undefined=ChainableUndefined,
        finalize=lambda value: "–" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(bar=charts.bar, variant_class=charts.variant_class)
    environment.filters.update(value=_value, num=_num, kl=_kl, size=_size, base=_base, setting=_setting)
    return environment.get_template("report.html.j2")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [_mapping(row) for row in value or ()]


def _value(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _num(value: Any, digits: int = 0, factor: float = 1.0) -> str:
    """`value` × `factor` with thousands separators, or a dash."""
    number = _value(value)
    number = number if number is None else _value(number * factor)
    if number is None:
        return "–"
    written = f"{number:.2e}" if abs(number) >= 1e12 else f"{number:,.{digits}f}"
    return written.replace("-", "−")


def _kl(value: Any, digits: int = 2) -> str:
    return _num(value, digits, 1e3)


def _size(value: Any) -> str:
    """Bytes in a unit that leaves about three digits."""
    number = _value(value)
    if number is None:
        return "–"
    unit, power = next(((u, p) for u, p in (("GB", 9), ("MB", 6), ("kB", 3)) if number >= 10**p), ("B", 0))
    return f"{_num(number / 10**power, 0 if power == 0 or number >= 10 ** (power + 2) else 1)} {unit}"


def _base(path: Any) -> str:
    """The last part of a path."""
    return str(path or "").rstrip("/\\").replace("\\", "/").rpartition("/")[2] or str(path or "")


def _setting(value: Any) -> str:
    """A value of the recipe in readable form."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_setting, value)) or "none"
    if isinstance(value, int | float):
        return _num(value) if isinstance(value, int) else _num(value, 4)
    return "–" if value is None else str(value)


def _heights(texts: Mapping[str, Any]) -> Iterator[float]:
    """The ends of all bars and their whiskers."""
    for text in texts.values():
        for result in _mapping(_mapping(text).get("variants")).values():
            yield (_value(_mapping(result).get("kl_mean")) or 0.0) + (_value(_mapping(result).get("kl_error")) or 0.0)


def _verdict(texts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Summary of one variant (`both` if measured) over all texts: means over tokens, and the worst text."""
    found = {name: _mapping(_mapping(text).get("variants")) for name, text in texts.items()}
    names = [name for variants in found.values() for name in variants]
    if not names:
        return None
    variant = "both" if "both" in names else names[-1]
    results = {name: _mapping(variants[variant]) for name, variants in found.items() if variant in variants}
    verdict: dict[str, Any] = {"variant": variant, "texts": len(results)}
    verdict["tokens"] = sum(_value(result.get("tokens")) or 0.0 for result in results.values())
    for key, worse in (("kl_mean", 1), ("top1", -1), ("perplexity_ratio", 1)):
        known = [
            (number, _value(result.get("tokens")) or 0.0, name)
            for name, result in results.items()
            if (number := _value(result.get(key))) is not None
        ]
        weight = sum(tokens for _, tokens, _ in known)
        verdict[key] = sum(number * tokens for number, tokens, _ in known) / weight if weight else None
        verdict[f"{key}_worst"] = max(known, key=lambda entry: worse * entry[0]) if len(known) > 1 else None
    return verdict


@dataclass(frozen=True)
class _Figure:
    title: str
    svg: Markup
    note: str
    variants: Sequence[str] = ()


def _figure(title: str, svg: Markup | None, note: str, variants: Sequence[str] = ()) -> Iterator[_Figure]:
    if svg is not None:
        yield _Figure(title, svg, note, variants)


def _milli(values: Any) -> list[float | None]:
    return [None if (number := _value(value)) is None else number * 1e3 for value in values or ()]


def _positions(report: Mapping[str, Any]) -> Iterator[_Figure]:
    """KL by position: one text at several positions, and one long context in segments."""
    offsets = _mapping(report.get("offsets"))
    places = [_value(offset) or 0.0 for offset in offsets.get("offsets") or ()]
    text = offsets.get("text") or "a text"
    note = f"{_num(offsets.get('tokens'))} tokens of {text}, from position 0 and at borders between K's maps."
    drift = max((_value(value) or 0.0 for value in offsets.get("float_drift") or ()), default=0.0)
    if drift > FLOAT_DRIFT:
        note += f" The float model itself moves by {_num(drift, 2, 1e3)} there."
    yield from _position_figure("The same text, moved", "position of the first token", offsets, places, places, note)
    long = _mapping(report.get("long"))
    edges = [_value(edge) or 0.0 for edge in long.get("edges") or ()]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    note = f"{_num(long.get('tokens'))} tokens in one context; each dot is the mean of a segment."
    yield from _position_figure("One long context", "position", long, middles, edges, note)


def _position_figure(
    title: str, x_name: str, section: Mapping[str, Any], places: list[float], ticks: list[float], note: str
) -> Iterator[_Figure]:
    variants = _mapping(section.get("variants"))
    lines = {name: list(zip(places, _milli(values), strict=False)) for name, values in variants.items()}
    svg = charts.line_chart(f"{title}: KL by position. {_ends(lines)}", x_name, "KL, 10⁻³ nats", ticks, lines)
    yield from _figure(title, svg, note, list(lines))


def _ends(lines: Mapping[str, Sequence[tuple[float, float | None]]]) -> str:
    """The first and last value of each line, as a text alternative."""
    return " ".join(f"{name}: {_num(line[0][1], 2)} to {_num(line[-1][1], 2)}." for name, line in lines.items() if line)


def _layer_figures(layers: Sequence[Mapping[str, Any]], lm_head: float | None) -> list[_Figure]:
    """Heat maps of q, k, v, P by head and of the linears by kind, and the residual stream as a line."""
    figures: list[_Figure] = []
    for key, name in _TENSORS.items():
        columns = [[_value(value) for value in layer.get(key) or ()] for layer in layers]
        heads = range(max(map(len, columns), default=0))
        values = [[column[head] if head < len(column) else None for column in columns] for head in heads]
        figures += _heat_figure(
            f"{key.upper() if key == 'p' else key}, {name}", [f"head {head}" for head in heads], values
        )
    linears = [_mapping(layer.get("linears")) for layer in layers]
    kinds = list(dict.fromkeys(kind for layer in linears for kind in layer))
    values = [[_value(layer.get(kind)) for layer in linears] for kind in kinds]
    extra = "" if lm_head is None else f" lm_head: {_num(lm_head, 1)}."
    figures += _heat_figure("Linears", kinds, values, extra)
    stream = [(float(i), _value(layer.get("stream"))) for i, layer in enumerate(layers)]
    title = "Residual stream after each layer"
    known = [y for _, y in stream if y is not None]
    note = f"From {_num(known[0], 1)} to {_num(known[-1], 1)}." if known else ""
    svg = charts.line_chart(
        f"{title}, signal to noise in dB. {note}",
        "layer",
        "dB",
        charts.layer_ticks(len(layers)),
        {"both": stream},
        False,
    )
    return [*figures, *_figure(title, svg, note)]


def _heat_figure(
    title: str, rows: Sequence[str], values: Sequence[Sequence[float | None]], extra: str = ""
) -> Iterator[_Figure]:
    known = [
        (value, layer, name)
        for name, row in zip(rows, values, strict=True)
        for layer, value in enumerate(row)
        if value is not None
    ]
    if known:
        lowest, layer, name = min(known)
        middle = median(value for value, _, _ in known)
        note = f"Lowest {_num(lowest, 1)} in layer {layer}, {name}; median {_num(middle, 1)}.{extra}"
        yield from _figure(title, charts.heat_map(f"{title}, signal to noise in dB. {note}", rows, values), note)


def _clipped(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each tensor, the largest share of clipped values, its layer, and the number of layers in which it is
    notable."""
    rows = []
    for tensor in ("q", "k", "v"):
        shares = [_value(_mapping(layer.get("clipped")).get(tensor)) for layer in layers]
        known = [(share, layer) for layer, share in enumerate(shares) if share is not None]
        if known:
            share, layer = max(known, key=lambda entry: entry[0])
            notable = sum(value > CLIPPED_NOTABLY for value, _ in known)
            rows.append({"tensor": tensor, "share": share, "layer": layer, "notable": notable})
    return rows
