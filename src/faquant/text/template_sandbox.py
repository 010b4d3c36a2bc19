"""The jinja2 environment of chat templates: sandboxed, and with limits on time and memory.

A chat template is part of a checkpoint, so it is an untrusted program. jinja2's sandbox protects the interpreter; the
budget in this module prevents ordinary loops, recursion and growing strings from using all time and memory. It does not
prevent every waste of time: if you serve models of unknown origin, limit the process too.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 500_000  # about 20 times as many as a conversation of 4,000 messages needs
MAX_LENGTH = 32 << 20  # characters of one string, items of one list
MAX_WIDTH = 10_000
_CHARACTERS_PER_STEP = 4096
_WIDE_FORMAT = re.compile(r":[^}]*(?:\d{5}|\{)")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[a-zA-Z%]){0,100}")
_WIDTH_FILTERS = ("center", "indent", "wordwrap", "batch", "slice", "round", "tojson")


class TemplateLimitError(SecurityError):
    """The template asked for more work than a chat template needs."""


class Budget:
    """The remaining steps of one compilation or rendering; a context manager."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} steps")

    def __enter__(self) -> "Budget":
        self._token = _budget.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _budget.reset(self._token)


_budget: ContextVar[Budget] = ContextVar("faquant_template_budget")


def spend(steps: int) -> None:
    """Charge `steps` to the current budget."""
    _budget.get().spend(steps)


def charge(value: Any) -> Any:
    """Charge for a new value and return it. Raises: TemplateLimitError: it is too large."""
    if isinstance(value, str | list | tuple | dict):
        charge_length(len(value), isinstance(value, str))
    else:
        spend(1)
    return value


def charge_length(length: int, is_text: bool) -> None:
    """Charge for a string or a list of this length, if possible before it is created."""
    if length > MAX_LENGTH:
        raise TemplateLimitError(f"it makes a value of {length} characters or items; at most {MAX_LENGTH} are allowed")
    spend(1 + (length // _CHARACTERS_PER_STEP if is_text else length))


def check_widths(values: tuple[Any, ...]) -> None:
    """Refuse large numbers in the arguments of methods and filters that pad or repeat."""
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in values):
        raise TemplateLimitError(f"it pads or repeats more than {MAX_WIDTH} times")


class TemplateRefusalError(TemplateError):
    """The template itself called raise_exception()."""


def _each(value: Any) -> Any:
    if hasattr(value, "__len__"):
        charge_length(len(value), False)
        return value
    return _counted(value)


def _counted(values: Any) -> Iterator[Any]:
    for value in values:
        spend(1)
        yield value


def _concat(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    charge_length(sum(map(len, texts)), True)
    return "".join(texts)


def _join(parts: Iterable[str]) -> str:
    texts, length = [], 0
    for part in parts:
        texts.append(part)
        length += len(part)
        if length > MAX_LENGTH:
            break
    charge_length(length, True)
    return "".join(texts)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # also copies the attribute that tells jinja2 to pass the context
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if name in _WIDTH_FILTERS:
            check_widths((*args[1:], *kwargs.values()))
        elif name == "format" and args:
            _check_format(_WIDE_PERCENT, args[0])
        for value in args[:2]:  # the value is second if the first is a context
            if isinstance(value, str | list | tuple):
                charge_length(len(value), isinstance(value, str))
        return charge(function(*args, **kwargs))

    return wrapper


def _check_format(wide: re.Pattern[str], text: object) -> None:
    if isinstance(text, str) and wide.search(text):
        raise TemplateLimitError("it formats with a width that is too large")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML; models are not trained on that.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateRefusalError(str(message))


def _strftime_now(date_format: str) -> str:
    if not isinstance(date_format, str) or not _DATE_FORMAT.fullmatch(date_format):
        raise TemplateLimitError(f"strftime_now does not take the format {str(date_format)[:40]!r}")
    return datetime.now().strftime(date_format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    values = dict(*args, **kwargs)
    for name in values:
        _check_attribute(name)
    return _Namespace(values)


class _Generation(Extension):
    """{% generation %} marks text for training; here its body is rendered as is."""

    tags = {"generation"}  # noqa: RUF012 - an instance variable to jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """jinja2 as chat templates expect it (blocks trimmed, break and continue, tojson without HTML escapes)."""

    concat = staticmethod(_join)  # joins the output of a macro and of the whole template
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters = {name: _limited(name, function) for name, function in self.filters.items()}
        self.filters["faquant_each"] = _each
        self.filters["faquant_concat"] = _concat
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict, namespace=_namespace
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        # Loops and ~ compile to plain Python without a hook in the sandbox, so they are wrapped in filters.
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filter_node("faquant_each", loop.iter)
        _replace_concats(tree)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str):
            check_widths((*args, *kwargs.values()))
        if isinstance(__obj, LoopContext) and args:
            args = (_each(args[0]), *args[1:])
        return charge(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sized = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        if operator == "%":
            _check_format(_WIDE_PERCENT, left)
        if operator == "**" and not _small(left, right):
            raise TemplateLimitError("it raises a number to a power that is too large")
        if operator == "*" and not sized and not _small(left, right):
            raise TemplateLimitError("it multiplies numbers that are too large")
        if operator == "*" and len(sized) == 1:
            times = right if sized[0] is left else left
            charge_length(len(sized[0]) * max(times if isinstance(times, int) else 0, 0), True)
        return charge(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatter = super().wrap_str_format(value)
        if formatter is not None:
            _check_format(_WIDE_FORMAT, value.__self__)
        return formatter


def _small(left: Any, right: Any) -> bool:
    return not any(isinstance(value, int) and value.bit_length() > 64 for value in (left, right)) and not (
        isinstance(left, int) and isinstance(right, int) and abs(right) > 1024 and left not in (0, 1)
    )


def _filter_node(name: str, value: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _replace_concats(node: nodes.Node) -> None:
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, field, [_replaced(item) for item in value])
        elif isinstance(value, nodes.Node):
            setattr(node, field, _replaced(value))


def _replaced(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concats(value)
    if isinstance(value, nodes.Concat):
        return _filter_node("faquant_concat", nodes.List(value.nodes, lineno=value.lineno))
    return value
