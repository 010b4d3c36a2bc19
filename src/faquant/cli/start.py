"""The console script. It sets up signal handling before the slow imports."""

from .interrupts import end_at_once


def main() -> None:
    """Run the command line."""
    end_at_once()
    from .main import main as run

    run()
