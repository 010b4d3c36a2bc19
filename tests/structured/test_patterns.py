"""Regular expressions of ECMA-262: matching and the JSON text of what matches, against Python's re."""

import itertools
import json
import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from faquant.structured.patterns.pattern import Pattern, compile_pattern
from faquant.structured.patterns.syntax import PatternError
from faquant.structured.patterns.text import DEFINITION

BYTES = LLTokenizer("byte")
TEXTS = ["".join(letters) for count in range(5) for letters in itertools.product("abc", repeat=count)]
TEXTS += [
    '"',
    "\\",
    'a"',
    "a\n",
    "\n",
    "\x01b",
    "\x00",
    "\t",
    " a",
    "é",
    "É",
    "A",
    "Ab",
    "AB",
    "a1",
    "12",
    "a@a",
    "a.b",
    "-",
]
PATTERNS = [
    "",
    "^$",
    "^a+$",
    "a|^b$",
    "(^a|b)c",
    "^(?=.*a)(?!b)[a-c]+$",
    "a$|b",
    "(a|b$)?c?$",
    "^(a|$)",
    r"\d{2,3}",
    r'[^"\\]$',
    r'^["\n\\]+$',
    r"^\s*\S",
    r"^\W",
    r"\D\d",
    "(?i)^ab",
    "^(?i:A)b",
    "^(?!a|bc$).*$",
    "x?^a",
    "(a$)",
    "^(?:(?=b)b|a){1,2}$",
    "^((?!c)[a-c])$",
    r"[\w-]+$",
    r"^[\w.+-]+@a",
    r"\x41\u0042?",
    "^[^a-c]",
    "(?!a)b",
    "^(a(?=b))?b*$",
    "^(?:a|b){2}c{0,1}$",
    "^a{2,}",
    "^(?P<name>a)(?<other>b)?$",
    "[]a]".replace("[]", r"[\]"),
    "a.b",
    r"^\.|\-",
    "^(a|(b|(c)))+?$",
    r"[\t-\n]",
]


class Strings:
    """The strings whose text a terminal matches, in JSON or as they are."""

    def __init__(self, pattern: Pattern, is_plain: bool) -> None:
        self._is_plain = is_plain
        text = pattern.plain_text if is_plain else pattern.text
        body = text.lark if text is not None else r"/[^\x00-\x{10ffff}]/"
        quote = '""' if is_plain else '"\\""'
        source = f"start: TEXT\nTEXT: {quote} {body} {quote}\n{DEFINITION}"
        self._matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(source), log_level=0)
        assert not self._matcher.is_error(), self._matcher.get_error()

    def __contains__(self, text: str) -> bool:
        data = (text if self._is_plain else json.dumps(text, ensure_ascii=False)).encode()
        return self._matcher.deep_copy().validate_tokens([*data, BYTES.eos_token]) == len(data) + 1


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("source", PATTERNS)
def test_patterns(source: str, is_plain: bool) -> None:
    pattern = compile_pattern(source)
    expected = re.compile(source.replace("$", r"\Z").replace("(?<o", "(?P<o"), re.ASCII)
    strings = Strings(pattern, is_plain)
    for text in TEXTS:
        assert pattern.occurs(text) == (expected.search(text) is not None), text
        assert (text in strings) == pattern.occurs(text), text
    example = pattern.example()
    assert example is None or pattern.occurs(example)


@pytest.mark.parametrize(("source", "example"), [("a(?=b)", "ab"), ("^(?!a)b", "b"), ("^(?=b)a", None)])
def test_examples(source: str, example: str | None) -> None:
    assert compile_pattern(source).example() == example


@pytest.mark.parametrize(
    ("source", "inside", "outside"),
    [
        (r"^\p{Lu}$", "AÉЖ", "aé1"),
        (r"^\P{L}$", "1-", "aé"),
        (r"^[\p{L}\d]$", "aé7", "-_"),
        (r"^[^\p{Letter}]$", "7-", "aé"),
        (r"^\u{1f600}$", "😀", "é"),
        (r"^\ud83d\ude00$", "😀", "é"),
        (r"^[À-ÿ]$", "éÿ", "aĀ"),
        (r"^\s$", "\u2003\ufeff ", "a\u200b"),
        ("^.$", "é😀", "\n\u2028"),
    ],
)
@pytest.mark.parametrize("is_plain", [False, True])
def test_unicode(source: str, inside: str, outside: str, is_plain: bool) -> None:
    pattern = compile_pattern(source)
    strings = Strings(pattern, is_plain)
    for mark in inside + outside:
        assert pattern.occurs(mark) == (mark in inside)
        assert (mark in strings) == (mark in inside)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("(a", r"unmatched \("),
        ("a)", r"unmatched \)"),
        ("*a", "repeats nothing"),
        ("a**", "not supported"),
        ("[b-a]", "wrong order"),
        ("a{3,2}", "wrong order"),
        ("[a", "ends too early"),
        ("a\\", "ends too early"),
        (r"(a)\1", r"\\1 is not supported"),
        (r"\bword\b", r"\\b is not supported"),
        ("(?<=a)b", "not supported"),
        (r"\p{Greek}", "not supported"),
        (r"\ud800", "not a character"),
        ("(?:(?=a)b)*c", "repeats an anchor or a look-ahead"),
        ("(" * 100 + ")" * 100, "nested more than 64"),
        ("a" * 20_000, "longer than"),
    ],
)
def test_what_is_not_supported(source: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        compile_pattern(source)


@pytest.mark.timeout(20)
def test_matching_takes_polynomial_time() -> None:
    for source in ("^(a+)+$", "^(a|aa)+$", "^(a*)*b$", "^((a?){30}){30}b$", "(.*a){12}"):
        compile_pattern(source).occurs("a" * 200 + "c")
