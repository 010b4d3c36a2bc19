"""Prints what the tests have compiled: the figures in src/faquant/kernels/cuda/README.md."""

import pytest

from oracles.compiled import FOUND


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("compiled: registers, spills, instructions of the loop with products, else of the longest")
    for test, kernel, architecture, found in FOUND:
        loop = found.product_loop() if found.has_product_loop else max(found.loops(), key=len, default=[])
        case = test.partition("::")[2].removesuffix(" (call)")
        terminalreporter.line(f"sm_{architecture} {kernel}: {found.registers}, {found.spills}, {len(loop)}  ({case})")
