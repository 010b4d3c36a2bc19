#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1) multiplies the bits of bfloat16 numbers as integers in tl.dot. A product of
# ones, of which each sum is 16, is 4228120576 = 16 · 16256², where 16256 = 0x3f80 are the bits of 1. float16 is right.
# There is no warning. Seen in Triton 3.6.0 and 3.9.0.
#
# NumPy lacks bfloat16, so the interpreter keeps it as uint16; create_dot passes that to numpy.matmul. Met when a kernel
# for comparison was tested in the interpreter before it was compiled. Convert operands to float32 or float16 there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 "numpy<2.4"
cat > "$folder/dot.py" <<'PYTHON'
import sys
import warnings

import torch
import triton
import triton.language as tl

warnings.simplefilter("ignore")


@triton.jit
def product(a, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(a + at)))


seen = []
for dtype in (torch.float16, torch.bfloat16):
    ones, out = torch.ones(16, 16, dtype=dtype), torch.empty(16, 16)
    product[(1,)](ones, out, SIZE=16)
    seen.append(out[0, 0].item())
print(f"triton {triton.__version__}, product of ones (expected: 16.0): float16 {seen[0]}, bfloat16 {seen[1]}")
if seen != [16.0, 16.0 * 0x3F80**2]:
    sys.exit(f"Changed: triton {triton.__version__} does not multiply the bits of bfloat16 any more.")
PYTHON
for version in 3.6.0 3.9.0; do
    "$folder/venv/bin/pip" install --quiet --no-deps "triton==$version"
    TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/dot.py"
done
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# triton 3.6.0, product of ones (expected: 16.0): float16 16.0, bfloat16 4228120576.0
# triton 3.9.0, product of ones (expected: 16.0): float16 16.0, bfloat16 4228120576.0
