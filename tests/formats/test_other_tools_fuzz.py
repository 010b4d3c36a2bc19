"""Any description of a quantization is either read, or raises one of the documented errors."""

import json
import random
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from faquant.checkpoint.json_object import shown
from faquant.errors import FaquantError
from faquant.formats import open_checkpoint
from oracles.interop import DATA

FILES = [
    ("llmc-w8a8-kv", "config.json"),
    ("llmc-w8a8-two-groups", "config.json"),
    ("quark-kv-tensor-asym", "config.json"),
    ("quark-w8a8-dyn-token", "config.json"),
    ("modelopt-int8sq", "config.json"),
    ("modelopt-int8sq", "hf_quant_config.json"),
    ("msms-w8a8-c8-sym", "quant_model_description.json"),
    ("msms-fa3-int8", "quant_model_description.json"),
]
MORE = {
    "algo_config": [{"online_r1_rotation": False}],
    "layer_type_quant_config": {"nn.Conv2d": {}},
    "sparsity_config": {"format": "dense"},
    "transform_config": {"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}},
}
VALUES = (
    *(None, True, False, 0, 1, -1, 8, 8.5, 1 << 40, 10**400, float("nan")),
    *("", "x", "int8", "false", "re:(", "re:" + "(" * 300 + ")" * 300, "[", "\ud800", "line\nbreak", "x" * 10_000),
    *([], [None], [1], [[]], [{}], ["re:("], ["Linear"], {}, {"a": None}, {"a": {}}, {"a": {"apply": [1]}}),
)


def paths(value: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*start, key)
        yield from paths(value[key], (*start, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at `path`; DELETE: with none."""
    copy = deepcopy(value)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new == "DELETE":
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


@pytest.mark.parametrize(("name", "file"), FILES)
def test_any_description_is_read_or_is_one_error(name: str, file: str, tmp_path: Path) -> None:
    directory = shutil.copytree(DATA / name, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    if file == "config.json":
        config["quantization_config"] |= {key: value for key, value in MORE.items() if name.startswith(("llmc", "qu"))}
    elif file.startswith("hf"):
        del config["quantization_config"]
        (directory / "config.json").write_text(json.dumps(config))
    base = config if file == "config.json" else json.loads((directory / file).read_text())
    start = ("quantization_config",) if file == "config.json" else ()
    places = [("quantization_config",), *paths(base[start[0]], start)] if start else list(paths(base))
    chosen = random.Random(0).sample([(place, new) for place in places for new in (*VALUES, "DELETE")], 200)
    for place, new in chosen:
        (directory / file).write_text(json.dumps(changed(base, place, new)))
        try:
            opened = open_checkpoint(directory)
            for linear in opened.config.linears:
                opened.linear(linear)
        except FaquantError as error:
            message = str(error)
        except Exception as error:
            pytest.fail(f"{place} {shown(new)}: {error!r}")
        else:
            continue
        message.encode("utf-8")
        assert "\n" not in message
        assert len(message) < 1000
