"""Formats: what is admitted, and that usual parsers read whatever the model writes."""

import base64
import ipaddress
import re
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from faquant.structured.json_schema import compile_schema
from faquant.structured.structured_output import StructuredOutput
from oracles.constrained import Model, least_tokens
from oracles.schemas import Recognizer

FORMATS: dict[str, tuple[list[str], list[str]]] = {
    "date": (
        ["2024-02-29", "2000-02-29", "0001-01-01", "2023-12-31"],
        ["2023-02-29", "1900-02-29", "2023-04-31", "23-1-1"],
    ),
    "time": (["00:00:00Z", "23:59:59.123456+02:00"], ["24:00:00Z", "23:59:60Z", "12:00:00", "12:00Z"]),
    "date-time": (["2024-02-29T12:00:00Z", "2024-01-01T00:00:00.5-05:30"], ["2024-01-01", "2024-01-01 00:00:00Z"]),
    "duration": (["P1D", "PT1H30M", "P1Y2M3DT4H5M6S", "P3W"], ["P", "PT", "1D", "P1S", "P999999999Y"]),
    "email": (["a@b.c", "a.b+c@d-e.com"], ["a", "a@", "@b.c", "a@b", "a..b@c.d", "a@-b.c", "a@[127.0.0.1]"]),
    "idn-email": (["ü@exämple.de", "a@b.c"], ["ü@", "a b@c"]),
    "hostname": (["a", "a-b.example.com", "A1"], ["", "-a", "a-", "a..b", "a_b", "a" * 64]),
    "idn-hostname": (["exämple.de", "例え"], ["-ä", "ä..b", "Ä_"]),
    "ipv4": (["0.0.0.0", "255.1.20.99"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (
        ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1:2::7:8"],
        ["1", ":::", "1:2:3:4:5:6:7", "1::2::3", "12345::"],
    ),
    "uuid": (["01234567-89ab-cdef-0123-456789ABCDEF"], ["0123456789abcdef0123456789abcdef", "g" * 36]),
    "uri": (
        ["http://a.b:80/c?d=e#f", "mailto:a@b", "urn:x", "http://[::1]/"],
        ["a", "/a", "http://a b", "http://a\\b", "1a:b"],
    ),
    "uri-reference": (["", "a/b", "/a", "#f", "//a/b", "?q", "http://a"], ["a b", "\\", "é", "%"]),
    "iri": (["http://exämple.de/ü", "http://a"], ["ü", "http://a b"]),
    "iri-reference": (["ü/é#ö", ""], ["a b", "<"]),
    "uri-template": (["http://a/{b}{?c,d*}{/e:3}", "a"], ["{", "{a", "{a b}", "a b"]),
    "json-pointer": (["", "/", "/a/b~0~1/0"], ["a", "/~", "/~2"]),
    "relative-json-pointer": (["0", "1#", "2/a", "10"], ["", "-1", "01", "/a"]),
    "regex": (["", "^a+[b-z]{2}$".replace("b-z", "a-z"), "(a|b)*\\d", "x?"], ["(", "[", "a)", "*", "\\"]),
    "byte": (["", "YQ==", "YWI=", "YWJj"], ["YQ", "YQ=", "Y===", "a b="]),
    "base64": (["YWJj"], ["YW"]),
    "path": (["", "/a/b c.txt", "C:\\x"], ["a\0"]),
    "cuid": (["cjld2cjxh0000qzrmn831i7rn"], ["x1"]),
    "ulid": (["01ARZ3NDEKTSV4RRFFQ69G5FAV"], ["01ARZ3NDEKTSV4RRFFQ69G5FAU", "81ARZ3NDEKTSV4RRFFQ69G5FAV"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    texts = Recognizer(compile_schema({"type": "string", "format": name}, strict=True))
    valid, invalid = FORMATS[name]
    for text in valid:
        assert text in texts
    for text in invalid:
        assert text not in texts


def read(kind: Any) -> Any:
    return TypeAdapter(kind).validate_json


PARSERS = {
    "date": lambda text: date.fromisoformat(text),
    "time": lambda text: TypeAdapter(time).validate_python(text),
    "date-time": lambda text: TypeAdapter(datetime).validate_python(text),
    "duration": lambda text: TypeAdapter(timedelta).validate_python(text),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": UUID,
    "uri": urlsplit,
    "uri-reference": urlsplit,
    "iri": urlsplit,
    "regex": re.compile,
    "base64": lambda text: base64.b64decode(text, validate=True),
}


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("letters", ["", "0", "9", "PYMDTHS", "[]", "()*", "aA+/=", ":-.", "%@"])
def test_parsers_read_what_is_written(byte_level_model: Model, name: str, letters: str) -> None:
    model, wanted = byte_level_model, StructuredOutput(json_schema={"type": "string", "format": name}, strict=True)
    for seed in range(4):
        limit = least_tokens(model, wanted) + 15 * seed
        answer = model.answer(model.sampler(wanted, max_tokens=limit, seed=seed), model.fond_of(letters, seed))
        PARSERS[name](TypeAdapter(str).validate_json(answer))


def test_other_formats_are_annotations() -> None:
    texts = Recognizer(compile_schema({"type": "string", "format": "color"}, strict=True))
    assert "anything" in texts
    numbers = Recognizer(compile_schema({"type": "integer", "format": "int32"}, strict=True))
    assert 2**40 in numbers
