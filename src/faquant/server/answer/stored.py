"""Responses that later requests may refer to, in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..schema.response_items import ITEM, KnownItem
from ..schema.response_object import ResponseObject

MAX_RESPONSES = 4096


@dataclass(frozen=True)
class StoredResponse:
    """A response; its input, with what it continues; and the items of its output."""

    response: ResponseObject
    input: Sequence[KnownItem]
    output: Sequence[KnownItem]

    @property
    def conversation(self) -> list[KnownItem]:
        return [*self.input, *self.output]


class ResponseStore:
    """Holds the latest responses; those not used for longest are forgotten.

    Args:
        max_bytes: limit on the size of all conversations as JSON. Conversations that continue each other share memory,
            but count in full.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._size = 0
        self._stored: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()
        self._items: dict[str, KnownItem] = {}

    def put(self, response: ResponseObject, before: Sequence[KnownItem]) -> None:
        """Store a response to the conversation `before`, unless it is larger than the whole store."""
        items = [ITEM.validate_python(item.model_dump()).model_copy(update={"id": item.id}) for item in response.output]
        stored = StoredResponse(response, before, items)
        size = len(response.model_dump_json()) + sum(len(item.model_dump_json()) for item in stored.conversation)
        if size > self.max_bytes:
            return
        self._stored[response.id] = stored, size
        self._items |= {item.id: item for item in items}
        self._size += size
        while self._size > self.max_bytes or len(self._stored) > MAX_RESPONSES:
            self.delete(next(iter(self._stored)))

    def get(self, response_id: str) -> StoredResponse | None:
        """The response with this id; None if it is not stored."""
        if response_id not in self._stored:
            return None
        self._stored.move_to_end(response_id)
        return self._stored[response_id][0]

    def item(self, item_id: str) -> KnownItem | None:
        """The item of a stored response's output with this id; None if it is not stored."""
        return self._items.get(item_id)

    def delete(self, response_id: str) -> bool:
        """Forget a response; whether it was stored."""
        if response_id not in self._stored:
            return False
        stored, size = self._stored.pop(response_id)
        self._size -= size
        for item in stored.output:
            del self._items[item.id]
        return True
