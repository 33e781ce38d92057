"""JSON Schemas made by chance, of every kind that is supported and of some that are not."""

from __future__ import annotations

import random
from typing import Any

FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"]
PATTERNS = [
    "^[a-z]{1,5}$",
    "abc",
    "^a",
    "b$",
    "^[^x]+$",
    r"^\d{3}-\w*$",
    r'^(a|"|\\|\n)+$',
    "^.{2,3}$",
    "é+",
    "^x|y$",
]
VALUES: list[Any] = [1, 2.5, "a", 'b"c', None, True, {"x": [1]}, [], "é/\n", -0.001, 1e-7, "\u2028"]
NAMES = ["a", "b", "ab", "c", "é", "x y", '"q', "id", "abc"]
DEFINITIONS = {
    "m": {
        "type": "object",
        "properties": {
            "v": {"type": "integer"},
            "next": {"anyOf": [{"$ref": "#/$defs/m"}, {"type": "null"}]},
        },
        "required": ["v"],
    }
}


def random_schema(dice: random.Random) -> dict[str, Any]:
    return {"$defs": DEFINITIONS, "anyOf": [_schema(dice, 0)]}


def _schema(dice: random.Random, depth: int) -> Any:
    chance = dice.random()
    if depth > 3 or chance < 0.35:
        return _leaf(dice)
    if chance < 0.7:
        return _object(dice, depth)
    if chance < 0.85:
        return _array(dice, depth)
    if chance < 0.97:
        keyword = dice.choice(["anyOf", "oneOf", "anyOf", "allOf"])
        count = 1 if keyword == "allOf" else dice.randint(1, 3)
        return {keyword: [_schema(dice, depth + 1) for _ in range(count)]}
    return {"$ref": "#/$defs/m"}


def _leaf(dice: random.Random) -> Any:
    match dice.choice(["string", "string", "integer", "number", "type", "enum", "const", "any"]):
        case "string":
            return {"type": "string"} | dice.choice(
                [
                    {},
                    {"minLength": dice.randint(0, 4), "maxLength": dice.randint(4, 70)},
                    {"maxLength": dice.randint(0, 5)},
                    {"pattern": dice.choice(PATTERNS)},
                    {"format": dice.choice(FORMATS)},
                ]
            )
        case "enum":
            return {"enum": dice.sample(VALUES, dice.randint(1, 5))}
        case "const":
            return {"const": dice.choice(VALUES)}
        case "any":
            return dice.choice([{}, True])
        case "type":
            return {"type": dice.choice(["boolean", "null", ["string", "null"], "array", "object"])}
        case name:
            return {"type": name} | _bounds(dice, name)


def _bounds(dice: random.Random, name: str) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if dice.random() < 0.5:
        keyword = dice.choice(["minimum", "exclusiveMinimum"])
        bounds[keyword] = dice.choice([-100, -7.5, 0, 3, 0.25])
    if dice.random() < 0.5:
        keyword = dice.choice(["maximum", "exclusiveMaximum"])
        bounds[keyword] = dice.choice([8, 17.5, 1000, 99999.999])
    if name == "integer" and dice.random() < 0.2:
        bounds["multipleOf"] = dice.choice([2, 7, 10.0])
    return bounds


def _object(dice: random.Random, depth: int) -> dict[str, Any]:
    names = dice.sample(NAMES, dice.randint(0, 4))
    schema: dict[str, Any] = {"type": "object"} if dice.random() < 0.9 else {}
    if names or dice.random() < 0.5:
        schema["properties"] = {name: _schema(dice, depth + 1) for name in names}
    if dice.random() < 0.6:
        schema["required"] = dice.sample(names, dice.randint(0, len(names)))
        schema["required"] += ["zz"] * (dice.random() < 0.1)
    if dice.random() < 0.4:
        keyword = dice.choice(["additionalProperties", "unevaluatedProperties"])
        schema[keyword] = dice.choice([True, False, _schema(dice, depth + 1)])
    if dice.random() < 0.12:
        keys = dice.choice(["^p_", "^[0-9]+$", "q"])
        schema["patternProperties"] = {keys: _schema(dice, depth + 1)}
    if dice.random() < 0.1:
        names_schemas = [{"pattern": "^[a-z]{1,4}$"}, {"maxLength": 3}, {"enum": ["u", "v"]}]
        schema["propertyNames"] = dice.choice(names_schemas)
    for keyword in ("minProperties", "maxProperties"):
        if dice.random() < 0.15:
            schema[keyword] = dice.randint(0, 4)
    return schema


def _array(dice: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if dice.random() < 0.7:
        schema["items"] = _schema(dice, depth + 1)
    if dice.random() < 0.25:
        schema["prefixItems"] = [_schema(dice, depth + 1) for _ in range(dice.randint(1, 3))]
    for keyword in ("minItems", "maxItems"):
        if dice.random() < 0.35:
            schema[keyword] = dice.randint(0, 4)
    return schema
