"""xgrammar's structural tags: text in which tagged parts follow a schema, a pattern or a grammar.

xgrammar ignores fields that it does not know; here each kind of part has the fields listed, and the
schemas and patterns inside obey the same rules as alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .json_schemas import normalized
from .regex_parser import parse_whole
from .regexes import GrammarError, written

MAX_BLANKS = 1  # between two tokens of JSON
MAX_DEPTH = 32


def checked_tag(tag: object) -> dict[str, Any]:
    """The tag for xgrammar. Raises `GrammarError`."""
    if not isinstance(tag, dict) or tag.keys() - {"type"} != {"format"}:
        raise GrammarError("a structural tag must be an object with the field 'format'")
    if tag.get("type", "structural_tag") != "structural_tag":
        raise GrammarError("the 'type' of a structural tag must be \"structural_tag\"")
    return {"type": "structural_tag", "format": _part(tag["format"], 0)}


def _part(part: object, depth: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _FIELDS:
        raise GrammarError(
            f"the 'type' of a structural tag's part must be one of {', '.join(sorted(_FIELDS))}"
        )
    if depth > MAX_DEPTH:
        raise GrammarError(f"a structural tag may be {MAX_DEPTH} levels deep")
    fields, needed = _FIELDS[kind], _NEEDED[kind]
    if not needed <= part.keys() - {"type"} <= fields.keys():
        raise GrammarError(
            f"the part '{kind}' of a structural tag must have {_listed(needed)}"
            f" and may have nothing but {_listed(fields.keys())}"
        )
    checked = {name: fields[name](value, depth) for name, value in part.items() if name != "type"}
    if kind == "json_schema":
        checked["max_whitespace_cnt"] = MAX_BLANKS
    return {"type": kind} | checked


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _schema(value: object, depth: int) -> object:
    return normalized(value)


def _pattern(value: object, depth: int) -> object:
    return written(parse_whole(str(_text(value, depth))))


def _text(value: object, depth: int) -> object:
    if not isinstance(value, str):
        raise GrammarError("a field of a structural tag that is text must be a string")
    return value


def _texts(value: object, depth: int) -> object:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise GrammarError("a field of a structural tag that lists texts must be a list of strings")
    return value


def _ends(value: object, depth: int) -> object:
    return _texts(value, depth) if isinstance(value, list) else _text(value, depth)


def _inner(value: object, depth: int) -> object:
    return _part(value, depth + 1)


def _inners(value: object, depth: int) -> object:
    if not isinstance(value, list) or not value:
        raise GrammarError("a field of a structural tag that lists parts must be a list of parts")
    return [_part(part, depth + 1) for part in value]


def _tags(value: object, depth: int) -> object:
    """A list of tags may leave out that they are tags."""
    if isinstance(value, list):
        value = [{"type": "tag"} | part if isinstance(part, dict) else part for part in value]
    return _inners(value, depth)


def _flag(value: object, depth: int) -> object:
    if not isinstance(value, bool):
        raise GrammarError("'at_least_one' and 'stop_after_first' must be true or false")
    return value


def _count(value: object, depth: int) -> object:
    if type(value) is not int or not 0 <= value <= 1000:
        raise GrammarError("'min' and 'max' of a structural tag must be from 0 to 1000")
    return value


def _blanks(value: object, depth: int) -> object:
    if value != MAX_BLANKS:
        raise GrammarError(f"'max_whitespace_cnt' must be {MAX_BLANKS}")
    return value


_Check = Callable[[object, int], object]
_LOOP: dict[str, _Check] = {"at_least_one": _flag, "stop_after_first": _flag}
_FIELDS: dict[str, dict[str, _Check]] = {
    "const_string": {"value": _text},
    "json_schema": {"json_schema": _schema, "max_whitespace_cnt": _blanks},
    "regex": {"pattern": _pattern},
    "grammar": {"grammar": _text},
    "any_text": {"excludes": _texts},
    "sequence": {"elements": _inners},
    "or": {"elements": _inners},
    "tag": {"begin": _text, "content": _inner, "end": _ends},
    "triggered_tags": {"triggers": _texts, "tags": _tags, "excludes": _texts} | _LOOP,
    "tags_with_separator": {"tags": _tags, "separator": _text} | _LOOP,
    "optional": {"content": _inner},
    "plus": {"content": _inner},
    "star": {"content": _inner},
    "repeat": {"min": _count, "max": _count, "content": _inner},
}
_OPTIONAL = {"excludes", "max_whitespace_cnt", *_LOOP}
_NEEDED = {kind: fields.keys() - _OPTIONAL for kind, fields in _FIELDS.items()}
