"""Times of linears: int8 beside bfloat16 and torch._int_mm, and the float head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as float_linear

from faquant.kernels.cuda.linear import FEW_TOKENS, SplitSums
from faquant.kernels.cuda.modules import FloatLinear, Int8Linear
from faquant.kernels.cuda.rounding import InputRounding, RoundedInputs, round_inputs
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, FloatTable

from .results import Results
from .timing import copy_rate, device, fits, inputs_for, reason, seconds

# Inputs and outputs of Llama-3.1-8B's linears: q, k and v; o; gate and up; down. And of its head.
SHAPES = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
HEAD = 4096, 128256
ROWS, PROMPT_ROWS = (1, 8, 32, 64), (512, 2048)
LEAST_INT_MM_ROWS = 17


def random_int8_linear(inputs: int, outputs: int, hadamard_block: int = 0) -> Int8Linear:
    """Its outputs are of the size of its inputs."""
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device())
    scale = torch.full((outputs,), 1 / (73 * inputs**0.5), device=device())
    return Int8Linear(weight, scale, InputRounding(hadamard_block, ASYMMETRIC_INPUT_STEPS), None, None)


def _try(name: str, call: Callable[[], float], results: Results) -> float | None:
    try:
        return call()
    except Exception as error:
        results.note(f"{name}: {reason(error)}")
        return None


def _measure(shape: tuple[int, int], rows: int, results: Results) -> dict[str, Any]:
    inputs, outputs = shape
    name = f"linear {inputs} → {outputs}, {rows} rows"
    count = inputs_for(inputs * outputs)
    if not fits(3 * count * inputs * outputs):
        raise MemoryError("the weights do not fit")
    ours = [random_int8_linear(inputs, outputs) for _ in range(count)]
    x = torch.randn(rows, inputs, device=device())
    x8 = round_inputs(x, ours[0].rounding)
    # As the engine: programs that share sums have memory that they leave as they found it.
    sums = SplitSums.empty([(outputs, inputs)], rows, device()) if rows <= FEW_TOKENS else None
    times = {
        "ours": _try(name, lambda: seconds(lambda each: each.product(x8, sums=sums), ours), results),
        "rounded": _try(f"{name}, rounded", lambda: seconds(lambda each: each(x), ours), results),
        "int_mm": None,
    }
    if rows >= LEAST_INT_MM_ROWS:
        weights = [each.weight.t() for each in ours]
        times["int_mm"] = _try(f"{name}, _int_mm", lambda: _int_mm(x8, weights), results)
    halves = [each.weight.bfloat16() for each in ours[: -(-count // 2)]]
    x16 = x.bfloat16()
    times["bf16"] = _try(f"{name}, bfloat16", lambda: seconds(lambda each: float_linear(x16, each), halves), results)
    return times


def _int_mm(x8: RoundedInputs, weights: list[Tensor]) -> float:
    return seconds(lambda each: torch._int_mm(x8.values, each), weights)


def linears(results: Results, size: str) -> None:
    """Fill the table of int8 linears."""
    copy = copy_rate()
    shapes, rows_of = SHAPES, ROWS + PROMPT_ROWS
    if size == "quick":
        shapes, rows_of = SHAPES[:1] + SHAPES[2:3], (1, 32, 512)
    if size == "tiny":
        shapes, rows_of = ((128, 96),), (1, 70)
    # All shapes at a few rows come first, in case the time ends.
    for rows in rows_of:
        for shape in shapes:
            name = f"{shape[0]} → {shape[1]}"
            if results.has("linears", shape=name, rows=rows):
                continue
            if results.is_late:
                results.note(f"The time for linears ended before {name}, {rows} rows.")
                return
            times: dict[str, Any] = dict.fromkeys(("ours", "rounded", "bf16", "int_mm"))
            try:
                times = _measure(shape, rows, results)
            except Exception as error:
                results.note(f"linear {name}, {rows} rows: {reason(error)}")
            ours = times["ours"]
            ratios = {f"x_{peer}": times[peer] / ours if ours and times[peer] else None for peer in ("bf16", "int_mm")}
            share = shape[0] * shape[1] / ours / copy if ours else None
            results.row("linears", shape=name, rows=rows, **times, share=share, **ratios)


def head(results: Results, size: str) -> None:
    """Fill the table of the float head."""
    copy = copy_rate()
    (inputs, outputs), rows_of = HEAD, (1, 8, 64)
    if size == "tiny":
        inputs, outputs, rows_of = 64, 160, (2,)
    if not fits(5 * inputs * outputs):
        raise MemoryError("the head does not fit into memory")
    weight = torch.randn(outputs, inputs, device=device()).bfloat16() * 0.02
    ours = FloatLinear(FloatTable(weight), device())  # type: ignore[arg-type]
    name = f"{inputs} → {outputs}"
    for rows in rows_of:
        if results.has("head", shape=name, rows=rows):
            continue
        if results.is_late:
            results.note(f"The time for the head ended before {rows} rows.")
            return
        x = torch.randn(rows, inputs, device=device())
        x16 = x.bfloat16()
        time = _try(f"head, {rows} rows", lambda: seconds(ours, [x]), results)  # noqa: B023
        peer = _try(f"F.linear, {rows} rows", lambda: seconds(lambda x: float_linear(x, weight), [x16]), results)  # noqa: B023
        results.row(
            "head",
            shape=name,
            rows=rows,
            ours=time,
            share=weight.nbytes / time / copy if time else None,
            bf16=peer,
            x_bf16=peer / time if time and peer else None,
        )
