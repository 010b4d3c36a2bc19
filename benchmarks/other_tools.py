"""What works on checkpoints of other tools, and how far faquant's logits are from the tool's own (tests/data/interop).

    python benchmarks/other_tools.py

Columns: the commands that succeed; mean KL in 10⁻³ nats between the tool's fake-quantized model in float32 and faquant,
and, for comparison, between the float model and the tool's; whether convert --to faquant keeps every bit of the logits.
"""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from faquant.cli.main import run
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.model.load import load

DATA = Path(__file__).parents[1] / "tests" / "data" / "interop"
TOKENS = torch.tensor(json.loads((DATA / "token_ids.json").read_text()))


def logits(directory: Path) -> Tensor:
    return torch.as_tensor(window_logits(load(directory), TOKENS))


def divergence(p: Tensor, q: Tensor) -> float:
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def quietly(*arguments: str | Path) -> bool:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run([str(argument) for argument in arguments]) == 0


def row(name: str, folder: Path) -> list[str]:
    source = shutil.copytree(DATA / name, folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "float" / file, source)
    floats = shutil.copytree(DATA / ("float-qwen2" if "qwen2" in name else "float"), folder / "float")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "float" / file, floats)
    text = folder / "text.txt"
    text.write_text("a b c " * 100)
    ours, out = logits(source), folder / "out"
    commands = {
        "inspect": quietly("inspect", source, "--check"),
        "generate": quietly("generate", source, "a b c", "-n", "2"),
        "evaluate": quietly("evaluate", source, "--against", floats, "--text", text, "--quick"),
        "faquant": quietly("convert", source, "--to", "faquant", "-o", out),
        "mindie": quietly("convert", source, "--to", "mindie", "-o", folder / "mindie"),
        "calibrate": quietly("calibrate", source, "-o", folder / "new"),
    }
    same = commands["faquant"] and np.array_equal(ours, logits(out))
    tool = DATA / name / "logits.safetensors"
    kept = load_file(tool)["logits"] if tool.exists() else None
    cells = ["–", "–"]
    if kept is not None:
        cells = [f"{1e3 * divergence(a, b):.3f}" for a, b in ((kept, ours), (logits(floats), kept))]
    marks = ["yes" if done else "no" for done in commands.values()]
    return [name, open_checkpoint(source).format, *marks, *cells, "every bit" if same else "no"]


def main() -> None:
    heads = ("inspect", "generate", "evaluate", "to faquant", "to mindie", "calibrate", "KL tool|ours", "KL float|tool")
    table = Table("checkpoint", "format", *heads, "logits after conversion")
    for path in sorted(DATA.glob("*/config.json")):
        if not path.parent.name.startswith("float"):
            with tempfile.TemporaryDirectory() as folder:
                table.add_row(*row(path.parent.name, Path(folder)))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
