"""Poisons cache pages with possible content of freed memory."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from faquant.kernels.backend import Pages
from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import AttentionScheme

Chosen = Sequence[int] | slice | Any


def stores(pages: Pages) -> list[Any]:
    """The arrays of keys and values in a cache, with one page per row."""
    arrays = (vars(pages).get(name) for name in ("k", "v", "k_scale", "v_scale"))
    return [array for array in arrays if array is not None]


def poison(pages: Pages, chosen: Chosen = slice(None)) -> None:
    """Fill the chosen pages with NaN, and with bytes of 0x7f where they hold integers; bfloat16's NaN is 0x7fc0."""
    for store in stores(pages):
        if isinstance(store, torch.Tensor) or np.issubdtype(store.dtype, np.floating):
            store[chosen] = math.nan
        else:
            store[chosen] = 0x7FC0 if store.dtype == np.uint16 else 0x7F


def poisoned(scheme: AttentionScheme, num_pages: int, page_size: int, isa: str) -> Int8Pages:
    pages = Int8Pages(scheme, num_pages, page_size, isa)
    poison(pages)
    return pages
