#!/usr/bin/env bash
# llama-index-core 0.14.25 with llama-index-llms-openai-like 0.8.1: structured_predict asks for the structure by a tool
# and sends tool_choice "required". stream_structured_predict sends "auto" for the same model, prompt and class, also
# with llm_kwargs={"tool_choice": "required"}. A model may then answer in words, as models may with "auto"; the stream
# ends with an object whose fields are all None, although the class requires them, and raises nothing.
#
# Met when the clients of a server were tried: structures arrived, the same ones as streams were empty.
# Sending it by additional_kwargs={"extra_body": {"tool_choice": "required"}} works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-index-core==0.14.25 llama-index-llms-openai-like==0.8.1
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

choices = []
WORDS = "It is 21 degrees in Lima."
CALL = {"id": "call_1", "type": "function", "function": {"name": "Weather", "arguments": '{"city": "Lima", "degrees": 21}'}}


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


class Server(BaseHTTPRequestHandler):
    """Calls the tool if that is required, and answers in words otherwise."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices.append(body.get("tool_choice"))
        is_call = body.get("tool_choice") == "required"
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]} if is_call else {"role": "assistant", "content": WORDS}
        end = "tool_calls" if is_call else "stop"
        base = {"id": "chatcmpl-1", "created": 0, "model": "m"}
        self.send_response(200)
        if body.get("stream"):
            if is_call:
                message["tool_calls"] = [{"index": 0, **CALL}]
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for delta, reason in ((message, None), ({}, end)):
                choice = {"index": 0, "delta": delta, "finish_reason": reason}
                chunk = {**base, "object": "chat.completion.chunk", "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            return
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        choice = {"index": 0, "message": message, "finish_reason": end}
        self.wfile.write(json.dumps({**base, "object": "chat.completion", "choices": [choice]}).encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
llm = OpenAILike(
    model="m",
    api_base=f"http://127.0.0.1:{server.server_port}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=False,
)
prompt = PromptTemplate("What is the weather in {city}?")
whole = llm.structured_predict(Weather, prompt, city="Lima")
streamed = list(llm.stream_structured_predict(Weather, prompt, city="Lima"))[-1]
asked = list(llm.stream_structured_predict(Weather, prompt, llm_kwargs={"tool_choice": "required"}, city="Lima"))[-1]
print(f"llama-index-core {version('llama-index-core')}, llama-index-llms-openai-like {version('llama-index-llms-openai-like')}")
print(f"structured_predict: tool_choice {choices[0]}: {whole!r}")
print(f"stream_structured_predict: tool_choice {choices[1]}, expected required: {streamed!r}")
print(f"the same with llm_kwargs: tool_choice {choices[2]}, expected required: {asked!r}")
if choices != ["required", "auto", "auto"] or streamed.city is not None:
    sys.exit("Changed: streams of structures ask for the tool otherwise.")
PYTHON
# Output seen (2026-11-29, Debian 12, x86-64, Python 3.11):
# llama-index-core 0.14.25, llama-index-llms-openai-like 0.8.1
# structured_predict: tool_choice required: Weather(city='Lima', degrees=21)
# stream_structured_predict: tool_choice auto, expected required: FlexibleWeather(city=None, degrees=None)
# the same with llm_kwargs: tool_choice auto, expected required: FlexibleWeather(city=None, degrees=None)
