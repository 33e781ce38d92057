"""What a JSON Schema says about an object's properties, put so that xgrammar honours it.

Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .regexes import Choice, GrammarError, Node, literal, other_than
from .schema_leaves import Schema, counts, pattern, refuse, string_body, values

MAX_PROPERTIES = 512
MAX_NAMES_APART = 64  # declared beside others that are free: each key is kept apart from them
MAX_NAME_CHARS = 64  # of one of those
MAX_COUNTED = 64  # declared in an object that counts them: the grammar grows with the square


@dataclass(frozen=True, slots=True)
class Properties:
    """`declared` by name, and all others: `rest` is their schema, or False where there are none.

    Where `keys` is not None the others' names are those that it matches.
    """

    declared: Schema
    required: list[str]
    rest: Any
    keys: Node | None
    least: int | None
    most: int | None


def properties_of(schema: Schema, path: str) -> Properties:
    """Raises `GrammarError` where xgrammar could not keep to the schema."""
    declared, required = _declared(schema, path)
    keys: Node | None
    rest: object
    if "patternProperties" in schema:
        keys, rest = _patterned(schema, declared, required, path)
    else:
        rest = schema.get("additionalProperties", schema.get("unevaluatedProperties", not declared))
        declared |= {name: rest for name in required if name not in declared}
        if False in declared.values():
            raise GrammarError(f"no object at {path} can have all that is 'required'")
        keys = _keys(schema, declared, rest, path)
    if len(declared) > MAX_PROPERTIES:
        raise GrammarError(f"the object at {path} declares more than {MAX_PROPERTIES} properties")
    least, most = _limits(schema, declared, required, rest, path)
    return Properties(declared, required, rest, keys, least, most)


def _declared(schema: Schema, path: str) -> tuple[Schema, list[str]]:
    declared, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(declared, dict):
        raise GrammarError(f"'properties' at {path} must be an object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise GrammarError(f"'required' at {path} must be a list of names")
    return dict(declared), list(dict.fromkeys(required))


def _patterned(
    schema: Schema, declared: Schema, required: list[str], path: str
) -> tuple[Node, object]:
    """One pattern, that no declared name matches, and nothing beside it."""
    patterns = schema["patternProperties"]
    if not isinstance(patterns, dict) or len(patterns) != 1:
        refuse("patternProperties", path, " with other than one pattern")
    for keyword in ("additionalProperties", "unevaluatedProperties", "propertyNames"):
        if schema.get(keyword, False) is not False:
            refuse(keyword, path, " beside 'patternProperties'")
    ((text, rest),) = patterns.items()
    keys = pattern(text, path)
    try:
        overlaps = any(re.search(text, name) for name in declared)
    except re.error:
        overlaps = bool(declared)
    if overlaps or not declared.keys() >= set(required):
        refuse("patternProperties", path, " of a name in 'properties' or 'required'")
    return keys, rest


def _keys(schema: Schema, declared: Schema, rest: object, path: str) -> Node | None:
    """What free names look like: as `propertyNames` says, or other than the declared ones."""
    if "propertyNames" in schema:
        if declared:
            refuse("propertyNames", path, " beside 'properties' or 'required'")
        return None if rest is False else _names(schema["propertyNames"], f"{path}/propertyNames")
    if rest is False or not declared:
        return None
    if len(declared) > MAX_NAMES_APART or max(map(len, declared)) > MAX_NAME_CHARS:
        refuse(
            "additionalProperties",
            path,
            f" beside more than {MAX_NAMES_APART} properties or longer names than "
            f"{MAX_NAME_CHARS} characters",
        )
    return other_than(declared)


def _names(schema: object, path: str) -> Node | None:
    if schema is True:
        return None
    if not isinstance(schema, dict) or schema.get("type", "string") != "string":
        raise GrammarError(f"the schema at {path} must be one of a string")
    if "enum" in schema or "const" in schema:
        return Choice(tuple(literal(name) for name in values(schema | {"type": "string"}, path)))
    return string_body(schema, path)


def _limits(
    schema: Schema, declared: Schema, required: list[str], rest: object, path: str
) -> tuple[int | None, int | None]:
    """Bounds on the number of properties. Free keys may come twice, and then count as one."""
    least, most = counts(schema, "minProperties", "maxProperties", path)
    if least <= len(required):
        least = 0
    if least > 1 and rest is not False:
        refuse("minProperties", path, " of an object whose property names are free")
    if (least or most is not None) and len(declared) > MAX_COUNTED:
        refuse(
            "maxProperties" if most is not None else "minProperties",
            path,
            f" of an object that declares more than {MAX_COUNTED} properties",
        )
    if (most is not None and most < len(required)) or (rest is False and least > len(declared)):
        raise GrammarError(f"no object at {path} can have so many properties")
    return least or None, most
