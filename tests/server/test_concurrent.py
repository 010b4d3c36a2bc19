"""Many streams at once, a third of which are cancelled; each of the others gets the answer that it would get alone."""

import asyncio
from random import Random
from typing import Any

import openai

from faquant.sampling.sampler import SamplingParams
from oracles.tiny_server import NAME, BytesEngine, TinyServer, alone, tokenizer

REQUESTS = 200


def asked(number: int) -> dict[str, Any]:
    random = Random(number)
    topic = "It is a long way to the sea. " * random.randrange(8)  # pages in common
    return {
        "messages": [{"role": "user", "content": f"{topic}{number}"}],
        "max_tokens": random.randrange(5, 40),
        "seed": number,
        "temperature": random.choice([0.0, 0.8]),
    }


async def answer(client: openai.AsyncOpenAI, number: int, leave_after: int | None = None) -> str:
    stream = await client.chat.completions.create(
        model=NAME, stream=True, extra_body={"ignore_eos": True}, **asked(number)
    )
    text = ""
    async with stream:
        async for count, chunk in _numbered(stream):
            if count == leave_after:
                break
            text += chunk.choices[0].delta.content or ""
    return text


async def _numbered(stream: Any) -> Any:
    count = 0
    async for chunk in stream:
        yield count, chunk
        count += 1


def test_each_stream_gets_its_lone_answer_despite_cancellations() -> None:
    leaving = {number: Random(number).randrange(6) for number in range(0, REQUESTS, 3)}

    async def main(server: TinyServer) -> list[str]:
        async with server.async_client(timeout=60) as client:
            tasks = [asyncio.create_task(answer(client, each, leaving.get(each))) for each in range(REQUESTS)]
            return await asyncio.gather(*tasks)

    with TinyServer(BytesEngine(pages=24, max_num_seqs=16)) as server:
        texts = asyncio.run(main(server))
        server.wait_until_nothing_is_held()
    for number in set(range(REQUESTS)) - leaving.keys():
        one = asked(number)
        params = SamplingParams(
            temperature=one["temperature"], seed=number, max_tokens=one["max_tokens"], ignore_eos=True
        )
        assert texts[number] == alone(tokenizer().encode_chat(one["messages"]), params).text, number
