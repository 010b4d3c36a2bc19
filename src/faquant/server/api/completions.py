"""POST /v1/completions"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import APIRouter, Response

from ...engine.engine import CheckedPrompt
from ...engine.request import Output
from ...sampling.sampler import SamplingParams
from ...text.tokenizer import Tokenizer
from ..answer.asked import sampling_params
from ..answer.echo import Echo, echo_of_ids, echo_of_text
from ..config import MAX_ECHOED_LOGPROBS
from ..errors import ApiError, errors_for
from ..http.limits import StrictRoute
from ..http.streaming import EventStream
from ..schema.requests import CompletionRequest
from ..schema.responses import CompletionChoice, CompletionResponse, Usage
from ..service import Call, CurrentCall, Service

router = APIRouter(route_class=StrictRoute)

DEFAULT_MAX_TOKENS = 16
"""The default of OpenAI's API."""

Prompts = Sequence[CheckedPrompt]


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_completion(body: CompletionRequest, call: CurrentCall) -> Response:
    """Continue one or several prompts, given as text or token ids."""
    wanted = _prompts(body)
    call.enter(body.model, len(wanted) * body.n)
    echoes = await asyncio.to_thread(_echoes, wanted, call.service.tokenizer) if body.echo else []
    prompts = [list(echo.ids) for echo in echoes] or await _encoded(wanted, call.service)
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = min(DEFAULT_MAX_TOKENS, call.service.context_left(prompts, "prompt"))
    defaults = call.service.config.sampling_defaults
    # In a thread, because compiling a schema may take a while.
    params = await asyncio.to_thread(sampling_params, body, max_tokens, body.logprobs, defaults)
    if body.echo and body.logprobs is not None:
        _check_size(prompts, body.n * (1 + body.logprobs))
        params = replace(params, prompt_logprobs=body.logprobs)
    checked = await call.check(prompts, params, "prompt")
    call.record.asks(prompts, body.stream)
    completions = _Completions(call, params, echoes)
    if body.stream:
        keep_alive = call.service.config.sse_keep_alive_interval
        return EventStream(completions.stream(checked, body.include_usage), keep_alive)
    answer = await completions.complete(checked)
    return Response(answer.model_dump_json(), media_type="application/json")


def _echoes(prompts: Sequence[str | list[int]], tokenizer: Tokenizer) -> list[Echo]:
    with errors_for("prompt"):
        return [
            echo_of_text(tokenizer, prompt) if isinstance(prompt, str) else echo_of_ids(tokenizer, prompt)
            for prompt in prompts
        ]


def _check_size(prompts: Sequence[Sequence[int]], each: int) -> None:
    count = each * sum(map(len, prompts))
    if count > MAX_ECHOED_LOGPROBS:
        raise ApiError(
            400,
            f"echo with logprobs would return {count} log-probabilities of prompts; this server allows "
            f"{MAX_ECHOED_LOGPROBS} in a request. Send fewer prompts at once, or lower logprobs.",
            "logprobs",
        )


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [each for each in prompt if not isinstance(each, int)]


async def _encoded(prompts: Sequence[str | list[int]], service: Service) -> list[list[int]]:
    return [await service.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


class _Completions:
    """Builds the answer to one request, which may have several prompts. echoes: the prompts, if answers begin with
    them."""

    def __init__(self, call: Call, params: SamplingParams, echoes: Sequence[Echo]) -> None:
        self._echoes = echoes
        self._call = call
        self._params = params
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._offsets: dict[int, int] = {}

    async def complete(self, prompts: Prompts) -> CompletionResponse:
        outputs: list[list[Output]] = [[] for _ in range(len(prompts) * self._params.n)]
        async with aclosing(self._call.answers(prompts)) as answers:
            async for index, output in answers:
                outputs[index].append(output)
        choices = [self._choice(index, some) for index, some in enumerate(outputs)]
        return self._body(choices).model_copy(update={"usage": self._call.record.usage()})

    async def stream(self, prompts: Prompts, with_usage: bool) -> AsyncGenerator[CompletionResponse, None]:
        usage: dict[str, Usage | None] = {"usage": None} if with_usage else {}
        async with aclosing(self._call.answers(prompts)) as answers:
            async for index, output in answers:
                reported = output.token_ids and self._params.logprobs is not None
                if output.text or reported or output.finish_reason is not None or index not in self._offsets:
                    yield self._body([self._choice(index, [output])]).model_copy(update=usage)
        if with_usage:
            yield self._body([]).model_copy(update={"usage": self._call.record.usage()})

    def _choice(self, index: int, outputs: Sequence[Output]) -> CompletionChoice:
        ids = [token for output in outputs for token in output.token_ids]
        scores = [each for output in outputs for each in output.logprobs]
        begins = index not in self._offsets
        echo = self._echoes[index // self._params.n] if self._echoes and begins else None
        offset = self._offsets.setdefault(index, 0 if echo is None else len(echo.text))
        logprobs = None
        if self._params.logprobs is not None:
            texts = self._call.service.texts
            if echo is not None:
                scores = outputs[0].request.prompt_logprobs + scores
            logprobs = texts.completion(ids, scores, offset, echo)
            self._offsets[index] = offset + sum(map(texts.width, ids))
        text = "".join(output.text for output in outputs)
        return CompletionChoice.model_validate(
            {
                "index": index,
                "text": text if echo is None else echo.text + text,
                "logprobs": logprobs,
                "finish_reason": outputs[-1].finish_reason,
            }
        )

    def _body(self, choices: Sequence[CompletionChoice]) -> CompletionResponse:
        service = self._call.service
        return CompletionResponse(
            id=self._id,
            object="text_completion",
            created=self._call.created,
            model=service.name,
            system_fingerprint=service.fingerprint,
            choices=list(choices),
        )
