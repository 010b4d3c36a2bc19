"""The formats that are enforced, as regular expressions. Some are narrower than their specification.

Sources: RFC 3339 (dates, times, durations), 5321 (email), 1123 (hostname), 4291 (ipv6), 4122 (uuid), 3986 and 3987
(uri, iri), 6570 (uri-template), 6901 (json-pointer), 4648 (base64). Values are ones that usual clients parse: years
from 1, no leap seconds, durations that a Python timedelta holds, base64 with padding, email at a domain with a dot.
"""

from functools import cache

from ..patterns.pattern import Pattern, compile_pattern

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][48]|[13579][26]|[2468]0)00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_ZONE = r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_NUMBER = "[0-9]{1,5}"
_TIME_PART = rf"T(?:{_NUMBER}H(?:{_NUMBER}M(?:{_NUMBER}S)?)?|{_NUMBER}M(?:{_NUMBER}S)?|{_NUMBER}S)"
_DATE_PART = rf"(?:[0-9]{{1,4}}Y(?:{_NUMBER}M(?:{_NUMBER}D)?)?|{_NUMBER}M(?:{_NUMBER}D)?|{_NUMBER}D)"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LETTERS = (
    "a-z0-9\\u00e0-\\u00f6\\u00f8-\\u00fe\\u03b1-\\u03c9\\u0430-\\u044f\\u3041-\\u3096\\u4e00-\\u9fa5\\uac00-\\ud7a3"
)
_IDN_LABEL = f"[{_LETTERS}]{{1,12}}(?:-[{_LETTERS}]{{1,12}})?"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_IDN_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~\\u00a1-\\ud7ff\\uf900-\\ufdcf-]"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX = "[0-9A-Fa-f]"
_WORD = f"{_HEX}{{1,4}}"
_RELATIVE_POINTER = "(?:0|[1-9][0-9]{0,9})"
_POINTER = "(?:/(?:[^/~]|~[01])*)*"


def _ipv6() -> str:
    options = [f"(?:{_WORD}:){{7}}{_WORD}", f"(?:{_WORD}:){{6}}{_IPV4}"]
    for count in range(8):
        before = f"{_WORD}(?::{_WORD}){{{count - 1}}}" if count else ""
        after = [f"{_WORD}(?::{_WORD}){{0,{6 - count}}}"] if count < 7 else []
        after += [f"(?:{_WORD}:){{0,{5 - count}}}{_IPV4}"] if count < 6 else []
        options.append(f"{before}::" + (f"(?:{'|'.join(after)})?" if after else ""))
    return f"(?:{'|'.join(options)})"


def _resource(more: str) -> tuple[str, str]:
    """A URI and a reference, with `more` characters besides those of ASCII."""
    escape = f"%{_HEX}{{2}}"
    name, private = f"(?:[A-Za-z0-9._~!$&'()*+,;={more}-]|{escape})", "\\ue000-\\uf8ff" if more else ""
    char, first = f"(?:[A-Za-z0-9._~!$&'()*+,;=:@{more}-]|{escape})", f"(?:[A-Za-z0-9._~!$&'()*+,;=@{more}-]|{escape})"
    user = f"(?:[A-Za-z0-9._~!$&'()*+,;=:{more}-]|{escape})*@"
    port = "(?::(?:[1-5][0-9]{4}|[0-9]{0,4}))?"
    host = rf"(?:\[{_ipv6()}\]|{name}*)"
    rest = f"(?:/{char}*)*"
    end = rf"(?:\?(?:{char}|[/?{private}])*)?(?:#(?:{char}|[/?])*)?"
    with_host = f"//(?:{user})?{host}{port}{rest}"
    absolute = f"/(?:{char}+{rest})?"
    uri = f"[A-Za-z][A-Za-z0-9+.-]*:(?:{with_host}|{absolute}|{char}+{rest})?{end}"
    reference = f"(?:{uri}|(?:{with_host}|{absolute}|{first}+{rest})?{end})"
    return uri, reference


def _regular_expression() -> str:
    escape = r"\\[dDwWsSnrt.\\+*?()\[\]{}^$|/-]"
    char = r"(?:a-z|A-Z|0-9|[^\\\[\]^\x00-\x1f-]|" + escape + ")"
    atoms = rf"(?:[^\\^$.*+?()\[\]{{}}|\x00-\x1f]|\.|{escape}|\[\^?{char}+\]"
    tree = f"{atoms})"
    for _ in range(3):
        times = r"(?:[*+?]|\{[1-9][0-9]?\})?"
        sequence = rf"\^?(?:{tree}{times})*\$?"
        tree = rf"{atoms}|\((?:\?:)?{sequence}(?:\|{sequence})*\))"
    return rf"{sequence}(?:\|{sequence})*"


def _sources() -> dict[str, str]:
    (uri, uri_reference), (iri, iri_reference) = (
        _resource(""),
        _resource("\\u00a0-\\ud7ff\\uf900-\\ufdcf\\ufdf0-\\uffef"),
    )
    hostname, idn_hostname = rf"{_LABEL}(?:\.{_LABEL})*", rf"{_IDN_LABEL}(?:\.{_IDN_LABEL}){{0,6}}"
    name = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+(?:\.(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+)*(?::[1-9][0-9]{0,3}|\*)?"
    base64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
    domain = rf"{_LABEL}(?:\.{_LABEL})+"
    return {
        "date": _DATE,
        "time": _CLOCK + _ZONE,
        "date-time": f"{_DATE}[Tt]{_CLOCK}{_ZONE}",
        "duration": rf"P(?:{_DATE_PART}(?:{_TIME_PART})?|{_TIME_PART}|{_NUMBER}W)",
        "email": rf"{_ATOM}+(?:\.{_ATOM}+)*@{domain}",
        "idn-email": rf"{_IDN_ATOM}+(?:\.{_IDN_ATOM}+)*@{idn_hostname}",
        "hostname": rf"(?=.{{1,253}}$){hostname}",
        "idn-hostname": idn_hostname,
        "ipv4": _IPV4,
        "ipv6": _ipv6(),
        "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
        "uri": uri,
        "uri-reference": uri_reference,
        "iri": iri,
        "iri-reference": iri_reference,
        "uri-template": rf"(?:[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=-]|%{_HEX}{{2}}|\{{[+#./;?&]?{name}(?:,{name})*\}})*",
        "json-pointer": _POINTER,
        "relative-json-pointer": f"{_RELATIVE_POINTER}(?:#|{_POINTER})",
        "regex": _regular_expression(),
        "byte": base64,
        "base64": base64,
        "path": r"[^\x00]*",
        "cuid": "c[a-z0-9]{8,30}",
        "cuid2": "[a-z][a-z0-9]{1,31}",
        "ulid": "[0-7][0-9A-HJKMNP-TV-Z]{25}",
    }


@cache
def _all() -> dict[str, str]:
    return {name: f"^(?:{source})$" for name, source in _sources().items()}


def format_pattern(name: str) -> Pattern | None:
    """The pattern of a format; None if the format is only an annotation."""
    source = _all().get(name)
    return None if source is None else compile_pattern(source)
