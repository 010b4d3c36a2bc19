"""The console script. It sets up signal handling before the slow imports."""

from .interrupts import exit_on_signals


def main() -> None:
    """Run the command line."""
    exit_on_signals()
    from .main import main as run

    run()
