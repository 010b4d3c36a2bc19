"""Stored responses: the paths that return and delete them, and the conversations that refer to them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from ..answer.stored import ResponseStore, StoredResponse
from ..config import MAX_TEXT
from ..errors import ApiError
from ..http.limits import StrictRoute
from ..schema.response_items import ITEM, KnownItem, MessageItem, ReferenceItem, listed
from ..schema.response_object import DeletedResponse, ItemList, ResponseObject
from ..schema.response_request import ResponseRequest
from ..service import CurrentCall

router = APIRouter(route_class=StrictRoute)


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, call: CurrentCall, stream: bool = False) -> ResponseObject:
    """A stored response."""
    if stream:
        raise ApiError(400, "Only POST /v1/responses streams; get a stored response without stream.", "stream")
    return _stored(call, response_id).response


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    call: CurrentCall,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ItemList:
    """The input of a stored response, with the conversation that it continues; the latest items first."""
    items = list(_stored(call, response_id).input)
    if order == "desc":
        items.reverse()
    begin = 0
    if after is not None:
        begin = next((place for place, item in enumerate(items, 1) if item.id == after), 0)
        if not begin:
            raise ApiError(400, f"The input of {response_id[:80]!r} has no item {after[:80]!r}.", "after")
    page = items[begin : begin + limit]
    return ItemList(
        object="list",
        data=[listed(item) for item in page],
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=begin + limit < len(items),
    )


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, call: CurrentCall) -> DeletedResponse:
    """Forget a stored response."""
    if not call.service.responses.delete(response_id):
        raise _gone(response_id, 404, "response_id", "response_not_found")
    return DeletedResponse(id=response_id, object="response", deleted=True)


def _stored(call: CurrentCall, response_id: str) -> StoredResponse:
    stored = call.service.responses.get(response_id)
    if stored is None:
        raise _gone(response_id, 404, "response_id", "response_not_found")
    return stored


def conversation_of(body: ResponseRequest, store: ResponseStore) -> list[KnownItem]:
    """The items of the request, after those of the response that it continues."""
    items: list[KnownItem] = []
    if body.previous_response_id is not None:
        stored = store.get(body.previous_response_id)
        if stored is None:
            raise _gone(body.previous_response_id, 400, "previous_response_id", "previous_response_not_found")
        items += stored.conversation
    if isinstance(body.input, str):
        return [*items, MessageItem(role="user", content=body.input)]
    ids, size = {item.id for item in items}, 0
    for number, item in enumerate(body.input):
        if not isinstance(item, ReferenceItem):
            items.append(item)
            continue
        known = store.item(item.id)
        if known is None:
            raise _gone(item.id, 400, f"input.{number}.id", "item_not_found")
        if known.id in ids:
            known = ITEM.validate_python(known.model_dump())  # the same with another id
        ids.add(known.id)
        size += len(known.model_dump_json())
        if size > MAX_TEXT:
            raise ApiError(400, f"The items that input refers to have more than {MAX_TEXT} characters.", "input")
        items.append(known)
    return items


def _gone(name: str, status: int, param: str, code: str) -> ApiError:
    message = (
        f"{name[:80]!r} is not stored. This server keeps the latest responses in memory until it ends, as far as "
        "--response-store allows, except those with store: false. Send the whole conversation as input instead."
    )
    return ApiError(status, message, param, code)
