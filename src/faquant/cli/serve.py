"""faquant serve"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import KvCacheDtype, load_config
from ..engine.engine_config import EngineConfig
from ..kernels.device import chosen
from ..server.config import ServerConfig
from ..structured.reasoning import PARSERS
from ..structured.tools.formats import FORMATS
from .interrupts import raise_on_signals
from .options import DeviceOption
from .sizes import parse_size

if TYPE_CHECKING:
    from ..server.service import Service


def serve(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free port.")] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Name of the model in requests; by default the directory's name.", metavar="NAME"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FAQUANT_API_KEY",
            help="Key that clients must send. Prefer the variable: other users can see command lines.",
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Allow web pages of this origin (CORS); may be repeated; *: all.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept requests whose Host header is this name; may be repeated; *: any. Default: any, but only "
            "names of this machine if the server has no key and listens on a loopback address.",
            show_default=False,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Maximum waiting sequences; further requests get status 429.")
    ] = ServerConfig.max_queue,
    request_timeout: Annotated[
        float, typer.Option(help="Maximum seconds per request; 0: no limit.")
    ] = ServerConfig.request_timeout,
    sse_keep_alive_interval: Annotated[
        float, typer.Option(help="Seconds without an event after which a stream gets a comment; 0: never.")
    ] = ServerConfig.sse_keep_alive_interval,
    max_body: Annotated[str, typer.Option(help="Maximum size of a request's body.", metavar="SIZE")] = "8MiB",
    response_store: Annotated[
        str,
        typer.Option(help="Maximum memory of stored responses of /v1/responses; 0: store none.", metavar="SIZE"),
    ] = "64MiB",
    tool_call_parser: Annotated[
        str, typer.Option(help=f"Format of the model's tool calls: auto, {', '.join(FORMATS)}.")
    ] = ServerConfig.tool_call_parser,
    reasoning_parser: Annotated[
        str, typer.Option(help=f"Kind of the model's reasoning: auto, none, {', '.join(PARSERS)}.")
    ] = ServerConfig.reasoning_parser,
    generation_config: Annotated[
        Literal["auto", "none"],
        typer.Option(
            help="Sampling defaults: auto takes them from the model's generation_config.json, none from OpenAI's API."
        ),
    ] = "auto",
    device: DeviceOption = EngineConfig.device,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Maximum tokens of a prompt and its answer; by default the model's context.", show_default=False
        ),
    ] = EngineConfig.max_model_len,
    max_num_seqs: Annotated[
        int, typer.Option(help="Maximum sequences answered at the same time.")
    ] = EngineConfig.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Maximum tokens per step; longer prompts take several steps.")
    ] = EngineConfig.max_num_batched_tokens,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the KV cache, such as 2GiB; by default as much as is useful, at most 4GiB.",
            metavar="SIZE",
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        KvCacheDtype, typer.Option(help="Type of the KV cache; auto is int8, bfloat16 is for comparison.")
    ] = EngineConfig.kv_cache_dtype,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Reuse the KV cache of common prefixes.")
    ] = EngineConfig.enable_prefix_caching,
    speculative_tokens: Annotated[
        int, typer.Option(help="Maximum draft tokens per step, from prompt lookup; 0: no speculation.")
    ] = EngineConfig.speculative_tokens,
) -> None:
    """Serve OpenAI's API (/v1/chat/completions, /v1/completions and more) until SIGTERM or Ctrl-C."""
    model_config = load_config(directory)
    engine_config = EngineConfig(
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory=None if kv_cache_memory is None else parse_size(kv_cache_memory),
        kv_cache_dtype=kv_cache_dtype,
        enable_prefix_caching=enable_prefix_caching,
        speculative_tokens=speculative_tokens,
    )
    # Checked before the model is loaded.
    engine_config.length(model_config.max_position, model_config.context_note)
    chosen(device)
    from ..sampling.defaults import sampling_defaults

    config = ServerConfig(
        served_model_name=directory.resolve().name if served_model_name is None else served_model_name,
        api_key=api_key,
        allowed_origins=tuple(allowed_origins or ()),
        allowed_hosts=None if allowed_hosts is None else tuple(allowed_hosts),
        max_queue=max_queue,
        request_timeout=request_timeout,
        sse_keep_alive_interval=sse_keep_alive_interval,
        max_body=parse_size(max_body),
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        response_store=parse_size(response_store),
        sampling_defaults=sampling_defaults(directory) if generation_config == "auto" else {},
    )
    from ..server.http.socket import bind, is_loopback

    listener = bind(host, port)  # before loading the model, which takes long
    loopback = is_loopback(listener.getsockname()[0])
    if allowed_hosts is None and api_key is None and loopback:
        config = replace(config, allowed_hosts=(host,))
    from ..engine.async_engine import AsyncEngine
    from ..engine.engine import Engine
    from ..kernels.backend import backend_for
    from ..model.load import load
    from ..server.run import serve as run
    from ..server.service import Service
    from ..text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(directory)  # before the weights, which take long
    engine = Engine(load(directory, backend=backend_for(device)), tokenizer, engine_config)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    service = Service(AsyncEngine(engine), config)
    _print_table(service, address)
    if api_key is None and not loopback:
        print(
            "faquant: anyone who can reach this address can use the model; set FAQUANT_API_KEY to require a key.",
            file=sys.stderr,
        )
    raise_on_signals()
    run(service, listener)


def _print_table(service: "Service", address: str) -> None:
    """Print the settings in use on stderr."""
    from ..kernels import memory
    from ..kernels.cpu import CpuBackend

    engine, config = service.engine.engine, service.config
    model, state = engine.model, engine.state()
    on_gpu, setting = not isinstance(model.backend, CpuBackend), memory.setting() or "none"
    tokens, note = state.num_pages * state.page_size, model.config.context_note
    rows = {
        "model": config.served_model_name,
        "recipe": "none, a float model" if model.is_float else model.recipe_name,
        "kernels": model.backend.description,
        **({} if on_gpu else {"huge pages": f"{memory.bytes_in_huge_pages():,} bytes; setting: {setting}"}),
        "cache": f"{state.cache_bytes:,} bytes, {tokens:,} tokens, {engine.bytes_per_token:,} bytes per token, "
        f"kv_cache_dtype {engine.config.kv_cache_dtype}",
        "context": f"{engine.max_model_len:,} tokens at most{f' ({note})' if note else ''}",
        "sequences": f"{engine.config.max_num_seqs} at a time, {config.max_queue} more may wait",
        "sampling": _described(config.sampling_defaults),
        "tool calls": service.conversation.description,
        "reasoning": "none" if service.reasoner is None else service.reasoner.kind,
        "address": f"{address}, {'with a key' if config.api_key else 'no key'}",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(stderr=True, soft_wrap=True).print(table)


def _described(defaults: Mapping[str, float]) -> str:
    values = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
    return f"{values} by default (generation_config.json)" if values else "temperature 1 and all tokens by default"
