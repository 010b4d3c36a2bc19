"""What tells that a directory is the one that a command would write: a command that was cut off then only measures it.

Recipes of our own say in the checkpoint what it was made of. msModelSlim's format has no place for that, and to a
command that may overwrite, what stands there is not the work of the same command. So a file beside the directory says
it until that has been measured.
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


def asked_of(model: str, calibration: str, recipe: str) -> dict[str, str]:
    """What a command asks for: fingerprints of model and calibration, and the recipe or how it is to be found."""
    return {"model": model, "calibration": calibration, "recipe": recipe, "version of faquant": version("faquant")}


def note(target: Path, output: Path, asked: Mapping[str, str]) -> None:
    """Say beside `target` that `output`, which is whole and about to become it, is what was asked for.

    Raises:
        OSError: it cannot be written.
    """
    place = _place(target)
    partial = place.with_name(f"{place.name}.partial")
    write_json(partial, {"asked": dict(asked), "files": stamp(output)})
    partial.replace(place)


def has_note(target: Path) -> bool:
    """Whether there is a note, of whatever."""
    return _place(target).is_file()


def is_noted(target: Path, asked: Mapping[str, str]) -> bool:
    """Whether `target` is the directory of such a note."""
    place = _place(target)
    try:
        found = read_object(place.parent, place.name)
        return found == {"asked": dict(asked), "files": stamp(target)}
    except (FaquantError, OSError):
        return False


def forget(target: Path) -> None:
    """Remove the note, if there is one."""
    _place(target).unlink(missing_ok=True)


def described(target: Path) -> Metadata | None:
    """What a whole directory says it was made of, if it says so."""
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
