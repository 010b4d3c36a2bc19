"""Logs with one JSON object per line."""

import json
import logging
import math
from datetime import datetime, timezone
from typing import Any


class JsonFormatter(logging.Formatter):
    """Writes the time, level and message, and the entries of `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


class RateLimit(logging.Filter):
    """Passes each message at most once in ten seconds: asyncio reports too many connections in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        is_new = record.created - self._said.get(message, -math.inf) >= 10.0
        if is_new:
            self._said = {message: record.created}
        return is_new


def log_to_stderr() -> None:
    """Send the logs of the server, of uvicorn and of asyncio to stderr."""
    logging.getLogger("asyncio").addFilter(RateLimit())
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name, level in (("faquant", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False
