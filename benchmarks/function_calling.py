"""Function calling: a quantized directory beside its float model and llama.cpp's server, on cases of bfcl-eval.

python benchmarks/function_calling.py QUANTIZED FLOAT [--bfcl DIR] [--cases 50] [--gguf FILE --llama-server PROGRAM]
                                      [--threads N] [--json FILE]

`pip install --no-deps --target build/bfcl bfcl-eval==2026.3.23` fetches the cases; the package's own checker judges the
calls (AST match). Each category contributes --cases cases, spread evenly over it. In simple_python, multiple and
parallel the answer must call (tool_choice required); in irrelevance it may call (auto), but no call is right. Answers
are greedy. "valid" is the share of calls whose arguments follow the schema, "first" the AST match of the first call
alone, in the categories with one right call.
"""

import argparse
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jsonschema
from timing import finish, start

CATEGORIES = ("simple_python", "multiple", "parallel", "irrelevance")
TYPES = {"dict": "object", "float": "number", "tuple": "array", "list": "array", "bool": "boolean", "any": "string"}
KEPT = {"type", "description", "properties", "required", "items", "enum", "default"}
START_SECONDS, ANSWER_SECONDS, TOKENS = 120, 3600, 512
Calls = list[dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """One question: its functions as bfcl-eval describes them, the tools for the API, and the right calls."""

    category: str
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    right: list[dict[str, Any]]


@dataclass
class Score:
    """The figures of one system in one category."""

    answers: int = 0
    failed: int = 0
    calls: int = 0
    valid: int = 0
    matched: int = 0
    first_matched: int = 0


def read_cases(directory: Path, category: str, count: int) -> list[Case]:
    """`count` cases of a category, evenly spread."""
    data = directory / "bfcl_eval" / "data"
    rows = [json.loads(line) for line in (data / f"BFCL_v4_{category}.json").read_text().splitlines()]
    answers = data / "possible_answer" / f"BFCL_v4_{category}.json"
    right = [json.loads(line)["ground_truth"] for line in answers.read_text().splitlines()] if answers.exists() else []
    places = [number * len(rows) // count for number in range(min(count, len(rows)))]
    return [
        Case(
            category,
            rows[place]["question"][0],
            rows[place]["function"],
            [tool_of(function) for function in rows[place]["function"]],
            right[place] if right else [],
        )
        for place in places
    ]


def tool_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function as a tool of OpenAI's API."""
    described = {
        "name": function["name"].replace(".", "_"),
        "description": function["description"],
        "parameters": schema_of(function["parameters"]),
    }
    return {"type": "function", "function": described}


def schema_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema for bfcl-eval's types."""
    schema = {key: value for key, value in part.items() if key in KEPT}
    schema["type"] = TYPES.get(schema["type"], schema["type"])
    if "properties" in schema:
        schema["properties"] = {name: schema_of(one) for name, one in schema["properties"].items()}
        schema["additionalProperties"] = False
    if "items" in schema:
        schema["items"] = schema_of(schema["items"])
    return schema


def checker_of(directory: Path) -> Callable[[Case, Calls], bool]:
    """bfcl-eval's checker. Its table of models, which imports all vendors' clients, is replaced by one flag."""
    table = ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"faquant": SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[table.__name__] = table
    sys.path.insert(0, str(directory))
    check = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON

    def matches(case: Case, calls: Calls) -> bool:
        found = check(case.functions, calls, case.right, python, case.category, "faquant")
        return bool(found["valid"])

    return matches


@contextmanager
def served(arguments: Sequence[str], threads: int) -> Iterator[str]:
    """The URL of a server that runs within the block. arguments: the command, to which a free --port is added."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*arguments, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise RuntimeError(f"the server did not start: {' '.join(arguments)}")
        yield url
    finally:
        process.terminate()
        process.wait()


def ask(url: str, case: Case) -> dict[str, Any] | None:
    """The answer's message; None if the request failed."""
    choice = "auto" if case.category == "irrelevance" else "required"
    body = {"messages": case.messages, "tools": case.tools, "tool_choice": choice, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({**body, "max_tokens": TOKENS}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            message: dict[str, Any] = json.load(response)["choices"][0]["message"]
    except (OSError, KeyError, ValueError) as error:
        detail = error.read().decode()[:200] if isinstance(error, urllib.error.HTTPError) else ""
        print(f"  {error} {detail}", file=sys.stderr, flush=True)
        return None
    return message


def read_calls(case: Case, message: Mapping[str, Any]) -> tuple[Calls, int]:
    """The calls of a message in the checker's form, and how many of them follow their schemas."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
    calls: Calls = []
    valid = 0
    for call in message.get("tool_calls") or []:
        name = call["function"]["name"]
        arguments: dict[str, Any] = {}
        with suppress(ValueError, KeyError, jsonschema.ValidationError):
            arguments = json.loads(call["function"]["arguments"])
            jsonschema.validate(arguments, schemas[name])
            valid += 1
        calls.append({name: arguments})
    return calls, valid


def score_of(url: str, cases: Sequence[Case], matches: Callable[[Case, Calls], bool], parallel: int) -> Score:
    score = Score()
    with ThreadPoolExecutor(parallel) as threads:
        for case, message in zip(cases, threads.map(lambda case: ask(url, case), cases), strict=True):
            score.answers += 1
            if message is None:
                score.failed += 1
                continue
            calls, valid = read_calls(case, message)
            score.calls += len(calls)
            score.valid += valid
            if case.category == "irrelevance":
                score.matched += not calls
            else:
                score.matched += bool(calls) and matches(case, calls)
                score.first_matched += bool(calls) and case.category != "parallel" and matches(case, calls[:1])
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("float", type=Path)
    parser.add_argument("--bfcl", type=Path, default=Path("build/bfcl"))
    parser.add_argument("--cases", type=int, default=50, help="per category")
    parser.add_argument("--parallel", type=int, default=32, help="requests at a time")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-server", type=Path, default=Path(".venv-peers/bin/llama-server"))
    arguments = start(parser)
    matches = checker_of(arguments.bfcl)
    faquant = [sys.executable, "-m", "faquant", "serve", "--request-timeout", "0"]
    systems = {"quantized": [*faquant, str(arguments.quantized)], "float": [*faquant, str(arguments.float)]}
    if arguments.gguf is not None:
        flags = {
            "-m": arguments.gguf,
            "-np": arguments.parallel,
            "-c": arguments.parallel * 4096,
            "-t": arguments.threads,
        }
        systems["llama-server"] = [
            str(arguments.llama_server),
            "--jinja",
            *(str(x) for pair in flags.items() for x in pair),
        ]
    cases = {category: read_cases(arguments.bfcl, category, arguments.cases) for category in CATEGORIES}
    rows: list[dict[str, object]] = []
    print(f"{'':14}{'':15}{'answers':>8}{'failed':>8}{'valid':>8}{'AST match':>11}{'first':>8}{'calls':>8}")
    for name, command in systems.items():
        total = Score()
        with served(command, arguments.threads) as url:
            for category, some in cases.items():
                score = score_of(url, some, matches, arguments.parallel)
                rows.append(print_row(name, category, score))
                if category != "irrelevance":
                    for key in ("answers", "failed", "calls", "valid", "matched"):
                        setattr(total, key, getattr(total, key) + getattr(score, key))
        rows.append(print_row(name, "all that call", total))
    finish(arguments, rows)


def print_row(system: str, category: str, score: Score) -> dict[str, object]:
    figures: dict[str, object] = {
        "answers": score.answers,
        "failed": score.failed,
        "valid": score.valid / score.calls if score.calls else None,
        "match": score.matched / max(1, score.answers),
        "first": score.first_matched / max(1, score.answers),
        "calls": score.calls / max(1, score.answers),
    }
    first = f"{figures['first']:8.1%}" if category in ("simple_python", "multiple") else f"{'':8}"
    valid = f"{figures['valid']:8.1%}" if score.calls else f"{'–':>8}"
    print(
        f"{system:14}{category:15}{score.answers:8}{score.failed:8}{valid}{figures['match']:11.1%}"
        f"{first}{figures['calls']:8.2f}",
        flush=True,
    )
    return {"system": system, "category": category, **figures}


if __name__ == "__main__":
    main()
