"""Recognizes a directory that a command has already written, so that a command that was interrupted later only
measures it.

faquant's own metadata has fingerprints of model and calibration. msModelSlim's format has none, and a command that may
overwrite must not mistake another command's output for its own. Therefore a note next to the directory describes it
until it has been measured.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ..checkpoint.files import read_object
from ..checkpoint.model_config import load_config
from ..checkpoint.shards import write_json
from ..checkpoint.stamp import stamp
from ..errors import FaquantError
from ..formats.faquant.metadata import METADATA_KEY, Metadata, parse_metadata
from ..formats.msmodelslim.description import read_description


def request(model: str, calibration: str, recipe: str) -> dict[str, str]:
    """The request of a command: fingerprints of model and calibration, and the recipe or how to find it."""
    return {"model": model, "calibration": calibration, "recipe": recipe, "version of faquant": version("faquant")}


def note(target: Path, output: Path, requested: Mapping[str, str]) -> None:
    """Write a note next to `target` that `output`, which is complete and about to be renamed to it, satisfies the
    request.

    Raises:
        OSError: it cannot be written.
    """
    place = _place(target)
    partial = place.with_name(f"{place.name}.partial")
    write_json(partial, {"asked": dict(requested), "files": stamp(output)})
    partial.replace(place)


def has_note(target: Path) -> bool:
    """Whether there is a note, for any request."""
    return _place(target).is_file()


def is_noted(target: Path, requested: Mapping[str, str]) -> bool:
    """Whether there is a note for this request, and `target` has not changed since."""
    place = _place(target)
    try:
        found = read_object(place.parent, place.name)
        return found == {"asked": dict(requested), "files": stamp(target)}
    except (FaquantError, OSError):
        return False


def forget(target: Path) -> None:
    """Remove the note, if there is one."""
    _place(target).unlink(missing_ok=True)


def described(target: Path) -> Metadata | None:
    """The metadata of a complete directory, or None if it has none."""
    try:
        description = read_description(target)
        if description is None or METADATA_KEY not in description.metadata:
            return None
        return parse_metadata(description.metadata, load_config(target), str(target))
    except FaquantError:
        return None


def _place(target: Path) -> Path:
    path = target.resolve()
    return path.with_name(f".{path.name[:64]}.made.json")
