"""The console script. Signals are provided for before anything is imported that takes long."""

from .interrupts import end_at_once


def main() -> None:
    """Run the command line of this process."""
    end_at_once()
    from .main import main as run

    run()
