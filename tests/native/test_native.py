"""The self-test notices faults that a program puts into the kernels; no extension that is shipped has them."""

import re
import subprocess
from pathlib import Path

from faquant.kernels import isa as cpu

PROGRAM = Path(__file__).parents[2] / "build/native/faquant_native_tests"


def test_the_self_test_names_the_kernel_that_is_wrong() -> None:
    assert PROGRAM.is_file(), f"{PROGRAM} is built with an editable install: run `make`"
    result = subprocess.run([PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "shapes of amx-stand-in: passed" in result.stdout
    features = cpu.cpu_features()
    if features["avx512_vnni"] and features["amx_int8"] == features["amx_permitted"]:
        assert re.search(r"^(shapes of amx(, emulated)?: passed|amx: not in this build)$", result.stdout, re.MULTILINE)
    assert set(re.findall(r"^fault in (\w+), .*: noticed$", result.stdout, re.MULTILINE)) == {
        *("dot_u8s8", "dot_s8s8", "append", "attend", "finish", "quantize_inputs", "linear_panels", "gated_panels"),
        *("float_panels", "rms_norm", "rope", "silu_times", "gelu_times", "block_maxima", "block_weights"),
    }
