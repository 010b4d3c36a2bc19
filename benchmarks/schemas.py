"""Compile the JSON schemas of a file, and check valid and invalid instances against their grammars.

    python benchmarks/schemas.py FILE [--tokenizer DIR] [--lenient] [--show]

FILE has a schema on each line, with instances: {"schema": {…}, "tests": [{"valid": true, "data": …}, …]}, and perhaps
a name ("file"). An instance is admitted if the grammar accepts its JSON text as json.dumps writes it (without escapes
where JSON needs none) and no object in it has a name twice. Schemas are compiled as with `strict: true`; --lenient
compiles as without, and counts an instance as admitted only if the check after the answer accepts it too. Times are
CPU times of one thread: rewriting, llguidance's compilation, and the search of the shortest answer, which needs a
tokenizer.
"""

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from faquant.errors import UsageError
from faquant.structured.grammar import Grammars
from faquant.structured.json_schema import compile_schema
from faquant.structured.structured_output import StructuredOutput
from faquant.text.tokenizer import Tokenizer


def keywords(value: Any) -> set[str]:
    """The keys of a schema, at any depth; some may be names of properties."""
    if isinstance(value, dict):
        return set(value).union(*map(keywords, value.values()))
    return set().union(*map(keywords, value)) if isinstance(value, list) else set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint, for the time of the shortest answer")
    parser.add_argument("--lenient", action="store_true")
    parser.add_argument("--show", action="store_true", help="name each refused schema and each wrong instance")
    args = parser.parse_args()
    bytewise = LLTokenizer("byte")
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
            start = time.thread_time()
            compiled = compile_schema(line["schema"], strict=not args.lenient)
            rewritten = time.thread_time()
            matcher = LLMatcher(bytewise, LLMatcher.grammar_from_lark(compiled.grammar), log_level=0)
            if matcher.is_error():
                raise UsageError(matcher.get_error())
            times["rewriting"].append(rewritten - start)
            times["llguidance"].append(time.thread_time() - rewritten)
            if grammars is not None:
                wanted = StructuredOutput(json_schema=line["schema"], strict=not args.lenient)
                start = time.thread_time()
                plan = grammars.compiled(wanted).result().plan
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
            outcome["checked after the answer"] += bool(compiled.unenforced)
            for test in line.get("tests", ()):
                text = json.dumps(test["data"], ensure_ascii=False).encode()
                read = matcher.deep_copy().validate_tokens([*text, bytewise.eos_token])
                admitted = read == len(text) + 1 and not (compiled.unenforced and compiled.problem(text.decode()))
                outcome["valid instances" if test["valid"] else "invalid instances"] += 1
                wrong = ("valid refused" if test["valid"] else "invalid admitted") if admitted != test["valid"] else ""
                outcome[wrong] += bool(wrong)
                if wrong and args.show:
                    print(f"{name}: {wrong}: …{text[max(0, read - 60) : read].decode('utf-8', 'replace')}", end="")
                    print(f" ⟂ {text[read : read + 40].decode('utf-8', 'replace')}")
        counts += outcome
        for key in keywords(line["schema"]):
            if re.fullmatch(r"[$a-zA-Z]+", key):
                by_keyword[key] += outcome
    del counts[""]
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
