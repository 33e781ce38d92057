"""The parts of a JSON Schema that hold no others: numbers, strings, lists of values, references.

What xgrammar honours stays, the rest is rewritten or refused by name. Imports no torch.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn
from urllib.parse import unquote

from .regex_parser import MAX_COUNT, parse_search, parse_whole
from .regexes import ANY, GrammarError, Node, Repeat, written_in_string
from .string_formats import FORMATS

Schema = dict[str, Any]

MAX_VALUES = 1000
MAX_MULTIPLE = 1024
MAX_MULTIPLES_RANGE = 10_000
MAX_NUMBER = 1e15
DECIMALS = 6
_INT64 = 2**63 - 1
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def refuse(keyword: str, path: str, why: str = "") -> NoReturn:
    raise GrammarError(f"'{keyword}'{why} is not supported in a JSON schema (at {path})")


def present(**keywords: object) -> Schema:
    """The keywords that have a value."""
    return {name: value for name, value in keywords.items() if value is not None}


def counts(schema: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
    """The values of two keywords that count something."""
    found = []
    for name in (least, most):
        count = schema.get(name)
        if isinstance(count, float) and count.is_integer():
            count = int(count)
        if name in schema and (type(count) is not int or not 0 <= count <= MAX_COUNT):
            raise GrammarError(f"'{name}' at {path} must be a whole number from 0 to {MAX_COUNT}")
        found.append(count)
    low, high = found[0] or 0, found[1]
    if high is not None and low > high:
        raise GrammarError(f"'{least}' at {path} is more than '{most}'")
    return low, high


def integer(schema: Schema, path: str) -> Schema:
    """Bounds become inclusive whole numbers."""
    bounds = _bounds(schema, path)
    lows = [math.ceil(bounds["minimum"])] if "minimum" in bounds else []
    lows += [math.floor(bounds["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in bounds else []
    highs = [math.floor(bounds["maximum"])] if "maximum" in bounds else []
    highs += [math.ceil(bounds["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in bounds else []
    low, high = max(lows, default=None), min(highs, default=None)
    if any(bound is not None and abs(bound) > _INT64 for bound in (low, high)):
        raise GrammarError(f"bounds of an integer at {path} must be within 64 bits")
    if low is not None and high is not None and low > high:
        raise GrammarError(f"no integer at {path} is within its bounds")
    multiple = _multiple(schema, low, high, path)
    return {"type": "integer"} | present(minimum=low, maximum=high, multipleOf=multiple)


def _multiple(schema: Schema, low: int | None, high: int | None, path: str) -> int | None:
    if "multipleOf" not in schema:
        return None
    factor = schema["multipleOf"]
    is_whole = type(factor) is int or (isinstance(factor, float) and factor.is_integer())
    if not is_whole or not 1 <= factor <= MAX_MULTIPLE:
        refuse("multipleOf", path, f" other than a whole number from 1 to {MAX_MULTIPLE}")
    if low is not None and high is not None:
        if high - low >= MAX_MULTIPLES_RANGE:
            refuse("multipleOf", path, f" over a range of more than {MAX_MULTIPLES_RANGE}")
        if low // -factor == -high // factor and low % factor:
            raise GrammarError(f"no multiple at {path} is within the bounds")
    elif low is not None or high is not None:
        refuse("multipleOf", path, " with only one bound")
    return int(factor)


def number(schema: Schema, path: str) -> Schema:
    if "multipleOf" in schema:
        refuse("multipleOf", path, " of a number that is no integer")
    bounds = _bounds(schema, path)
    for name, bound in bounds.items():
        if abs(bound) > MAX_NUMBER or round(bound, DECIMALS) != bound:
            refuse(name, path, f" over {MAX_NUMBER:.0e} or with more than {DECIMALS} decimals")
    lows = [bound for name, bound in bounds.items() if "inimum" in name]
    highs = [bound for name, bound in bounds.items() if "aximum" in name]
    exclusive = [bound for name, bound in bounds.items() if "exclusive" in name]
    low, high = max(lows, default=-math.inf), min(highs, default=math.inf)
    if low > high or (low == high and low in exclusive):
        raise GrammarError(f"no number at {path} is within its bounds")
    return {"type": "number"} | bounds


def _bounds(schema: Schema, path: str) -> dict[str, int | float]:
    bounds = {name: schema[name] for name in _BOUNDS if name in schema}
    for name, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise GrammarError(f"'{name}' at {path} must be a number")
    return bounds


def string(schema: Schema, path: str) -> Schema:
    """Length, pattern and format all become a pattern over the characters of a JSON string."""
    body = string_body(schema, path)
    return {"type": "string"} | present(pattern=body and written_in_string(body))


def string_body(schema: Schema, path: str) -> Node | None:
    """The characters of a string; None where the schema says nothing of them."""
    kinds = [name for name in ("format", "pattern", "minLength", "maxLength") if name in schema]
    if len(kinds) > 1 and kinds != ["minLength", "maxLength"]:
        refuse(kinds[1], path, f" beside '{kinds[0]}'")
    return _body(schema, kinds[0], path) if kinds else None


def _body(schema: Schema, kind: str, path: str) -> Node:
    if kind in ("minLength", "maxLength"):
        least, most = counts(schema, "minLength", "maxLength", path)
        return Repeat(ANY, least, most)
    text = schema[kind]
    if not isinstance(text, str):
        raise GrammarError(f"'{kind}' at {path} must be a string")
    if kind == "pattern":
        return pattern(text, path)
    if text not in FORMATS:
        refuse("format", path, f" other than {', '.join(sorted(FORMATS))}")
    return parse_whole(FORMATS[text])


def pattern(text: str, path: str) -> Node:
    """A regular expression of a schema."""
    try:
        return parse_search(text)
    except GrammarError as error:
        raise GrammarError(f"{error} (in the schema at {path})") from None


def values(schema: Schema, path: str) -> list[Any]:
    """What `const` or `enum` lists. Each value must be of the schema's type, if it has one."""
    listed = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_VALUES:
        raise GrammarError(f"'enum' at {path} must be a list of 1 to {MAX_VALUES} values")
    types = types_of(schema, path)
    if types is not None and not all(type_of(value) in _widened(types) for value in listed):
        raise GrammarError(f"not all values at {path} are of the schema's 'type'")
    for value in _numbers_in(listed):
        if isinstance(value, int) and abs(value) > _INT64:
            raise GrammarError(f"a number listed at {path} is over 64 bits")
    return listed


