#!/usr/bin/env bash
# In Triton 3.6.0's interpreter (TRITON_INTERPRET=1) tl.fma rounds the product and then the sum; compiled, it is
# fma.rn, which rounds once. (1 + 2^-12)² - (1 + 2^-11) is 2^-24, but 0 in the interpreter. In 3.9.0 it is 2^-24.
#
# So a kernel whose bits were compared in the interpreter has others on a GPU, and a sum that relies on the fused
# product, such as an error-free transformation, fails in the interpreter only. Met when sums of floats on a GPU were
# compared with a CPU's, bit by bit. Tests with 3.6.0 need an exact fma of their own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 "numpy<2.4"
cat > "$folder/fma.py" <<'PYTHON'
import sys
import warnings

import torch
import triton
import triton.language as tl

warnings.simplefilter("ignore")


@triton.jit
def fused(x, z, out):
    tl.store(out, tl.fma(tl.load(x), tl.load(x), tl.load(z)))


x, z, out = torch.tensor([1 + 2.0**-12]), torch.tensor([-1 - 2.0**-11]), torch.empty(1)
fused[(1,)](x, z, out)
print(f"triton {triton.__version__}, (1 + 2^-12)² - (1 + 2^-11) (expected: {2.0**-24}): {out.item()}")
if out.item() != {"3.6.0": 0.0, "3.9.0": 2.0**-24}[triton.__version__]:
    sys.exit(f"Changed: the fma of triton {triton.__version__} is another one.")
PYTHON
for version in 3.6.0 3.9.0; do
    "$folder/venv/bin/pip" install --quiet --no-deps "triton==$version"
    TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/fma.py"
done
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# triton 3.6.0, (1 + 2^-12)² - (1 + 2^-11) (expected: 5.960464477539063e-08): 0.0
# triton 3.9.0, (1 + 2^-12)² - (1 + 2^-11) (expected: 5.960464477539063e-08): 5.960464477539063e-08
