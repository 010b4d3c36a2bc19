"""After a kill at any moment, or a full disk, the same command finishes the run with the same bytes."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.shards import ShardWriter
from faquant.errors import OutputError
from faquant.model.decoder import LINEARS
from faquant.quantization import layerwise, mindie, pipeline
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, Recipe
from oracles.kills import STRIDE, at_step, counted, killed_at
from oracles.threads import set_threads
from oracles.tiny_models import tiny_model

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]
SHARD = 100_000
"""Bytes: the tiny model then has several files, and layers that begin in one and end in the next."""
ROWS = 50
"""Outputs processed together: the head of 320 then has 7 blocks."""
LAYERS, BLOCKS = 3, 7


@pytest.fixture(scope="module", autouse=True)
def blocks_of_the_head() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "ROWS", ROWS)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "float"
    tiny_model("smollm", directory)
    return directory


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The output of an undisturbed run, by recipe."""
    result = {}
    for recipe in ("default", "mindie"):
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        quantize(source, out, RECIPES[recipe], PROMPTS)
        result[recipe] = contents(out)
    return result


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("recipe", "shard_bytes", "first"), [("default", SHARD, -2), ("default", 4 << 30, 3), ("mindie", SHARD, 0)]
)
def test_killed_anywhere_it_ends_with_the_same_bytes(
    recipe: str,
    shard_bytes: int,
    first: int,
    source: Path,
    tmp_path: Path,
    expected: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_shards(monkeypatch, shard_bytes)
    whole = expected[recipe]
    if shard_bytes == SHARD:
        quantize(source, tmp_path / "whole", RECIPES[recipe], PROMPTS)
        whole = contents(tmp_path / "whole")
        assert sum(name.endswith(".safetensors") for name in whole) > 2
    number, tried, resumed = first, 0, 0
    while True:
        number, tried = number + STRIDE, tried + 1
        out = tmp_path / f"out{number}"
        if not killed_at(number, lambda: quantize(source, out, RECIPES[recipe], PROMPTS)):  # noqa: B023
            break
        layers: list[int] = []
        if not out.exists():
            quantize(source, out, RECIPES[recipe], PROMPTS, progress=lambda done, _: layers.append(done))  # noqa: B023
            resumed += layers[0] > 0
        assert contents(out) == whole, number
        quantize(source, out, RECIPES[recipe], PROMPTS, overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
        shutil.rmtree(out)
    assert tried > 5
    assert resumed > tried / 3


def small_shards(monkeypatch: pytest.MonkeyPatch, shard_bytes: int) -> None:
    real = ShardWriter.__init__

    def init(self: ShardWriter, directory: Path, stem: str, **options: Any) -> None:
        real(self, directory, stem, **{"shard_bytes": shard_bytes, **options})

    real_resume = ShardWriter.resume.__func__  # type: ignore[attr-defined]

    def resume(cls: type[ShardWriter], *args: Any) -> ShardWriter:
        return real_resume(cls, *args, shard_bytes)  # type: ignore[no-any-return]

    monkeypatch.setattr(ShardWriter, "__init__", init)
    monkeypatch.setattr(ShardWriter, "resume", classmethod(resume))


def test_killed_twice(source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]]) -> None:
    out = tmp_path / "out"
    for number in (25, 12, 30, 7):
        killed_at(number, lambda: quantize(source, out, RECIPES["default"], PROMPTS))
    if not out.exists():
        quantize(source, out, RECIPES["default"], PROMPTS)
    assert contents(out) == expected["default"]


