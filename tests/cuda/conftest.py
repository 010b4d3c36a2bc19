"""Tests of the GPU's kernels without a GPU: `interpreted` in Triton's interpreter, for their bits; `compiled` for GPUs
that are not here, for their instructions. Triton reads on import which of the two it is, so they are two processes."""

import os
from importlib.util import find_spec

if find_spec("triton") is None:
    collect_ignore = ["interpreted", "compiled"]
else:
    collect_ignore = ["compiled" if os.environ.get("TRITON_INTERPRET") else "interpreted"]
