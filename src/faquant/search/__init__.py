"""The search for a recipe by measuring (`--recipe auto`, `--max-kl`)."""

from ..evaluation.measure import SEARCH_FILE
from .costs import BATCHES
from .find import Progress, SearchResult, find

__all__ = ["BATCHES", "SEARCH_FILE", "Progress", "SearchResult", "find"]
