"""Who is let in: so many sequences, and nobody new once the server is ending."""

from ..errors import ApiError
from ..operate.record import Record


class Gate:
    """Counts the sequences that are answered or wait.

    Args:
        running: sequences that are answered at the same time.
        waiting: sequences that may wait beside them.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.inside = 0
        self.closed = False

    def enter(self, record: Record, sequences: int) -> None:
        """Let a request in, until `leave`. Raises: ApiError: there is no room, or the server is ending."""
        if self.closed:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "10"})
        if sequences > self.capacity:
            raise ApiError(
                400, f"{sequences} answers are wanted at once; this server gives at most {self.capacity}.", "n"
            )
        if self.inside + sequences > self.capacity:
            message = f"{self.inside} answers are being written or waited for already. Try again later."
            raise ApiError(429, message, code="too_many_requests", headers={"Retry-After": "1"})
        self.inside += sequences
        record.sequences += sequences

    def leave(self, record: Record) -> None:
        self.inside -= record.sequences
