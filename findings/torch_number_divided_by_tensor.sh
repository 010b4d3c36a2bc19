#!/usr/bin/env bash
# torch 2.13.0 (CPU): a Python number divided by a float32 tensor is not one division. torch computes the reciprocal,
# rounds it, multiplies by the number and rounds again, so the result is often one unit in the last place away from
# the correctly rounded quotient, which NumPy and `torch.full_like(x, number) / x` return.
#
# It matters in this field because transformers computes wavelengths of RoPE (rope_type llama3) as
# `2 * math.pi / inv_freq`: an implementation with true divisions gets other frequencies in the last place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import numpy as np
import torch

count = 100_000
x = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 2.0**-20
number = 2 * math.pi
right = (np.float64(np.float32(number)) / x.double().numpy()).astype(np.float32)  # one rounding: 53 bits suffice for it
divided = (number / x).numpy()
ulps = np.abs(divided.view(np.int32).astype(np.int64) - right.view(np.int32))
whole = (torch.full_like(x, number) / x).numpy()
two_steps = (x.reciprocal() * number).numpy()
different, same = int((ulps > 0).sum()), int((two_steps == divided).sum())
print(
    f"torch {torch.__version__.partition('+')[0]}: 2 * pi / x differs from the correctly rounded quotient for "
    f"{different / count:.1%} of {count} values, by at most {ulps.max()} ulp".replace("%", " %")
)
print(f"torch.full_like(x, 2 * pi) / x differs for {int((whole != right).sum())} of them")
print(f"reciprocal, then product: the same bits as 2 * pi / x for {same} of them")
sys.exit(not (different > count // 10 and (whole == right).all() and same == count))
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# torch 2.13.0: 2 * pi / x differs from the correctly rounded quotient for 28.1 % of 100000 values, by at most 1 ulp
# torch.full_like(x, 2 * pi) / x differs for 0 of them
# reciprocal, then product: the same bits as 2 * pi / x for 100000 of them
