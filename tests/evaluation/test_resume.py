"""An evaluation that is killed at any moment resumes, with the same results."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faquant.errors import CheckpointError
from faquant.evaluation import kept, measure, positions, scores
from faquant.evaluation.measure import Effort, evaluate
from faquant.evaluation.streaming import Window
from faquant.kernels.scheme import TILE
from faquant.model import paged
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.kills import STRIDE, at_step, counted, killed_at
from oracles.threads import set_threads
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

LAYERS = 3
TEXTS = {"one": "Measure on this. " * 6, "two": "And on that, which is another text. " * 3}
SMALL = Effort(window=32, text=80, noise=32, offset=16, long=0, needle=512, trials=1)
WINDOWS = 3 + 3 + 2 + 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "float"
    tiny_model("smollm", directory, vocab_size=VOCAB_SIZE, max_position_embeddings=2048)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def quantized(source: Path) -> dict[str, Path]:
    found = {}
    for name in ("default", "static", "mindie"):
        found[name] = source.parent / name
        quantize(source, found[name], RECIPES[name], [list(range(60))])
    return found


@pytest.fixture(autouse=True)
def several_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_ROWS", 8)


@pytest.fixture
def out(quantized: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    shutil.copytree(quantized["default"], tmp_path / "out")
    return tmp_path / "out"


def figures(directory: Path, source: Path, **options: Any) -> Any:
    values = evaluate(directory, source, **{"texts": TEXTS, "effort": SMALL, **options}).to_json()
    values["model"].pop("directory")
    return values


def interrupted(directory: Path, source: Path, after: int, number: int = signal.SIGKILL, **options: Any) -> None:
    """Leave an evaluation that was killed after this many layers and windows."""

    def stop(done: int, _: int) -> None:
        if done == after:
            os.kill(os.getpid(), number)

    assert killed_at(-1, lambda: figures(directory, source, progress=stop, **options))


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.parent.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("recipe", ["default", "static", "mindie"])
def test_killed_anywhere_it_ends_with_the_same_figures(
    recipe: str, source: Path, quantized: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    out = tmp_path / "out"
    shutil.copytree(quantized[recipe], out)
    expected = figures(out, source)
    number, tried, resumed = 0, 0, 0
    while True:
        number, tried = number + (5 * STRIDE if recipe == "default" else 15 * STRIDE), tried + 1
        if not killed_at(number, lambda: figures(out, source)):
            break
        steps: list[int] = []
        assert figures(out, source, progress=lambda done, _: steps.append(done)) == expected, number  # noqa: B023
        resumed += steps[0] > 0
        assert leftovers(out) == []
    assert tried > 2
    assert resumed > tried / 2


@pytest.mark.parametrize("after", [1, 2, LAYERS, LAYERS + 1, LAYERS + WINDOWS - 1, LAYERS + WINDOWS])
def test_what_is_done_is_not_done_again(after: int, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = figures(out, source)
    interrupted(out, source, after)
    assert leftovers(out) == [".out.evaluation"]
    layers = counted(measure.NoiseMeter, "look", monkeypatch)
    heads = counted(scores.Scores, "put", monkeypatch)
    steps: list[tuple[int, int]] = []
    assert figures(out, source, progress=lambda *step: steps.append(step)) == expected
    assert list(dict.fromkeys(steps)) == [(done, LAYERS + WINDOWS) for done in range(after, LAYERS + WINDOWS + 1)]
    assert len(layers) == max(0, LAYERS - after)
    assert (len(heads) == 0) == (after == LAYERS + WINDOWS)
    assert leftovers(out) == []


def test_what_follows_the_scores_is_not_done_again(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large vocabulary each of it takes as long as a layer."""
    expected = figures(out, source)
    real = measure.NoiseMeter.head

    def killed_after_the_first_text(meter: Any, heads: Any, streams: Any, keep: Any) -> None:
        numbers = dict(meter.tables)
        meter.tables = {number: numbers[number] for number in list(numbers)[:1]}
        real(meter, heads, streams, keep=keep)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(measure.NoiseMeter, "head", killed_after_the_first_text)
        assert killed_at(-1, lambda: figures(out, source))
    drifts = counted(scores.Distribution, "divergences", monkeypatch)
    logits = counted(scores.Heads, "logits", monkeypatch)
    assert figures(out, source) == expected
    assert (len(drifts), len(logits)) == (0, 2)


def test_killed_again_and_again(source: Path, out: Path) -> None:
    expected = figures(out, source)
    for number in (25, 12, 40, 7, 33):
        killed_at(number, lambda: figures(out, source))
    assert figures(out, source) == expected


