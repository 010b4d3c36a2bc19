"""What the parts of the compiler use of `Normalizer` and `Grammar`, which use them."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from .document import Document
from .forms import Form, State, Value


class Normal(Protocol):
    """The part of `Normalizer` that describes schemas, forms and values."""

    document: Document
    strings: State

    def state(self, schema: Any) -> State: ...

    def choice(self, options: Iterable[State], cause: str, wider: Iterable[State] | None = None) -> State: ...

    def of_form(self, form: Form) -> State: ...

    def opposite(self, state: State, cause: str) -> State: ...

    def leave_out(self, cause: str, why: str = "") -> None: ...

    def at(self, keyword: str, schema: Mapping[str, Any]) -> str: ...

    def forms(self, state: State) -> tuple[Form, ...]: ...

    def is_empty(self, state: State) -> bool: ...

    def admits(self, state: State, value: Any) -> bool: ...


class Writer(Protocol):
    """The part of `Grammar` that adds rules and terminals."""

    normal: Normal
    has_open_names: bool
    unique: set[State]

    def rule(self, state: State) -> str: ...

    def new_rule(self, text: str) -> str: ...

    def new_parametric(self, options: list[str]) -> str: ...

    def terminal(self, text: str) -> str: ...

    def values(self, state: State, most: int) -> list[Value] | None: ...

    def value(self, value: Any) -> str: ...

    def key(self, name: str) -> str: ...
