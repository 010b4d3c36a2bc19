"""Evaluation texts: built-in ones, or the user's."""

from importlib import resources
from pathlib import Path

from ..errors import UsageError

MAX_TEXT_BYTES = 64 << 20


def builtin_texts() -> dict[str, str]:
    """Built-in texts by name: prose, code, chinese, tools. They are not used for calibration."""
    folder = resources.files("faquant.evaluation") / "texts"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".txt"))
    return {name.removesuffix(".txt"): (folder / name).read_text(encoding="utf-8") for name in names}


def read_texts(paths: list[Path]) -> dict[str, str]:
    """The user's texts, by file name without extension.

    Raises:
        UsageError: a file cannot be read as UTF-8 text, is empty or too large, or two have the same name.
    """
    texts: dict[str, str] = {}
    for path in paths:
        try:
            if not path.is_file():
                raise UsageError(f"{path} is not a file. Pass a text file to evaluate on.")
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise UsageError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; use a part of it.")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as UTF-8 text: {error}.") from None
        if not text.strip():
            raise UsageError(f"{path} is empty; there is nothing to measure.")
        if path.stem in texts:
            raise UsageError(f"Two texts have the name {path.stem!r}; rename one of them.")
        texts[path.stem] = text
    return texts