def _numbers_in(value: object) -> list[int | float]:
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return [number for part in inner for number in _numbers_in(part)]
    return [value] if isinstance(value, int | float) else []


_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def types_of(schema: Schema, path: str) -> list[str] | None:
    """The types that `type` names, each once; None where there is no `type`."""
    if "type" not in schema:
        return None
    named = schema["type"]
    types = [named] if isinstance(named, str) else named
    if not isinstance(types, list) or not types or not all(name in _TYPES for name in types):
        raise GrammarError(f"'type' at {path} must be one or a list of {', '.join(_TYPES)}")
    return list(dict.fromkeys(types))


def _widened(types: list[str]) -> set[str]:
    """With "number" every integer is meant too."""
    return {*types, "integer"} if "number" in types else set(types)


def type_of(value: object) -> str:
    """The JSON type of a value; "integer" for a number without a fraction."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


_PLAIN = re.compile("[A-Za-z0-9_.$-]{1,64}")


def below(path: str, *parts: str) -> str:
    """The pointer to something inside; what is not plainly a name is not repeated."""
    return "/".join([path, *(part if _PLAIN.fullmatch(part) else "..." for part in parts)])


def resolved(root: object, pointer: str, path: str) -> object:
    """What a reference in a document points to: `#` or a JSON pointer behind `#`."""
    if pointer != "#" and not pointer.startswith("#/"):
        refuse("$ref", path, " to another place than '#' or '#/...'")
    target = root
    for part in pointer.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        else:
            raise GrammarError(f"the '$ref' at {path} points to nothing in the schema")
    return target
