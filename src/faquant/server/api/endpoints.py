"""The small endpoints: models, tokenization and monitoring."""

import asyncio

from fastapi import APIRouter, Response

from ..answer.asked import all_calls
from ..errors import ApiError, errors_for
from ..http.limits import StrictRoute
from ..schema.messages import for_template
from ..schema.requests import DetokenizeRequest, TokenizeRequest
from ..schema.responses import Detokenized, Health, ModelCard, ModelList, Tokenized, Version
from ..service import VERSION, CurrentCall

router = APIRouter(route_class=StrictRoute)


def _card(call: CurrentCall) -> ModelCard:
    service = call.service
    return ModelCard(id=service.name, created=service.created, max_model_len=service.max_model_len)


@router.get("/v1/models")
async def list_models(call: CurrentCall) -> ModelList:
    """List the served model."""
    return ModelList(data=[_card(call)])


@router.get("/v1/models/{model:path}")
async def get_model(model: str, call: CurrentCall) -> ModelCard:
    """Describe the model with this name."""
    call.service.check_model(model)
    return _card(call)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, call: CurrentCall) -> Tokenized:
    """The token ids of a prompt, or of a conversation in the model's chat template."""
    service = call.service
    service.check_model(body.model)
    if body.messages is None:
        ids = await service.encode(body.prompt or "", body.add_special_tokens)
    else:
        if body.tools:
            with errors_for("tools"):
                await asyncio.to_thread(all_calls, body.tools, service.conversation.format)
        ids = await service.encode_chat(
            for_template(body.messages), body.tools, body.chat_template_kwargs, body.add_generation_prompt
        )
    return Tokenized(tokens=ids, count=len(ids), max_model_len=service.max_model_len)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, call: CurrentCall) -> Detokenized:
    """The text of token ids."""
    call.service.check_model(body.model)
    vocabulary = call.service.engine.engine.model.config.vocab_size
    outside = next((token for token in body.tokens if token >= vocabulary), None)
    if outside is not None:
        raise ApiError(400, f"tokens contains {outside}, but the largest token id is {vocabulary - 1}.", "tokens")
    text = await asyncio.to_thread(call.service.tokenizer.decode, body.tokens, body.skip_special_tokens)
    return Detokenized(prompt=text)


@router.get("/health")
async def health(call: CurrentCall) -> Health:
    """Report whether the server accepts requests; status 503 if it does not."""
    if not call.service.ready:
        raise ApiError(503, "The server is shutting down, or its engine has stopped.", code="not_ready")
    return Health()


@router.get("/version")
async def version() -> Version:
    """The version of faquant."""
    return Version(version=VERSION)


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
async def metrics(call: CurrentCall) -> Response:
    """Metrics for Prometheus."""
    text, media_type = call.service.metrics.render()
    return Response(text, headers={"Content-Type": media_type})
