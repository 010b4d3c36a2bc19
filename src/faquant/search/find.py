"""Finds a recipe by measurement: the cheapest within a bound on KL, or the most accurate one at full speed.

Attention and linears are measured separately. Candidates quantize the layers as they run, and are never written. The KL
of the whole is nearly the sum of the parts, and is measured before a recipe is chosen. If no recipe with int8 linears
stays within the bound, linears get 16-bit inputs or are left float, those first that lose most for the time that costs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..evaluation.divergence import Divergence
from ..evaluation.scores import Heads, score
from ..evaluation.streaming import Window, run
from ..formats import open_checkpoint
from ..kernels import threads
from ..kernels.isa import cpu_name, selected_isa
from ..kernels.parallel import one_torch_thread
from ..model.lazy import LazySequence
from ..model.load import Model, load_float
from ..quantization.calibration import fingerprint
from ..quantization.candidate import Calibration, Candidate, with_attention
from ..quantization.layerwise import GROUPS, LayerQuantizer
from ..quantization.pipeline import metadata_of
from ..quantization.tensors import SourceTensors
from ..recipe import AttentionRecipe, LinearRecipe, Recipe
from .costs import BATCHES, Costs, Kind, Seconds, Timing, timed, timings
from .journal import Journal, Part
from .space import ATTENTION, LINEAR, Measured
from .upgrades import Group, upgrades

Progress = Callable[[str, int, int], None]
"""Called with (what is measured, steps done, total steps)."""

CALIBRATION_TOKENS = 4096
_TIMED = "model.layers.0.mlp.up_proj.weight"
"""The weight whose dtype float linears are timed with."""
_FLOAT = "float"
_WORDS: dict[Kind, str] = {"wide": "16-bit inputs", "float": "float"}
_HEAD = ("lm_head",)


@dataclass(frozen=True)
class SearchResult:
    """The chosen recipe, and the table of measurements on `tokens` tokens; `batches` as for `find`. `timings` of
    linears, if some are better than int8."""

    recipe: Recipe
    max_kl: float | None
    batches: tuple[int, ...]
    tokens: int
    candidates: list[Measured]
    timings: list[Timing] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [asdict(row) for row in self.candidates]
        return {
            "max_kl": self.max_kl,
            "batches": list(self.batches),
            "tokens": self.tokens,
            "timings": [asdict(timing) for timing in self.timings],
            "candidates": rows,
        }


def find(
    source: Path,
    calibration: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    max_kl: float | None = None,
    progress: Progress = lambda what, done, total: None,
    journal: Path | None = None,
    batches: Sequence[int] = BATCHES,
    seconds: Seconds | None = None,
) -> SearchResult:
    """Choose a recipe for the float directory `source`.

    The choice does not depend on the number of threads, unless linears must be better than int8: then it depends on
    timings.

    Args:
        calibration: token ids of each prompt; about CALIBRATION_TOKENS of them are used.
        texts: token ids of held-out texts, each measured as one window.
        max_kl: bound on the mean KL of the whole in nats; None: the most accurate recipe at full speed.
        journal: a file for the measurements, with which an interrupted search resumes; it is replaced if it is from
            another model, calibration, text or version.
        batches: numbers of rows (sequences that are decoded together, or tokens of a prompt) at which linears are timed
            if some must be better than int8.
        seconds: the times; None: of this machine's kernels.

    Raises:
        UsageError: no recipe stays within the bound, or there is nothing to measure.
        OutputError: the journal cannot be written.
    """
    return _RecipeSearch(source, calibration, texts, max_kl, progress, journal, batches, seconds).find()


class _RecipeSearch:
    def __init__(
        self,
        source: Path,
        calibration: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        max_kl: float | None,
        progress: Progress,
        journal: Path | None,
        batches: Sequence[int],
        seconds: Seconds | None,
    ) -> None:
        if not batches or min(batches) < 1:
            raise UsageError(f"Batches must be numbers from 1 on, not {', '.join(map(str, batches)) or 'none'}.")
        if max_kl is not None and not max_kl > 0:
            raise UsageError(f"The bound on KL must be above 0, not {max_kl}.")
        opened = open_checkpoint(source)
        self._config, self._checked = opened.config, SourceTensors.of(opened)
        self._source = load_float(source, lazy=True)
        context = self._config.max_position
        self._windows = [Window(torch.tensor(ids[:context])) for ids in texts if len(ids) > 1]
        if not self._windows:
            raise UsageError("There is no text to measure on.")
        every = max(1, sum(map(len, calibration)) // CALIBRATION_TOKENS)
        self._prompts = [torch.tensor(ids) for ids in calibration[::every] if ids]
        self._max_kl, self._progress = max_kl, progress
        self._batches = tuple(sorted(set(batches)))
        self._timings: list[Timing] = []
        self._seconds = seconds or timed(float_bytes=2 if opened.files.dtype(_TIMED) == "bfloat16" else 4)
        self._rows: list[Measured] = []
        identity = [
            opened.files.fingerprint(),
            fingerprint([prompt.tolist() for prompt in self._prompts]),
            fingerprint([window.tokens.tolist() for window in self._windows]),
            version("faquant"),
        ]
        self._journal = Journal(journal, identity)

    @one_torch_thread()
    @torch.inference_mode()
    def find(self) -> SearchResult:
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
            excess = max(excess, row.kl / max(expected, 1e-12))
        return self._with_better_linears(*min(attentions, key=lambda pair: pair[1].kl), bound or 0.0)

    def _attention(self) -> list[tuple[AttentionRecipe, Measured]]:
        recipes = {name: recipe for name, (_, recipe) in ATTENTION.items()}

        def measure() -> list[Measured]:
            quantizers = {
                name: self._quantizer(Recipe(name="auto", attention=recipe, linear=None))
                for name, recipe in recipes.items()
            }
            seen = Calibration(next(iter(quantizers.values())), self._prompts)
            models = {name: with_attention(self._source, quantizer, seen) for name, quantizer in quantizers.items()}
            results = self._divergences("attention", models)
            return [
                Measured.of(
                    "attention", name, ATTENTION[name][0], results[name], _bytes_per_token(models[name]), 0, recipe
                )
                for name, recipe in recipes.items()
            ]

        return list(zip(recipes.values(), self._measured("attention", recipes, measure), strict=True))

    def _linears(self) -> list[tuple[LinearRecipe, Measured]]:
        found: list[tuple[LinearRecipe, Measured]] = []
        for folded in (False, True):
            # R1 changes the Gram matrices, so recipes with it run separately.
            recipes = {name: recipe for name, (_, recipe) in LINEAR.items() if (recipe.rotate == "folded") == folded}
            rows = self._measured("linears", recipes, partial(self._linear_rows, recipes))
            found += zip(recipes.values(), rows, strict=True)
        return found

    def _linear_rows(self, recipes: Mapping[str, LinearRecipe]) -> list[Measured]:
        whole = {name: Recipe(name="auto", linear=recipe) for name, recipe in recipes.items()}
        candidates = self._candidates(whole, attention=False)
        models = {name: made.model for name, made in candidates.items()}
        results = self._divergences("linears", models, candidates.values())
        return [
            Measured.of("linears", name, LINEAR[name][0], results[name], 0, candidates[name].weight_bytes, recipe)
            for name, recipe in recipes.items()
        ]

    def _whole(self, recipe: Recipe, name: str, change: str) -> Measured:
        def measure() -> list[Measured]:
            made = self._candidates({name: recipe})[name]
            result = self._divergences("the whole", {name: made.model}, [made])[name]
            return [Measured.of("both", name, change, result, _bytes_per_token(made.model), made.weight_bytes)]

        return self._measured("both", {name: recipe}, measure)[0]

    def _with_better_linears(self, attention: AttentionRecipe, alone: Measured, bound: float) -> SearchResult:
        """Give linears 16-bit inputs or leave them float, the best rates of loss to time first, as far as needed."""
        narrow, wide = LinearRecipe(), LinearRecipe(wide_inputs=("*",))
        losses, left_wide = self._by_group(attention, narrow), self._by_group(attention, wide)
        machine = [cpu_name(), selected_isa(), threads.count(), *self._batches]
        self._timings = self._journal.timings(machine, lambda: timings(self._config, self._batches, self._seconds))
        costs = Costs(self._config, self._batches, self._timings)
        kinds: tuple[Kind, ...] = ("wide", "float")
        added = {group: {kind: costs.added(group, kind) for kind in kinds} for group in losses}
        chosen: dict[Group, Kind] = {}
        left, excess = alone.kl + sum(losses.values()), 1.0
        for upgrade in upgrades(losses, left_wide, added):
            chosen[upgrade.group] = upgrade.kind
            left -= upgrade.gain
            if left * excess > bound or all(chosen.get(group) == "float" for group in losses):
                continue
            by_kind = {
                kind: sorted((group for group, found in chosen.items() if found == kind), key=_place) for kind in kinds
            }
            patterns = {kind: tuple(name for group in groups for name in group) for kind, groups in by_kind.items()}
            linear = LinearRecipe(wide_inputs=patterns["wide"], float_layers=patterns["float"])
            recipe = Recipe(name="auto", attention=attention, linear=linear)
            shown = {kind: "; ".join(map(_group_name, groups)) for kind, groups in by_kind.items() if groups}
            change = ". ".join(f"{_WORDS[kind]}: {groups}" for kind, groups in shown.items())
            measured = self._whole(recipe, f"{alone.name}; {_counted(by_kind, len(losses))}", change)
            if measured.kl <= bound:
                return self._found(recipe)
            excess = max(excess, measured.kl / max(left, 1e-12))
        raise UsageError(
            f"No recipe stays within a KL of {bound:g}; the attention alone costs {alone.kl:.2g}. Raise the bound, or "
            "keep the float model."
        )

    def _by_group(self, attention: AttentionRecipe, linear: LinearRecipe) -> dict[Group, float]:
        """KL of each group of linears, and of the head, quantized alone."""
        losses: dict[Group, float] = {}
        for kind in (*GROUPS, _HEAD):
            others = [module for group in (*GROUPS, _HEAD) if group != kind for module in group]
            patterns = tuple(module if module == "lm_head" else f"*.{module}" for module in others)
            recipe = Recipe(
                name="auto", attention=attention, linear=linear.model_copy(update={"float_layers": patterns})
            )
            groups = self._groups(kind)
            rows = self._measured("group", {"": recipe}, partial(self._alone, recipe, groups))
            losses |= {group: row.kl for group, row in zip(groups, rows, strict=True)}
        return losses

    def _groups(self, kind: Group) -> list[Group]:
        """The groups of this kind, one per layer, or one for the head."""
        if kind == _HEAD:
            return [kind]
        return [tuple(f"model.layers.{n}.{module}" for module in kind) for n in range(self._config.num_layers)]

    def _alone(self, recipe: Recipe, groups: Sequence[Group]) -> list[Measured]:
        """Measure each group on its own in the float model; the recipe quantizes nothing else."""
        quantizer = self._quantizer(recipe)
        candidate = Candidate(quantizer, Calibration(quantizer, self._prompts), attention=False)
        made, plain = candidate.model.decoder, self._source.decoder
        layers = self._config.num_layers

        def alone(number: int) -> Model:
            chosen = LazySequence(lambda index: (made if index == number else plain).layers[index], layers)
            return Model(
                self._config,
                replace(plain, layers=chosen),
                [None] * layers,
                self._config.max_position,
                backend=self._source.backend,
            )

        if groups == [_HEAD]:
            models = {"lm_head": candidate.model}
        else:
            models = {_group_name(group): alone(number) for number, group in enumerate(groups)}
        heads = [candidate] if groups == [_HEAD] else []
        results = self._divergences(f"linears by layer: {_kind_name(groups[0])}", models, heads)
        is_wide = recipe.linear is not None and bool(recipe.linear.wide_inputs)
        change = f"quantized alone, inputs of {16 if is_wide else 8} bits"
        return [Measured.of("group", name, change, result, 0, 0) for name, result in results.items()]

    def _measured(
        self, what: str, recipes: Mapping[str, Part], measure: Callable[[], list[Measured]]
    ) -> list[Measured]:
        rows = self._journal.measured(what, recipes, measure)
        self._rows += rows
        return rows

    def _quantizer(self, recipe: Recipe) -> LayerQuantizer:
        return LayerQuantizer(self._config, self._checked, recipe, metadata_of(self._config, recipe, "", ""))

    def _candidates(self, recipes: Mapping[str, Recipe], attention: bool = True) -> dict[str, Candidate]:
        """Candidates that run together and share the calibration."""
        quantizers = {name: self._quantizer(recipe) for name, recipe in recipes.items()}
        seen = Calibration(next(iter(quantizers.values())), self._prompts)
        return {name: Candidate(quantizer, seen, attention) for name, quantizer in quantizers.items()}

    def _divergences(
        self, what: str, models: Mapping[str, Model], candidates: Iterable[Candidate] = ()
    ) -> dict[str, Divergence]:
        """KL of each model. `candidates` are finished once their layers have run."""
        everything = {_FLOAT: self._source, **models}
        streams = run(everything, self._windows, progress=lambda done, total: self._progress(what, done, total))
        for candidate in candidates:
            candidate.finish()
        scores = score(Heads(everything), _FLOAT, self._windows, streams)
        return {name: Divergence.of([window[name] for window in scores]) for name in models}

    def _found(self, recipe: Recipe) -> SearchResult:
        rows = [*self._rows[:-1], replace(self._rows[-1], chosen=True)]
        tokens = sum(len(window.tokens) for window in self._windows)
        return SearchResult(recipe, self._max_kl, self._batches, tokens, rows, self._timings)


def _bytes_per_token(model: Model) -> int:
    return sum(scheme.bytes_per_token for scheme in model.schemes if scheme is not None)


def _counted(by_kind: Mapping[Kind, Sequence[Group]], total: int) -> str:
    """Such as `3 of 121 groups with 16-bit inputs, 1 float`."""
    return f"{len(by_kind['wide'])} of {total} groups with 16-bit inputs, {len(by_kind['float'])} float"


def _kind_name(group: Group) -> str:
    """Such as `q_proj, k_proj, v_proj`."""
    return ", ".join(name.rpartition(".")[2] for name in group)


def _group_name(group: Group) -> str:
    """Such as `layer 3: q_proj, k_proj, v_proj`."""
    return _kind_name(group) if group == _HEAD else f"layer {_place(group)[0]}: {_kind_name(group)}"


def _place(group: Group) -> tuple[int, int]:
    """Sort key: layer and position in it; the head is last."""
    if group == _HEAD:
        return 1 << 30, 0
    _, _, number, module = group[0].split(".", 3)
    return int(number), [kind[0] for kind in GROUPS].index(module)
