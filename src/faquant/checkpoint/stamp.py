"""Detects changes of a directory by the sizes and times of its files."""

from pathlib import Path


def stamp(directory: Path) -> dict[str, list[int]]:
    """Size in bytes and modification time in nanoseconds of each file, by name, without reports. Renaming the directory
    changes nothing; replacing a file does.

    Raises:
        OSError: it cannot be read.
    """
    found = {}
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.name.startswith((".", "faquant_report.")):
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found
