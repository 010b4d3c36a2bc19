"""Which format a directory has, and directories without a known format."""

import json
import shutil
from pathlib import Path

import pytest

from faquant.errors import UnsupportedError
from faquant.formats import format_of, open_checkpoint
from faquant.formats.base import Source
from faquant.model.inspection import inspect
from faquant.model.load import load
from faquant.model.plan import plan

DATA = Path(__file__).parents[1] / "data"
MADE = DATA / "made_at_cad73ab"


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        (MADE / "float", "float"),
        (MADE / "default", "faquant"),
        (MADE / "mindie", "msmodelslim"),
        (DATA / "golden" / "w8a8_fa_bf16_ascendV1", "msmodelslim"),
    ],
)
def test_the_first_format_that_knows_a_directory_opens_it(directory: Path, name: str) -> None:
    assert format_of(Source.of(directory)).name == name
    opened = open_checkpoint(directory)
    assert (opened.metadata is not None) == (name == "faquant")
    assert opened.is_float == (name == "float")
    assert opened.format == name


def test_what_another_tool_quantized_is_refused_by_name(tmp_path: Path) -> None:
    directory = shutil.copytree(MADE / "float", tmp_path / "model")
    rewrite(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    for use in (open_checkpoint, load, inspect, plan):
        with pytest.raises(UnsupportedError) as caught:
            use(directory)
        assert str(caught.value) == (
            f"{directory}/config.json: the model is quantized already, by 'gptq' with 4 bits, which is not supported; "
            "these are, in int8: faquant, msmodelslim, compressed-tensors, quark, modelopt. "
            "Start from the checkpoint in bfloat16, float16 or float32."
        )


@pytest.mark.parametrize("method", [["x" * 10_000], None, 7])
def test_a_strange_method_is_refused_briefly(tmp_path: Path, method: object) -> None:
    directory = shutil.copytree(MADE / "float", tmp_path / "model")
    rewrite(directory, quantization_config={"quant_method": method, "bits": 8})
    with pytest.raises(UnsupportedError, match="which is not supported") as caught:
        open_checkpoint(directory)
    assert len(str(caught.value)) < 500 + len(str(directory))


def rewrite(directory: Path, **values: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))
