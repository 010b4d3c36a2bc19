"""Prints what the tests have compiled: the figures in src/faquant/kernels/cuda/README.md."""

import pytest

from oracles.compiled import FOUND


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("compiled: registers, spills, instructions in the loop over tiles or steps")
    for test, kernel, architecture, found in FOUND:
        loop = len(found.product_loop()) if found.has_product_loop else "-"
        case = test.partition("::")[2].removesuffix(" (call)")
        terminalreporter.line(f"sm_{architecture} {kernel}: {found.registers}, {found.spills}, {loop}  ({case})")
