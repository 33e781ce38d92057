"""Whether the options of a `oneOf` exclude each other: then it means the same as `anyOf`.

Imports no torch.
"""

from __future__ import annotations

from itertools import combinations

from .schema_leaves import Schema, refuse, resolved, type_of, types_of, values

MAX_OPTIONS = 64


def check_exclusive(options: list[object], root: object, path: str) -> None:
    """Raises `GrammarError` unless no value can be two of the options.

    What shows it: different types, different listed values, or objects told apart by the listed
    values of a property that one of the two requires.
    """
    if len(options) > MAX_OPTIONS:
        refuse("oneOf", path, f" of more than {MAX_OPTIONS} schemas")
    targets = [_target(option, root, path) for option in options]
    for one, other in combinations(targets, 2):
        if not _exclude(one, other, root, path):
            refuse("oneOf", path, " whose options do not plainly exclude each other (use 'anyOf')")


def _exclude(one: Schema, other: Schema, root: object, path: str) -> bool:
    types, others = _types(one, path), _types(other, path)
    if not types & others:
        return True
    listed, listed_too = _listed(one, path), _listed(other, path)
    if listed is not None and listed_too is not None:
        return not listed & listed_too
    return types == others == {"object"} and (
        _told_apart(one, other, root, path) or _told_apart(other, one, root, path)
    )


def _told_apart(one: Schema, other: Schema, root: object, path: str) -> bool:
    """Whether a property that `one` requires has other values in `other`."""

    def listed(option: Schema, name: object) -> set[object] | None:
        properties = option.get("properties")
        inner = properties.get(name) if isinstance(properties, dict) else None
        return _listed(_target(inner, root, path), path)

    required = one.get("required")
    for name in required if isinstance(required, list) else []:
        mine, theirs = listed(one, name), listed(other, name)
        if mine is not None and theirs is not None and not mine & theirs:
            return True
    return False


def _target(option: object, root: object, path: str) -> Schema:
    """An option, or what it refers to; a chain of references is followed so far."""
    for _ in range(8):
        if not isinstance(option, dict) or not isinstance(option.get("$ref"), str):
            break
        option = resolved(root, option["$ref"], path)
    return option if isinstance(option, dict) else {}


def _listed(schema: Schema, path: str) -> set[object] | None:
    """The values that it lists, if it does; here true is 1, which only makes more of them equal."""
    if "const" not in schema and "enum" not in schema:
        return None
    return {_frozen(value) for value in values(schema, path)}


def _frozen(value: object) -> object:
    if isinstance(value, dict):
        return frozenset((name, _frozen(inner)) for name, inner in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _types(schema: Schema, path: str) -> set[str]:
    """The types of its values, "number" being two; all types where it does not say."""
    if "const" in schema or "enum" in schema:
        return {type_of(value) for value in values(schema, path)}
    named = types_of(schema, path)
    every = {"object", "array", "string", "number", "integer", "boolean", "null"}
    if named is None:
        return every
    return {*named, "integer"} if "number" in named else set(named)
