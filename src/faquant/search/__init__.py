"""The search for a recipe by measuring (`--recipe auto`, `--max-kl`)."""

from ..evaluation.measure import SEARCH_FILE
from .find import Found, Progress, find

__all__ = ["SEARCH_FILE", "Found", "Progress", "find"]
