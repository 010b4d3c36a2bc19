"""Compile the JSON schemas of a file, and check valid and invalid instances against their grammars.

    python benchmarks/schemas.py FILE [--tokenizer DIR] [--lenient] [--show]

FILE has a schema on each line, with instances: {"schema": {…}, "tests": [{"valid": true, "data": …}, …]}, and perhaps
a name ("file"). An instance is admitted if the grammar accepts its JSON text as json.dumps writes it (without escapes
where JSON needs none) and no object in it has a name twice. Schemas are compiled as with `strict: true`; --lenient
compiles as without, and counts an instance as admitted only if the check after the answer accepts it too. A valid
instance that is refused is tried again with the members of its objects in the order of the schema. Times are CPU times
of one thread: rewriting, llguidance's compilation, and the search of the shortest answer, which needs a tokenizer.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from faquant.errors import UsageError
from faquant.structured.grammar import Grammars
from faquant.structured.json_schema import compile_schema
from faquant.structured.json_schema.keywords import CONSTRAINING, subschemas
from faquant.structured.structured_output import StructuredOutput
from faquant.text.tokenizer import Tokenizer

BYTES = LLTokenizer("byte")


RENAMED = ("_format", "_id", "_uniqueItems")
"""What MaskBench calls keywords that it took out of the original schemas."""


def without_renamed(schema: Any) -> Any:
    """The schema without the keywords that MaskBench has renamed; changes it."""
    if isinstance(schema, dict):
        for keyword in RENAMED:
            schema.pop(keyword, None)
        for _, part in subschemas(schema):
            without_renamed(part)
    return schema


def keywords(schema: Any) -> set[str]:
    """The keywords of a schema that constrain something, at any depth."""
    if not isinstance(schema, dict):
        return set()
    return (schema.keys() & CONSTRAINING).union(*(keywords(part) for _, part in subschemas(schema)))


def names(value: Any) -> list[str]:
    """The names in a schema, in its order."""
    if isinstance(value, dict):
        properties = value.get("properties")
        own = list(properties) if isinstance(properties, dict) else []
        return own + [name for part in value.values() for name in names(part)]
    return [name for part in value for name in names(part)] if isinstance(value, list) else []


def in_order(value: Any, places: dict[str, int]) -> Any:
    """The value with the members of its objects in the order of their names."""
    if isinstance(value, list):
        return [in_order(item, places) for item in value]
    if isinstance(value, dict):
        ordered = sorted(value, key=lambda name: places.get(name, len(places)))
        return {name: in_order(value[name], places) for name in ordered}
    return value


class Schema:
    """A schema, compiled for a tokenizer with a token for each byte."""

    def __init__(self, schema: Any, strict: bool) -> None:
        start = time.thread_time()
        compiled = compile_schema(schema, strict=strict)
        rewritten = time.thread_time()
        self.matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(compiled.grammar), log_level=0)
        if self.matcher.is_error():
            raise UsageError(self.matcher.get_error())
        self.rewriting, self.compiling = rewritten - start, time.thread_time() - rewritten
        self.wanted = StructuredOutput(json_schema=schema, strict=strict)
        self.places = {name: place for place, name in enumerate(dict.fromkeys(names(schema)))}

    def admits(self, value: Any) -> bool:
        text = json.dumps(value, ensure_ascii=False)
        self.read = self.matcher.deep_copy().validate_tokens([*text.encode(), BYTES.eos_token])
        state = self.wanted.repetitions()
        if self.read <= len(text.encode()) or (state is not None and state.after(text.encode()) is None):
            return False
        return not self.wanted.unenforced or self.wanted.problem(text) is None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint, for the time of the shortest answer")
    parser.add_argument("--lenient", action="store_true")
    parser.add_argument("--show", action="store_true", help="name each refused schema and each wrong instance")
    args = parser.parse_args()
    grammars = None
    if args.tokenizer is not None:
        tokenizer = Tokenizer.from_directory(args.tokenizer)
        grammars = Grammars(tokenizer, tokenizer.vocab_size)
    counts: Counter[str] = Counter()
    by_keyword: dict[str, Counter[str]] = defaultdict(Counter)
    times: dict[str, list[float]] = defaultdict(list)
    lines = [json.loads(line) for line in args.file.read_text("utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        name = line.get("file", f"line {number + 1}")
        outcome: Counter[str] = Counter({"schemas": 1})
        try:
            schema = Schema(without_renamed(line["schema"]), strict=not args.lenient)
            times["rewriting"].append(schema.rewriting)
            times["llguidance"].append(schema.compiling)
            if grammars is not None:
                start = time.thread_time()
                plan = grammars.compiled(schema.wanted).result().plan
                times["llguidance and shortest answer"].append(time.thread_time() - start)
                times["all"].append(times["rewriting"][-1] + times["llguidance and shortest answer"][-1])
                outcome["without an answer"] += plan is None
        except UsageError as error:
            outcome["refused"] += 1
            outcome["refused although an instance is valid"] += any(test["valid"] for test in line.get("tests", ()))
            if args.show:
                print(f"{name}: {str(error)[:300]}")
        else:
            outcome["accepted"] += 1
            outcome["checked after the answer"] += bool(schema.wanted.unenforced)
            for test in line.get("tests", ()):
                outcome["valid instances" if test["valid"] else "invalid instances"] += 1
                if schema.admits(test["data"]) == test["valid"]:
                    continue
                outcome["valid refused" if test["valid"] else "invalid admitted"] += 1
                if args.show:
                    text = json.dumps(test["data"], ensure_ascii=False).encode()
                    parts = (text[max(0, schema.read - 60) : schema.read], text[schema.read : schema.read + 40])
                    print(f"{name}: {'valid refused' if test['valid'] else 'invalid admitted'}: …", end="")
                    print(" ⟂ ".join(part.decode("utf-8", "replace") for part in parts))
                if test["valid"] and schema.admits(in_order(test["data"], schema.places)):
                    outcome["valid refused for the order of members"] += 1
        counts += outcome
        for key in keywords(line["schema"]):
            by_keyword[key] += outcome
    for key, count in counts.items():
        print(f"{key:40} {count:6}")
    print(f"\n{'keyword':24} schemas  refused  invalid admitted  valid refused")
    for key, count in sorted(by_keyword.items(), key=lambda item: -item[1]["schemas"]):
        if count["refused"] or count["invalid admitted"] or count["valid refused"]:
            print(f"{key:24} {count['schemas']:7}  {count['refused']:7}", end="")
            print(f"  {count['invalid admitted']:16}  {count['valid refused']:13}")
    for part, each in times.items():
        each.sort()
        p50, p99 = (each[min(len(each) - 1, int(len(each) * share))] * 1e3 for share in (0.5, 0.99))
        print(f"{part}: p50 {p50:.2f} ms, p99 {p99:.1f} ms, largest {each[-1] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
