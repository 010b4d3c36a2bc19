"""The loss of msmodelslim's methods and of faquant's recipes on one model, with the same calibration, texts and
kernels.

FAQUANT_MSMODELSLIM_PYTHON=… python benchmarks/msmodelslim_peer.py MODEL OUT TEXT… [--methods NAME…] [--max-tokens N]

Writes a checkpoint for each method into OUT; existing ones are reused.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faquant.api import MAX_PROMPT_TOKENS, quantize
from faquant.checkpoint.model_config import load_config
from faquant.evaluation.divergence import Divergence, compare, variants
from faquant.model.load import load
from faquant.quantization.calibration import builtin_records, tokenize_records
from faquant.text.tokenizer import Tokenizer

VARIABLE = "FAQUANT_MSMODELSLIM_PYTHON"
HERE = Path(__file__).parent
CALIBRATOR = HERE.parent / "tests" / "interop" / "run_msmodelslim.py"
PROCESSORS = HERE / "run_msmodelslim_v1.py"
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Method:
    """Arguments for msmodelslim. If `moves_v`, its folding changes the outputs of v_proj, so 8-bit attention with float
    linears needs the folded float model."""

    script: Path
    arguments: tuple[str, ...] = ()
    moves_v: bool = False
    quantizes_down: bool = False


FOLDED = "mindie"
OURS = ("mindie-plain", FOLDED)
ROTATE = ("--quarot",)
SMOOTH = ("--smoothing", "iter")
METHODS = {
    "plain": Method(CALIBRATOR),
    "m1": Method(CALIBRATOR, ("--anti-method", "m1")),
    "m2": Method(CALIBRATOR, ("--anti-method", "m2")),
    "m3": Method(CALIBRATOR, ("--anti-method", "m3")),
    "m4": Method(CALIBRATOR, ("--anti-method", "m4"), moves_v=True),
    "m4-mix": Method(CALIBRATOR, ("--anti-method", "m4", "--act-method", "3"), moves_v=True),
    "m5": Method(CALIBRATOR, ("--anti-method", "m5")),
    "m6": Method(CALIBRATOR, ("--anti-method", "m6", "--anti-every", "8"), moves_v=True),
    "quarot": Method(PROCESSORS, ROTATE, moves_v=True),
    "quarot-iter": Method(PROCESSORS, (*ROTATE, *SMOOTH), moves_v=True),
    "quarot-down": Method(PROCESSORS, ROTATE, moves_v=True, quantizes_down=True),
}
"""m2 and m6 search: m2 takes a quarter of an hour on one core, and m6 would take longer with all prompts, so it gets
every eighth."""


def make(python: str, method: Method, model: Path, out: Path, calibration: Path) -> bool:
    """Let msmodelslim quantize `model` into `out`; on failure, print the reason and return False."""
    floats = ["lm_head"]
    if not method.quantizes_down:
        floats += [name for name in load_config(model).layer_linears if name.endswith("down_proj")]
    command = [python, method.script.resolve(), model.resolve(), out.resolve(), "--calibration", calibration]
    command += [*method.arguments, "--float-names", *floats]
    directories = [out]
    if method.moves_v:
        directories.append(float_directory(out))
        command += ["--float-out", float_directory(out).resolve()]
    # msmodelslim leaves a features.npy in the working directory, and refuses one that others can read.
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    if done.returncode:
        print(f"{out.name}: msmodelslim failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        return False
    for directory in directories:
        for name in KEPT:
            if not (directory / name).exists() and (model / name).exists():
                shutil.copyfile(model / name, directory / name)
    return True


def float_directory(out: Path) -> Path:
    """The directory of the float model with a method's folding."""
    return out.with_name(f"{out.name}.float")


def checkpoints(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Write missing checkpoints; yield name and directory of each."""
    for recipe in OURS:
        ours = options.out / f"ours-{recipe}"
        if not ours.exists():
            quantize(options.model, ours, recipe)
        yield f"faquant ({recipe})", ours
    with tempfile.TemporaryDirectory() as place:
        calibration = Path(place, "calibration.json")
        vocabulary = load_config(options.model).vocab_size
        tokenizer = Tokenizer.from_directory(options.model)
        ids = tokenize_records(builtin_records(), tokenizer, vocabulary, MAX_PROMPT_TOKENS)
        calibration.write_text(json.dumps(ids), encoding="utf-8")
        for name in options.methods:
            out = options.out / name
            if out.exists() or make(options.python, METHODS[name], options.model, out, calibration):
                yield name, out


def measure(
    model: Path, quantized: dict[str, Path], texts: list[Path], max_tokens: int | None
) -> Iterator[tuple[str, dict[str, Divergence]]]:
    """For each checkpoint and part, the results by text; one checkpoint at a time, because float models need much
    memory."""
    source = load(model)
    tokenizer = Tokenizer.from_directory(model)
    ids = {path: tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False) for path in texts}
    for name, out in quantized.items():
        folded = float_directory(out)
        parts = variants(load(out), load(folded) if folded.exists() else source)
        if name == f"faquant ({FOLDED})":
            parts.pop("attention", None)  # which would need the folded float model
        results = {path.stem: compare(source, parts, ids[path][:max_tokens]) for path in texts}
        for part in parts:
            yield f"{name} {part}", {stem: result[part] for stem, result in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--max-tokens", type=int)
    options = parser.parse_args()
    options.python = os.environ.get(VARIABLE)
    if not options.python:
        parser.error(f"{VARIABLE} must name a Python with msmodelslim")
    options.out.mkdir(parents=True, exist_ok=True)
    quantized = dict(checkpoints(options))
    print("KL mean in 10⁻³ nats, top-1, PPL (float)")
    print(f"{'':28}" + "".join(f"{path.stem:^36}" for path in options.texts))
    for name, results in measure(options.model, quantized, options.texts, options.max_tokens):
        cells = (
            f"{found.kl_mean * 1e3:10.3f} {found.top1:8.2%} {found.perplexity:7.3f} ({found.perplexity_float:6.3f})"
            for found in results.values()
        )
        print(f"{name:28}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
