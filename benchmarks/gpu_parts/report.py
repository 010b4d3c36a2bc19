"""The report: results as tables in Markdown, with the goals and whether they are met."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """heading, name of the value in a row, format, and a factor from the unit of the value to that of the heading."""

    heading: str
    name: str
    form: str = ""
    factor: float = 0.0

    def shown(self, row: Row) -> str:
        value = row.get(self.name)
        if value is None:
            return "–"
        return format(value * self.factor if self.factor else value, self.form)


@dataclass(frozen=True)
class Table:
    title: str
    text: str
    columns: tuple[Column, ...]
    order: tuple[str, ...] = ()


def _microseconds(heading: str, name: str) -> Column:
    return Column(f"{heading}, µs", name, ",.1f", 1e6)


def _milliseconds(heading: str, name: str) -> Column:
    return Column(f"{heading}, ms", name, ",.3f", 1e3)


def _ratio(heading: str, name: str) -> Column:
    return Column(heading, name, ".2f")


TABLES = {
    "bits": Table(
        "Bits",
        "`same`: every bit is the one of the CPU's kernels, or of the other call that is named.",
        (Column("check", "check"), Column("result", "result"), Column("seconds", "seconds", ".1f")),
    ),
    "decode": Table(
        "Decode attention",
        "One new token per sequence; K's map changes every 1,024 positions, as in checkpoints of the default recipe. "
        "One map: without that. Share: bytes of the int8 cache / time / the bytes per second of a device copy. × is "
        "the peer's time / ours. SDPA: bfloat16, contiguous, FlashAttention, the faster of grouped heads and the "
        "group as rows. Converting: the same int8 cache, K and V converted to bfloat16 in the kernel, the fastest of "
        "its tiles. Goals: share ≥ 0.85 from 128K tokens in the batch on, ≥ 0.7 from 32K on; ≥ 1.7 × SDPA and "
        "≥ 1.3 × converting there.",
        (
            Column("heads", "heads"),
            Column("context", "context", ","),
            Column("batch", "batch"),
            _microseconds("ours", "ours"),
            Column("TB/s", "rate", ".2f", 1e-12),
            _ratio("share", "share"),
            _microseconds("one map", "one_map"),
            _microseconds("SDPA", "sdpa"),
            _ratio("× SDPA", "x_sdpa"),
            _microseconds("converting", "converting"),
            _ratio("× converting", "x_converting"),
        ),
        ("heads", "context", "batch"),
    ),
    "prefill": Table(
        "Prefill attention",
        "A prompt in one chunk, causal. × is SDPA's time (bfloat16, FlashAttention) / ours. Goal: ≥ 0.25.",
        (
            Column("heads", "heads"),
            Column("tokens", "tokens", ","),
            _microseconds("ours", "ours"),
            Column("TFLOP/s", "operations", ".0f", 1e-12),
            _microseconds("SDPA", "sdpa"),
            _ratio("× SDPA", "x_sdpa"),
        ),
        ("heads", "tokens"),
    ),
    "linears": Table(
        "int8 linears",
        "Share: bytes of the weight / time of the product / the bytes per second of a device copy. × is the peer's "
        "time / that of the product. Rounded: the product with the rounding of its inputs. Goals: share ≥ 0.9 up to 64 "
        "rows; ≥ 1.3 × bfloat16 at 512 rows.",
        (
            Column("inputs → outputs", "shape"),
            Column("rows", "rows", ","),
            _microseconds("product", "ours"),
            _ratio("share", "share"),
            _microseconds("rounded", "rounded"),
            _microseconds("bfloat16", "bf16"),
            _ratio("× bfloat16", "x_bf16"),
            _microseconds("_int_mm", "int_mm"),
            _ratio("× _int_mm", "x_int_mm"),
        ),
        ("shape", "rows"),
    ),
    "head": Table(
        "Float head",
        "The lm_head in bfloat16, with the CPU's order of sums. × is F.linear's time (bfloat16) / ours.",
        (
            Column("inputs → outputs", "shape"),
            Column("rows", "rows"),
            _microseconds("ours", "ours"),
            _ratio("share", "share"),
            _microseconds("F.linear", "bf16"),
            _ratio("× F.linear", "x_bf16"),
        ),
        ("shape", "rows"),
    ),
    "step": Table(
        "Decode steps",
        "Layers only, without embedding and head. Ours: wall time of the engine's layers with graphs. Host: the part "
        "of it in which the CPU issues work. bfloat16: the same layers in torch with fused kernels between products, "
        "in one graph, contiguous cache. Share: bytes of weights and cache / time / copy. Goal: ≥ 1.5 × bfloat16 for "
        "8B at batch 32 and 4K.",
        (
            Column("model", "model"),
            Column("layers", "layers"),
            Column("batch", "batch"),
            Column("context", "context", ","),
            _milliseconds("ours", "ours"),
            _milliseconds("host", "host"),
            Column("tokens/s", "rate", ",.0f"),
            _ratio("share", "share"),
            _milliseconds("bfloat16", "bf16"),
            Column("tokens/s", "bf16_rate", ",.0f"),
            _ratio("× bfloat16", "x_bf16"),
        ),
        ("model", "batch"),
    ),
}


def _tokens(row: Row) -> int:
    return int(row["context"] * row["batch"])


GOALS: tuple[tuple[str, str, str, float, Callable[[Row], bool]], ...] = (
    ("decode, share of copy, ≥ 128K tokens", "decode", "share", 0.85, lambda row: _tokens(row) >= 1 << 17),
    ("decode, share of copy, 32K to 128K tokens", "decode", "share", 0.7, lambda row: 15 <= _log(_tokens(row)) < 17),
    ("decode, × SDPA, ≥ 32K tokens", "decode", "x_sdpa", 1.7, lambda row: _tokens(row) >= 1 << 15),
    ("decode, × converting, ≥ 32K tokens", "decode", "x_converting", 1.3, lambda row: _tokens(row) >= 1 << 15),
    ("prefill, × SDPA", "prefill", "x_sdpa", 0.25, lambda row: True),
    ("linears, share of copy, ≤ 64 rows", "linears", "share", 0.9, lambda row: row["rows"] <= 64),
    ("linears, × bfloat16, 512 rows", "linears", "x_bf16", 1.3, lambda row: row["rows"] == 512),
    (
        "step of 8B, × bfloat16, batch 32",
        "step",
        "x_bf16",
        1.5,
        lambda row: row["model"] == "8B" and row["batch"] == 32,
    ),
)
"""What is claimed, the table and value, the goal, and the rows that count."""


def _log(number: int) -> int:
    return number.bit_length() - 1


def goals(found: dict[str, Any]) -> list[Row]:
    """For each goal the worst, the median and the best row. It is met if every row meets it."""
    checks = found["tables"].get("bits", [])
    good = sum(row["result"] == "same" for row in checks)
    met = "not measured" if not checks else "yes" if good == len(checks) else f"{good} of {len(checks)} checks"
    rows: list[Row] = [{"goal": "equal bits", "met": met}]
    for text, table, name, goal, counts in GOALS:
        values = sorted(
            row[name] for row in found["tables"].get(table, []) if row.get(name) is not None and counts(row)
        )
        if not values:
            rows.append({"goal": text, "least": goal, "met": "not measured"})
            continue
        count = sum(value >= goal for value in values)
        rows.append(
            {
                "goal": text,
                "least": goal,
                "worst": values[0],
                "median": statistics.median(values),
                "best": values[-1],
                "met": "yes" if count == len(values) else f"{count} of {len(values)} rows",
            }
        )
    return rows


_GOALS = Table(
    "Goals",
    "",
    (
        Column("goal", "goal"),
        _ratio("at least", "least"),
        _ratio("worst", "worst"),
        _ratio("median", "median"),
        _ratio("best", "best"),
        Column("met", "met"),
    ),
)


def _table(table: Table, rows: list[Row]) -> list[str]:
    if table.order:
        rows = sorted(rows, key=lambda row: [_natural(row[name]) for name in table.order])
    lines = [f"## {table.title}", "", *([table.text, ""] if table.text else [])]
    lines.append("| " + " | ".join(column.heading for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.form else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(column.shown(row) for column in table.columns) + " |" for row in rows]
    return [*lines, ""]


def _natural(value: Any) -> tuple[float, str]:
    return (0.0, value) if isinstance(value, str) else (float(value), "")


def markdown(found: dict[str, Any]) -> str:
    """The whole report."""
    lines = ["# faquant on a GPU", ""]
    lines += [f"- {name}: {value}" for name, value in found["facts"].items()] + [""]
    for name, table in TABLES.items():
        if name in found["tables"]:
            lines += _table(table, found["tables"][name])
    lines += _table(_GOALS, goals(found))
    if found["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in found["notes"]), ""]
    return "\n".join(lines)
