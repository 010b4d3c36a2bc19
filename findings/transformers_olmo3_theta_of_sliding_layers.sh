#!/usr/bin/env bash
# transformers 5.24.0: a config.json of OLMo 3 with `rope_theta` gets it for the layers with full attention only. The
# layers with a sliding window, three of four, get the class's default of 500,000, whatever the file says; so do kinds
# of layers without a theta of their own in `rope_parameters`.
#
# In older files `rope_theta` stands beside `rope_scaling` and is meant for all layers. Published OLMo 3 models have the
# default, so only fine-tuned or retrained ones are affected. Met when the same file was read by two programs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
"$folder/venv/bin/python" - 2> /dev/null <<'PYTHON'
import sys

import transformers
from transformers import Olmo3Config

theta = 1e6
seen = {kind: table["rope_theta"] for kind, table in Olmo3Config(rope_theta=theta).rope_parameters.items()}
print(f"expected: {{'full_attention': {theta}, 'sliding_attention': {theta}}}")
print(f"transformers {transformers.__version__}: {dict(sorted(seen.items()))}")
if seen != {"full_attention": theta, "sliding_attention": 5e5}:
    sys.exit("Changed: layers with a sliding window have another theta.")
PYTHON
# Output seen (2026-11-29, Debian 12, x86-64, Python 3.11):
# expected: {'full_attention': 1000000.0, 'sliding_attention': 1000000.0}
# transformers 5.24.0: {'full_attention': 1000000.0, 'sliding_attention': 500000.0}
