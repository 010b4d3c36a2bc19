"""Where the linears of `default` lose: KL by kind of linear, of the rounding of weights alone and of inputs alone.

python benchmarks/linear_loss.py MODEL TEXT [--max-tokens 3072]

Each row quantizes the linears of one kind, in the float model with float attention, calibrated on the built-in texts.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from faquant.api import MAX_PROMPT_TOKENS
from faquant.checkpoint.tensors import TensorDict
from faquant.evaluation.divergence import WINDOW, Divergence, cut
from faquant.evaluation.scores import Heads, score
from faquant.evaluation.streaming import run
from faquant.formats import open_checkpoint
from faquant.formats.base import float_table
from faquant.formats.checked import Checked
from faquant.formats.msmodelslim.linears import dynamic_table
from faquant.kernels.arrays import Array, Floats
from faquant.kernels.backend import Linear
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.parallel import one_torch_thread
from faquant.kernels.quantizers import hadamard, quantize_rows_asymmetric
from faquant.kernels.tables import DynamicTable, FloatTable
from faquant.model.load import load_float
from faquant.quantization.calibration import builtin_records, tokenize_records
from faquant.quantization.candidate import Calibration, Candidate
from faquant.quantization.layerwise import GROUPS, LayerQuantizer
from faquant.quantization.pipeline import metadata_of
from faquant.quantization.tensors import NamedTensor, SourceTensors, stored_of
from faquant.recipe import LinearRecipe, Recipe
from faquant.text.tokenizer import Tokenizer

BACKEND = CpuBackend()
KINDS = {", ".join(name.rpartition(".")[2] for name in group): group for group in (*GROUPS, ("lm_head",))}
PARTS = ("both", "weights", "inputs")


class RoundedInputs:
    """A float linear with inputs rotated in Hadamard blocks, rounded, and rotated back."""

    is_int8 = False

    def __init__(self, plain: Linear, block: int) -> None:
        self.plain, self.block = plain, block

    def __call__(self, x: Array) -> Array:
        rotated = torch.as_tensor(x)
        rotated = hadamard(rotated, self.block) if self.block else rotated
        steps, scale, zero = quantize_rows_asymmetric(rotated)
        rounded = (steps.float() - zero[:, None]) * scale[:, None]
        return self.plain(hadamard(rounded, self.block) if self.block else rounded)

    @property
    def nbytes(self) -> int:
        return self.plain.nbytes


class WeightsUnrounded(LayerQuantizer):
    """Balances and folds as its recipe says, and leaves the weights float."""

    is_writing = False

    def _is_quantized(self, name: str) -> bool:
        return not self.is_writing and super()._is_quantized(name)

    def _linear_tensors(self, name: str, *arguments: Any, **options: Any) -> Iterator[NamedTensor]:
        self.is_writing = True
        tensors = list(super()._linear_tensors(name, *arguments, **options))
        self.is_writing = False
        yield from tensors


class Part(Candidate):
    """A candidate of which only the weights or only the inputs are rounded, or both."""

    def __init__(self, quantizer: LayerQuantizer, seen: Calibration, part: str) -> None:
        self.part = part
        super().__init__(quantizer, seen, attention=False)

    def _read_back(self, tensors: Iterable[NamedTensor]) -> Any:
        kept, types = {}, {}
        for name, kind, tensor in tensors:
            kept[name], types[name] = stored_of(tensor), kind
        checked, quantizer = Checked(TensorDict(kept)), self._quantizer
        config, metadata = quantizer.config, quantizer.metadata

        def linear(name: str) -> Linear:
            kind, block = types[f"{name}.weight"], metadata.input_block(name)
            if kind == "FLOAT":
                plain = BACKEND.linear(float_table(checked, config, name))
                is_rounded = self.part == "inputs" and name in quantizer.recipe.quantized(config.linears)
                return RoundedInputs(plain, block) if is_rounded else plain
            table = dynamic_table(checked, config, name, kind, block)
            return BACKEND.linear(table if self.part == "both" else FloatTable(float_weight(table), table.bias))

        return checked, linear


def float_weight(table: DynamicTable) -> Floats:
    """What a rotated linear multiplies its inputs by before they are rotated."""
    weight = torch.from_numpy(table.weight * table.scale[:, None].astype("float64"))
    weight = hadamard(weight, table.hadamard_block) if table.hadamard_block else weight
    found: Floats = weight.float().numpy()
    return found


def recipe_of(kind: str | None) -> Recipe:
    """`default` with the linears of one kind, or all. Its attention folds V's rotation, and is float in a Part."""
    others = [name for other, group in KINDS.items() if kind not in (None, other) for name in group]
    patterns = tuple(name if name == "lm_head" else f"*.{name}" for name in others)
    return Recipe(name="default", linear=LinearRecipe(float_layers=patterns))


@one_torch_thread()
@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-tokens", type=int, default=3072)
    arguments = parser.parse_args()
    opened, source = open_checkpoint(arguments.model), load_float(arguments.model, lazy=True)
    config, checked = opened.config, SourceTensors(opened.files)
    tokenizer = Tokenizer.from_directory(arguments.model)
    limit = min(MAX_PROMPT_TOKENS, config.max_position)
    calibration = tokenize_records(builtin_records(), tokenizer, config.vocab_size, limit)
    prompts = [torch.tensor(ids) for ids in calibration]
    ids = tokenizer.encode(arguments.text.read_text(), add_special_tokens=False)
    windows = cut(ids[: arguments.max_tokens], WINDOW, config.max_position)
    print(f"{'KL in 10⁻³ nats':28}" + "".join(f"{part:>10}" for part in PARTS))
    for kind in (None, *KINDS):
        recipe = recipe_of(kind)
        metadata = metadata_of(config, recipe, "", "")
        quantizers = {
            part: (WeightsUnrounded if part == "inputs" else LayerQuantizer)(config, checked, recipe, metadata)
            for part in PARTS
        }
        seen = Calibration(quantizers["both"], prompts)
        made = {part: Part(quantizer, seen, part) for part, quantizer in quantizers.items()}
        models = {"float": source, **{part: candidate.model for part, candidate in made.items()}}
        streams = run(models, windows)
        for candidate in made.values():
            candidate.finish()
        scores = score(Heads(models), "float", windows, streams)
        found = [Divergence.of([window[part] for window in scores]).kl_mean for part in PARTS]
        print(f"{kind or 'all':28}" + "".join(f"{kl * 1e3:10.3f}" for kl in found), flush=True)


if __name__ == "__main__":
    main()
