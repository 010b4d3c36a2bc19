"""Finding a recipe by measuring: the cheapest within a bound on KL, or the one that loses least at full speed.

Attention and linears are measured apart, each candidate quantizing the layers as they are run and never written; the
parts' KL adds up to nearly that of the whole, which is measured before it is chosen. Where no recipe of int8 linears
stays within the bound, the layers that lose most are left float.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError
from .evaluation.divergence import Divergence
from .evaluation.measure import SEARCH_FILE
from .evaluation.scores import Heads, score
from .evaluation.streaming import Window, run
from .model.lazy import LazySequence
from .model.load import Model, load
from .model.opening import open_checkpoint
from .quantization.candidate import Calibration, Candidate, with_attention
from .quantization.layerwise import LayerQuantizer
from .quantization.pipeline import metadata_of
from .recipe import AttentionRecipe, LinearRecipe, Recipe

Progress = Callable[[str, int, int], None]
"""Called with (what is measured, steps done, steps in all)."""

CALIBRATION_TOKENS = 4096
CONTEXT = 4096
"""Tokens of context for which costs are compared."""
_P16, _ROTATED = 1.1, 1.01
"""What 16 bits of P cost the attention, and a rotation at run time the linears, in this comparison."""
_FLOAT = "float"
__all__ = ["SEARCH_FILE", "Found", "Measured", "Progress", "find"]

_PLAIN = AttentionRecipe(kv_scale="head", center=False, equalize=False, rotate=False, rotate_v=False, p="uint8")
ATTENTION = {
    "head": ("one calibrated scale per head, P 8 bits", _PLAIN),
    "head, rotated": ("+ q, k and v rotated (R2, R3)", _PLAIN.model_copy(update={"rotate": True, "rotate_v": True})),
    "head, centred": ("+ K centred", AttentionRecipe(kv_scale="head", equalize=False, p="uint8")),
    "head, mapped": ("+ K's channels balanced against q's", AttentionRecipe(kv_scale="head", p="uint8")),
    "channel, mapped": ("a calibrated scale per channel", AttentionRecipe(kv_scale="channel", p="uint8")),
    "channel, mapped, P 16": ("+ P 16 bits (`static`)", AttentionRecipe(kv_scale="channel")),
    "token, rotated": (
        "a scale per token, rotated, P 8 bits",
        AttentionRecipe(center=False, equalize=False, p="uint8"),
    ),
    "token, mapped": ("+ K centred and balanced", AttentionRecipe(p="uint8")),
    "token, mapped, P 16": ("+ P 16 bits (`default`)", AttentionRecipe()),
}
"""What is tried for the attention, by name, with what is other than in the one before."""

LINEAR = {
    "nearest": ("rounded to nearest", LinearRecipe(rotate="none", equalize=False, rounding="nearest")),
    "balanced": ("+ inputs balanced against weights", LinearRecipe(rotate="none", rounding="nearest")),
    "folded": ("residual stream rotated (R1), weights compensated", LinearRecipe(rotate="folded")),
    "rotated, nearest": ("inputs balanced, and rotated at run time", LinearRecipe(rounding="nearest")),
    "rotated": ("+ weights compensated (`default`)", LinearRecipe()),
}
"""The same for the linears, all of them with a scale per token."""


@dataclass(frozen=True)
class Measured:
    """One row of the table. KL in nats, top-1 a share, bytes of the cache a token, of all weights.

    Attributes:
        part: `attention` or `linears` alone, a float `layer`, or `both`.
        change: what is other than in the row before.
        cost: bytes that a decode step moves at CONTEXT tokens, with what P's bits and rotations add.
    """

    part: str
    name: str
    change: str
    kl: float
    top1: float
    bytes_per_token: int
    weight_bytes: int
    cost: float
    chosen: bool = False


@dataclass(frozen=True)
class Found:
    """The chosen recipe, and the table of what was measured on `tokens` tokens."""

    recipe: Recipe
    max_kl: float | None
    tokens: int
    candidates: list[Measured]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [asdict(row) for row in self.candidates]
        return {"max_kl": self.max_kl, "tokens": self.tokens, "candidates": rows}


def find(
    source: Path,
    calibration: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    max_kl: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Found:
    """Choose a recipe for the float directory `source`.

    Args:
        calibration: token ids of each prompt; about CALIBRATION_TOKENS of them are used.
        texts: token ids of held-out texts, each measured as one window.
        max_kl: bound on the mean KL of the whole in nats; None: the least at full speed.

    Raises:
        UsageError: nothing stays within the bound, or there is nothing to measure.
    """
    return _Search(source, calibration, texts, max_kl, progress).find()


class _Search:
    def __init__(
        self,
        source: Path,
        calibration: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        max_kl: float | None,
        progress: Progress,
    ) -> None:
        if max_kl is not None and not max_kl > 0:
            raise UsageError(f"The bound on KL must be above 0, not {max_kl}.")
        opened = open_checkpoint(source)
        if opened.description is not None:
            raise UsageError(f"{source} is quantized already. Name the float model that it was made from.")
        self._config, self._checked = opened.config, opened.checked
        self._source = load(source, lazy=True)
        context = self._config.max_position
        self._windows = [Window(torch.tensor(ids[:context])) for ids in texts if len(ids) > 1]
        if not self._windows:
            raise UsageError("There is no text to measure on.")
        every = max(1, sum(map(len, calibration)) // CALIBRATION_TOKENS)
        self._prompts = [torch.tensor(ids) for ids in calibration[::every] if ids]
        self._max_kl, self._progress = max_kl, progress
        self._rows: list[Measured] = []

    def find(self) -> Found:
        attentions, linears = self._attention(), self._linears()
        pairs = [(one, other) for one in attentions for other in linears]
        bound = self._max_kl

        def order(pair: tuple[tuple[object, Measured], tuple[object, Measured]]) -> tuple[float, float]:
            kl = sum(row.kl for _, row in pair)
            return (kl, 0.0) if bound is None else (sum(row.cost for _, row in pair), kl)

        pairs.sort(key=order)
        excess = 1.0
        for (attention, first), (linear, second) in pairs:
            expected = first.kl + second.kl
            if bound is not None and expected * excess > bound:
                continue
            recipe = Recipe(name="auto", attention=attention, linear=linear)
            row = self._whole(recipe, f"{first.name}; {second.name}", "both together")
            if bound is None or row.kl <= bound:
                return self._found(recipe)
            excess = max(excess, row.kl / expected)
        return self._with_float_layers(*min(attentions, key=lambda pair: pair[1].kl), bound or 0.0)

    def _attention(self) -> list[tuple[AttentionRecipe, Measured]]:
        quantizers = {
            name: self._quantizer(Recipe(name="auto", attention=recipe, linear=None))
            for name, (_, recipe) in ATTENTION.items()
        }
        seen = Calibration(next(iter(quantizers.values())), self._prompts)
        models = {name: with_attention(self._source, quantizer, seen) for name, quantizer in quantizers.items()}
        results = self._divergences("attention", models)
        return [
            (recipe, self._row("attention", name, change, results[name], _bytes_per_token(models[name]), 0, recipe))
            for name, (change, recipe) in ATTENTION.items()
        ]

    def _linears(self) -> list[tuple[LinearRecipe, Measured]]:
        rows: dict[str, Measured] = {}
        for folded in (False, True):
            # R1 changes what the Gram matrices are of, so those with it are run by themselves.
            names = [name for name, (_, recipe) in LINEAR.items() if (recipe.rotate == "folded") == folded]
            recipes = {name: Recipe(name="auto", linear=LINEAR[name][1]) for name in names}
            candidates = self._candidates(recipes, attention=False)
            results = self._divergences("linears", {name: made.model for name, made in candidates.items()}, candidates)
            for name, made in candidates.items():
                change, recipe = LINEAR[name]
                rows[name] = self._row("linears", name, change, results[name], 0, made.weight_bytes, recipe)
        return [(recipe, rows[name]) for name, (_, recipe) in LINEAR.items()]

    def _whole(self, recipe: Recipe, name: str, change: str) -> Measured:
        candidates = self._candidates({name: recipe})
        made = candidates[name]
        result = self._divergences("the whole", {name: made.model}, candidates)[name]
        return self._row("both", name, change, result, _bytes_per_token(made.model), made.weight_bytes)

    def _with_float_layers(self, attention: AttentionRecipe, row: Measured, bound: float) -> Found:
        """Leave those layers float whose linears lose most, as few as will do."""
        linear = LinearRecipe()
        losses = self._by_layer(Recipe(name="auto", attention=attention, linear=linear))
        order = sorted(losses, key=lambda name: losses[name], reverse=True)
        left, excess = row.kl + sum(losses.values()), 1.0
        for count, name in enumerate(order[:-1], 1):
            left -= losses[name]
            if left * excess > bound:
                continue
            names = sorted(order[:count], key=_number)
            patterns = tuple(name if name == "lm_head" else f"{name}.*" for name in names)
            recipe = Recipe(
                name="auto", attention=attention, linear=linear.model_copy(update={"float_layers": patterns})
            )
            measured = self._whole(recipe, f"{row.name}; {count} of {len(order)} float", f"float: {', '.join(names)}")
            if measured.kl <= bound:
                return self._found(recipe)
            excess = max(excess, measured.kl / left)
        raise UsageError(
            f"No recipe stays within a KL of {bound:g}; the attention alone costs {row.kl:.2g}. Allow more, or keep "
            "the float model."
        )

    def _by_layer(self, recipe: Recipe) -> dict[str, float]:
        """KL of each layer's linears, and the head's, quantized alone."""
        quantizer = self._quantizer(recipe)
        seen = Calibration(quantizer, self._prompts)
        candidate = Candidate(quantizer, seen, attention=False)
        made, plain = candidate.model.decoder, self._source.decoder
        layers = self._config.num_layers

        def alone(number: int) -> Model:
            chosen = LazySequence(lambda index: (made if index == number else plain).layers[index], layers)
            decoder = replace(plain, layers=chosen)
            return Model(self._config, decoder, [None] * layers, self._config.max_position)

        models = {f"model.layers.{number}": alone(number) for number in range(layers)}
        models["lm_head"] = Model(self._config, replace(plain), [None] * layers, self._config.max_position)
        results = self._divergences("linears by layer", models, {"lm_head": candidate})
        return {
            name: self._row("layer", name, "its linears quantized alone", result, 0, 0).kl
            for name, result in results.items()
        }

    def _quantizer(self, recipe: Recipe) -> LayerQuantizer:
        return LayerQuantizer(self._config, self._checked, recipe, metadata_of(self._config, recipe, "", ""))

    def _candidates(self, recipes: Mapping[str, Recipe], attention: bool = True) -> dict[str, Candidate]:
        """Candidates to be run together, sharing what calibration sees."""
        quantizers = {name: self._quantizer(recipe) for name, recipe in recipes.items()}
        seen = Calibration(next(iter(quantizers.values())), self._prompts)
        return {name: Candidate(quantizer, seen, attention) for name, quantizer in quantizers.items()}

    def _divergences(
        self, what: str, models: Mapping[str, Model], heads: Mapping[str, Candidate] | None = None
    ) -> dict[str, Divergence]:
        """KL of each model; those named in `heads` get the head that their candidate makes."""
        everything = {_FLOAT: self._source, **models}
        streams = run(everything, self._windows, progress=lambda done, total: self._progress(what, done, total))
        for name, candidate in (heads or {}).items():
            candidate.finish()
            decoder, made = models[name].decoder, candidate.model.decoder
            decoder.norm, decoder.lm_head = made.norm, made.lm_head
        scores = score(Heads(everything), _FLOAT, self._windows, streams)
        return {name: Divergence.of([window[name] for window in scores]) for name in models}

    def _row(
        self,
        part: str,
        name: str,
        change: str,
        result: Divergence,
        per_token: int,
        weight_bytes: int,
        recipe: AttentionRecipe | LinearRecipe | None = None,
    ) -> Measured:
        cost = float(weight_bytes + CONTEXT * per_token)
        if isinstance(recipe, AttentionRecipe) and recipe.p == "int16":
            cost *= _P16
        if isinstance(recipe, LinearRecipe) and recipe.rotate == "inputs":
            cost *= _ROTATED
        row = Measured(part, name, change, result.kl_mean, result.top1, per_token, weight_bytes, cost)
        self._rows.append(row)
        return row

    def _found(self, recipe: Recipe) -> Found:
        rows = [*self._rows[:-1], replace(self._rows[-1], chosen=True)]
        return Found(recipe, self._max_kl, sum(len(window.tokens) for window in self._windows), rows)


def _bytes_per_token(model: Model) -> int:
    return sum(scheme.bytes_per_token for scheme in model.schemes if scheme is not None)


def _number(name: str) -> int:
    """Layers in their order, the head last."""
    return int(name.rpartition(".")[2]) if name != "lm_head" else 1 << 30