@pytest.mark.parametrize("change", ["texts", "names", "effort", "model", "positions", "version", "fields"])
def test_what_was_kept_of_something_else_is_thrown_away(
    change: str, source: Path, out: Path, quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(out, source, LAYERS + 2)
    options: dict[str, Any] = {}
    if change == "texts":
        options["texts"] = {**TEXTS, "two": "And on that, which is one more text. " * 3}
    elif change == "names":
        options["texts"] = {"eins": TEXTS["one"], "two": TEXTS["two"]}
    elif change == "effort":
        options["effort"] = replace(SMALL, noise=16)
    elif change == "model":
        shutil.rmtree(out)
        shutil.copytree(quantized["static"], out)
    elif change == "positions":
        monkeypatch.setattr(measure, "offset_windows", _a_tile_earlier)
    elif change == "version":
        monkeypatch.setattr(measure, "version", lambda name: "99")
    else:  # left by an older arithmetic with the same version number
        path = out.parent / ".out.evaluation" / "identity.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 1}))
    steps: list[int] = []
    got = figures(out, source, progress=lambda done, _: steps.append(done), **options)
    assert steps[0] == 0
    assert leftovers(out) == []
    assert got == figures(out, source, **options)


def _a_tile_earlier(*arguments: Any) -> list[Window]:
    """The same text at other positions, as a later version might place it."""
    return [replace(window, position=max(0, window.position - TILE)) for window in positions.offset_windows(*arguments)]


def test_the_figures_do_not_depend_on_the_threads_of_who_goes_on(source: Path, out: Path) -> None:
    expected = figures(out, source)
    interrupted(out, source, 2)
    set_threads(2)
    assert figures(out, source) == expected
    assert torch.get_num_threads() == 2


def test_the_figures_depend_neither_on_threads_nor_on_windows_that_run_together(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = figures(out, source)
    for threads, together in ((1, 1), (2, 100), (4, 4096)):
        set_threads(threads)
        monkeypatch.setattr(paged, "TOGETHER", together)
        assert figures(out, source) == expected


def test_an_interrupt_keeps_the_work_and_an_error_does_not(source: Path, out: Path) -> None:
    def stop(error: BaseException) -> None:
        def progress(done: int, _: int) -> None:
            if done == 2:
                raise error

        with pytest.raises(type(error)):
            figures(out, source, progress=progress)

    stop(KeyboardInterrupt())
    assert leftovers(out) == [".out.evaluation"]
    stop(CheckpointError("The weights are damaged."))
    assert leftovers(out) == []


def test_a_short_evaluation_writes_nothing(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SECONDS", 60.0)
    seen: list[list[str]] = []
    figures(out, source, progress=lambda done, _: seen.append(leftovers(out)))
    assert set(map(tuple, seen)) == {()}


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(source: Path, out: Path) -> None:
    expected = figures(out, source)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in (1, 2, 5, 20, 31):
        patch, count = at_step(number, full)
        try:
            assert figures(out, source) == expected
        finally:
            patch.undo()
        assert count[0] >= number
        assert leftovers(out) == []


def test_two_at_a_time_do_not_mix(source: Path, out: Path) -> None:
    expected = figures(out, source)
    inner: list[Any] = []

    def second(done: int, _: int) -> None:
        if done == 2 and not inner:
            inner.append(None)
            inner[0] = figures(out, source, texts={"other": "Something else. " * 5})
            assert leftovers(out) == [".out.evaluation"]

    assert figures(out, source, progress=second) == expected
    assert list(inner[0]["texts"]) == ["other"]
    assert leftovers(out) == []


def test_a_damaged_file_is_measured_anew(source: Path, out: Path) -> None:
    expected = figures(out, source)
    interrupted(out, source, LAYERS + 2)
    for path in (out.parent / ".out.evaluation").glob("piece-*"):
        path.write_bytes(path.read_bytes()[:100])
    assert figures(out, source) == expected


def test_models_that_shared_a_stream_share_it_again() -> None:
    """The outputs of layers without quantized attention are computed once for both."""
    shared = torch.ones(5, 4)
    streams = {"a": [shared, torch.zeros(0, 4)], "b": [shared, torch.ones(3, 4)]}
    done, again, state = kept.unpacked(kept.packed(2, streams, {"x": 1.5}))
    assert (done, state) == (2, {"x": 1.5})
    assert again["a"][0] is again["b"][0]
    assert all(torch.equal(x, y) for name in streams for x, y in zip(streams[name], again[name], strict=True))
