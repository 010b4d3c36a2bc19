"""JSON schemas: their normal forms, and the grammar of their values."""

from .compiled import CompiledSchema as CompiledSchema
from .compiled import compile_schema as compile_schema
from .compiled import lark as lark
from .document import MAX_BYTES as MAX_BYTES
from .document import check_text as check_text
from .forms import Value as Value
from .properties import Property as Property
from .properties import properties_of as properties_of
from .unique_items import Path as Path
