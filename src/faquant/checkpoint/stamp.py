"""Whether a directory is still the one that it was, told by its files' sizes and times."""

from pathlib import Path


def stamp(directory: Path) -> dict[str, list[int]]:
    """Bytes and time of change, in nanoseconds, of each file by its name, but for reports about them. A rename of the
    directory changes nothing; any other file in the place of one does.

    Raises:
        OSError: it cannot be read.
    """
    found = {}
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.name.startswith((".", "faquant_report.")):
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found
