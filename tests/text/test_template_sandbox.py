"""Hostile templates: they cannot escape the sandbox, modify objects or run endlessly."""

import contextlib
import time

import pytest

from faquant.errors import FaquantError, UnsupportedError
from oracles.chat_templates import TEMPLATES, USER, render


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__",
        "''['__class__']",
        "''|attr('__class__')",
        "messages.__class__.__base__.__subclasses__()",
        "raise_exception.__globals__",
        "strftime_now.__globals__['__builtins__']",
        "namespace.__init__.__globals__",
        "namespace().__class__",
        "dict.__self__",
        "dict.mro()",
        "cycler.__init__.__globals__.os",
        "joiner.__init__.__globals__",
        "self.__init__.__globals__",
        "self._TemplateReference__context",
        "(messages|map(attribute='__class__')|list)[0]",
        "messages|groupby('__class__')",
        "messages|sum(attribute='__class__')",
        "'{0.__class__}'.format(1)",
        "'{0.__class__.__mro__}'.format_map({'0': 1})",
        "('{0.__class__}'|attr('format'))(1)",
        "('%s'|format(1)).__class__",
        "['{0.__class__}']|map('format', 1)|list",
        "range.__class__",
        "caller.__code__",
        "loop.__init__",
        "m.__class__",
        "(x for x in messages).gi_frame",
        "lipsum.__globals__",
    ],
)
def test_the_sandbox_cannot_be_escaped(expression: str) -> None:
    source = "{% macro m() %}{% endmacro %}{% for i in [1] %}[{{ " + expression + " }}]{% endfor %}"
    text = ""
    with contextlib.suppress(FaquantError):
        text = render(source, [{"role": "user", "content": "x"}])
    # What is forbidden reads as undefined, which prints as nothing; a class or function would print as <...>.
    assert "<" not in text
    assert "builtins" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages.clear() }}",
        "{% set x = messages[0].pop('role') %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ namespace(**{'__class__': 1}) }}",
        "{{ (1).__class__() }}",
    ],
)
def test_templates_cannot_modify_objects(source: str) -> None:
    messages = [dict(USER)]
    with pytest.raises(UnsupportedError, match="was stopped"):
        render(source, messages)
    assert messages == [USER]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999) | map('string') %}"
        "{% for b in range(99999) | map('string') %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s * 2 %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}"
        "{% set ns.s = ns.s | replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}"
        "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set big = 'x' * 30000000 %}{% for i in range(1000) %}{{ big }}{% endfor %}",
        "{% set big = 'x' * 30000000 %}{% macro m() %}"
        "{% for i in range(1000) %}{{ big }}{% endfor %}{% endmacro %}{{ m() }}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [1] * 1000000000 }}",
        "{{ 10 ** 100000 }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ ['x'] | map('center', 1000000000) | list }}",
        "{{ [1] | batch(1000000000, 0) | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.zfill(width=1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w='1000000000') }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ strftime_now('%1000000000Y') }}",
        "{{ range(99999) | list | tojson(indent=1000000) }}",
    ],
)
@pytest.mark.timeout(30)
def test_endless_work_is_stopped(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(UnsupportedError, match="was stopped"):
        render(source)
    assert time.monotonic() - start < 20


def test_a_long_conversation_is_within_the_limits() -> None:
    messages = [{"role": ("user", "assistant")[turn % 2], "content": "word " * 200} for turn in range(4001)]
    for name in ("chatml", "mistral", "llama", "qwen"):
        assert len(render(TEMPLATES[name], messages, variables={"bos_token": "", "eos_token": ""})) > 4_000_000
