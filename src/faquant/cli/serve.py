"""faquant serve"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import KvCacheDtype, load_config
from ..engine.engine_config import EngineConfig
from ..server.config import ServerConfig
from ..structured.tools.formats import FORMATS
from .interrupts import raise_from_now_on
from .sizes import parse_size

if TYPE_CHECKING:
    from ..server.service import Service


def serve(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="What requests call the model; the directory's name.", metavar="NAME")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FAQUANT_API_KEY", help="What clients must show; others can read a flag, so rather set the variable."
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Web pages of this origin may call; may be repeated; * is all.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            help="Requests may call the server by this name; may be repeated; * is any. By default any; on a loopback "
            "address without a key, only this machine.",
            show_default=False,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Sequences that may wait; who comes then gets 429.")
    ] = ServerConfig.max_queue,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take; 0: any number.")
    ] = ServerConfig.request_timeout,
    max_body: Annotated[str, typer.Option(help="Largest body of a request.", metavar="SIZE")] = "8MiB",
    tool_call_parser: Annotated[
        str, typer.Option(help=f"How the model writes calls of tools: auto, {', '.join(FORMATS)}.")
    ] = ServerConfig.tool_call_parser,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of a prompt and its answer; the model's context.", show_default=False)
    ] = EngineConfig.max_model_len,
    max_num_seqs: Annotated[
        int, typer.Option(help="Sequences that are answered at the same time.")
    ] = EngineConfig.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens of one step; longer prompts are read in several.")
    ] = EngineConfig.max_num_batched_tokens,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the cache, such as 2GiB; by default what is useful, 4GiB at most.", metavar="SIZE"
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        KvCacheDtype, typer.Option(help="auto is int8; bfloat16 is there to compare with.")
    ] = EngineConfig.kv_cache_dtype,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Find again what prompts have in common.")
    ] = EngineConfig.enable_prefix_caching,
    speculative_tokens: Annotated[
        int, typer.Option(help="Guess so many tokens at once from what stands there already.")
    ] = EngineConfig.speculative_tokens,
) -> None:
    """Answer requests of OpenAI's API: /v1/chat/completions, /v1/completions and more, until SIGTERM or Ctrl-C."""
    max_position = load_config(directory).max_position
    engine_config = EngineConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory=None if kv_cache_memory is None else parse_size(kv_cache_memory),
        kv_cache_dtype=kv_cache_dtype,
        enable_prefix_caching=enable_prefix_caching,
        speculative_tokens=speculative_tokens,
    )
    engine_config.length(max_position)  # refused here, not when the model has been loaded
    config = ServerConfig(
        served_model_name=directory.resolve().name if served_model_name is None else served_model_name,
        api_key=api_key,
        allowed_origins=tuple(allowed_origins or ()),
        allowed_hosts=None if allowed_hosts is None else tuple(allowed_hosts),
        max_queue=max_queue,
        request_timeout=request_timeout,
        max_body=parse_size(max_body),
        tool_call_parser=tool_call_parser,
    )
    from ..server.http.socket import bind, is_loopback

    listener = bind(host, port)  # before the model is loaded, which takes longer
    loopback = is_loopback(listener.getsockname()[0])
    if allowed_hosts is None and api_key is None and loopback:
        config = replace(config, allowed_hosts=(host,))
    from ..engine.async_engine import AsyncEngine
    from ..engine.engine import Engine
    from ..model.load import load
    from ..server.run import serve as run
    from ..server.service import Service
    from ..text.tokenizer import Tokenizer

    engine = Engine(load(directory), Tokenizer.from_directory(directory), engine_config)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    service = Service(AsyncEngine(engine), config)
    _print_table(service, address)
    if api_key is None and not loopback:
        print(
            "faquant: anybody who reaches this address can use the model; FAQUANT_API_KEY asks them for a key.",
            file=sys.stderr,
        )
    raise_from_now_on()
    run(service, listener)


def _print_table(service: "Service", address: str) -> None:
    """What is really in use, on stderr."""
    from ..kernels import isa as cpu
    from ..kernels import threads

    engine, config = service.engine.engine, service.config
    model, state = engine.model, engine.state()
    kind = model.description.model_quant_type if model.description else "none, a float model"
    tokens = state.num_pages * state.page_size
    rows = {
        "model": config.served_model_name,
        "recipe": model.metadata.recipe.name if model.metadata else kind,
        "kernels": f"{cpu.selected_isa()} ({cpu.cpu_name()}), {threads.count()} threads",
        "cache": f"{state.cache_bytes:,} bytes, {tokens:,} tokens, {engine.bytes_per_token:,} bytes a token, "
        f"kv_cache_dtype {engine.config.kv_cache_dtype}",
        "context": f"{engine.max_model_len:,} tokens at most",
        "sequences": f"{engine.config.max_num_seqs} at a time, {config.max_queue} more may wait",
        "tool calls": service.conversation.description,
        "address": f"{address}, {'with a key' if config.api_key else 'no key'}",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(stderr=True, soft_wrap=True).print(table)