def test_a_full_disk_is_told_and_the_work_goes_on_once_there_is_room(
    source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    number = tried = kept = 0
    while True:
        number, tried = number + STRIDE, tried + 1
        out = tmp_path / f"out{number}"
        patch, count = at_step(number, full)
        try:
            quantize(source, out, RECIPES["default"], PROMPTS)
            if count[0] < number:
                break
        except OutputError as error:
            kept += "No space left" in str(error) and "same command again to resume" in str(error)
        finally:
            patch.undo()
        if not out.exists():
            quantize(source, out, RECIPES["default"], PROMPTS)
        assert contents(out) == expected["default"]
    assert kept > tried / 4


def interrupted(source: Path, out: Path, after: int = 1, recipe: Recipe = RECIPES["default"]) -> None:
    """Leave a run that was killed after its first layer, or after this many layers and blocks of the head."""

    def run() -> None:
        quantize(source, out, recipe, PROMPTS, progress=stop)

    def stop(done: int, _: int) -> None:
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(-1, run)


@pytest.mark.parametrize("blocks", [1, 3, BLOCKS - 1])
def test_blocks_of_the_head_that_are_done_are_not_done_again(
    blocks: int, source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(source, out, LAYERS + blocks)
    steps: list[tuple[int, int]] = []
    rounded = counted(layerwise, "round_with_compensation", monkeypatch)
    watched = counted(layerwise.Gram, "add", monkeypatch)
    quantize(source, out, RECIPES["default"], PROMPTS, progress=lambda *step: steps.append(step))
    assert (len(rounded), len(watched)) == (BLOCKS - blocks, 0)
    assert list(dict.fromkeys(steps)) == [(done, LAYERS + BLOCKS) for done in range(LAYERS, LAYERS + BLOCKS + 1)]
    assert contents(out) == expected["default"]


def test_blocks_of_the_head_that_are_lost_are_rounded_again(
    source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    interrupted(source, out, LAYERS + 2)
    kept = list((tmp_path / ".out.unfinished").glob("piece-*"))
    assert kept
    for path in kept:
        path.unlink()
    quantize(source, out, RECIPES["default"], PROMPTS)
    assert contents(out) == expected["default"]


def test_the_head_is_calibrated_without_the_logits_of_all_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a large vocabulary they take longer than a layer, and they are not needed."""
    tiny_model("llama2", tmp_path / "float")
    linear = RECIPES["mindie-plain"].linear
    assert linear is not None
    recipe = RECIPES["mindie-plain"].model_copy(update={"linear": linear.model_copy(update={"float_layers": ()})})
    computed = counted(mindie.w8a8, "fake_quantize_linear", monkeypatch)
    quantize(tmp_path / "float", tmp_path / "out", recipe, PROMPTS)
    assert len(computed) == LAYERS * len(LINEARS) * len(PROMPTS)
    assert "lm_head.deq_scale" in load_file(tmp_path / "out" / "quant_model_weight_w8a8.safetensors")


@pytest.mark.parametrize("change", ["model", "recipe", "calibration", "version", "fields of the recipe"])
def test_what_has_changed_meanwhile_is_refused(
    change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "float", tmp_path / "out"
    shutil.copytree(source, mine)
    interrupted(mine, out)
    recipe, prompts = RECIPES["default"], PROMPTS
    if change == "model":
        tensors = load_file(mine / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
        save_file(tensors, mine / "model.safetensors", metadata={"format": "pt"})
    elif change == "recipe":
        recipe = RECIPES["static"]
    elif change == "calibration":
        prompts = [*PROMPTS, [5]]
    elif change == "fields of the recipe":  # left by an older arithmetic with the same version number
        path = tmp_path / ".out.unfinished" / "identity.json"
        identity = json.loads(path.read_text())
        identity["recipe"] = recipe.model_dump_json(exclude={"format"})
        path.write_text(json.dumps(identity))
        change = "recipe"
    else:
        monkeypatch.setattr(pipeline, "version", lambda name: "99")
    with pytest.raises(OutputError, match=f"with another {change}.*--restart"):
        quantize(mine, out, recipe, prompts)
    # A refusal loses nothing: the work is still there until it is discarded explicitly.
    with pytest.raises(OutputError, match=f"with another {change}"):
        quantize(mine, out, recipe, prompts)
    seen: list[int] = []
    quantize(mine, out, recipe, prompts, restart=True, progress=lambda done, _: seen.append(done))
    assert seen[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "out"]


def test_an_interrupt_keeps_the_work(source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]]) -> None:
    def stop(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, RECIPES["default"], PROMPTS, progress=stop)
    seen: list[int] = []
    quantize(source, out, RECIPES["default"], PROMPTS, progress=lambda done, _: seen.append(done))
    assert seen[0] == 1
    assert contents(out) == expected["default"]


def test_the_bytes_do_not_depend_on_the_threads_of_who_goes_on(
    source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]]
) -> None:
    interrupted(source, tmp_path / "out")
    set_threads(2)
    quantize(source, tmp_path / "out", RECIPES["default"], PROMPTS)
    assert torch.get_num_threads() == 2
    assert contents(tmp_path / "out") == expected["default"]


def test_two_runs_do_not_write_the_same_directory(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(done: int, _: int) -> None:
        with pytest.raises(OutputError, match="Another run is writing"):
            quantize(source, out, RECIPES["default"], PROMPTS)

    quantize(source, out, RECIPES["default"], PROMPTS, progress=second)
    assert out.exists()
