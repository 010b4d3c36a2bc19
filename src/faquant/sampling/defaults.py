"""How a model's authors recommend to sample: values in generation_config.json."""

from pathlib import Path

from ..checkpoint.side_files import read_side_object
from ..errors import CheckpointError, UsageError
from .params import SamplingParams

_FILE = "generation_config.json"
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(directory: Path) -> dict[str, float]:
    """The recommended values by their names in SamplingParams; empty if there is no file or it recommends nothing.

    As in vLLM, do_sample is not read: models that are not tuned for chats often have `do_sample: false`, and greedy
    answers of these repeat themselves.

    Raises:
        CheckpointError: the file is damaged, or a value is outside its range.
    """
    table = read_side_object(directory, _FILE)
    found = {name: table[name] for name in _NAMES if table.get(name) is not None}
    try:
        SamplingParams(**found)
    except UsageError as error:
        raise CheckpointError(f"{directory / _FILE}: {error} Correct it, or ignore the file.") from None
    return found
