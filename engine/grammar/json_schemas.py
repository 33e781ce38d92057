"""JSON Schemas in words that xgrammar obeys exactly: what it would ignore is rewritten or refused.

xgrammar 0.2.8 passes over many keywords without a word, and over others beside certain ones. What
leaves here holds none of those, so every text of its grammar validates against the schema that was
asked for. The reverse is not promised: properties come in the schema's order, none but the declared
ones unless the schema says so, numbers with bounds have at most six decimals. Imports no torch.
"""

from __future__ import annotations

from .regexes import GrammarError, written_in_string
from .schema_leaves import (
    MAX_VALUES,
    Schema,
    below,
    counts,
    integer,
    number,
    present,
    refuse,
    resolved,
    string,
    types_of,
    values,
)
from .schema_objects import properties_of
from .schema_unions import check_exclusive

MAX_DEPTH = 32
MAX_NODES = 2048
MAX_REFERENCES = 16  # from one to the next

_LEADERS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_FAMILIES = {
    "object": {
        "properties",
        "required",
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    },
    "array": {"items", "prefixItems", "unevaluatedItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_ASSERTIONS = {"type", *_LEADERS}.union(*_FAMILIES.values())
_FLAGS = ("uniqueItems", "nullable")  # which ask for nothing when false
_REFUSED = {
    "not": "",
    "if": "",
    "then": "",
    "else": "",
    "dependentRequired": "",
    "dependentSchemas": "",
    "dependencies": "",
    "uniqueItems": "",
    "contains": "",
    "minContains": "",
    "maxContains": "",
    "additionalItems": " (use 'prefixItems' and 'items')",
    "nullable": " (add \"null\" to 'type')",
    "disallow": "",
    "extends": "",
    "divisibleBy": " (use 'multipleOf')",
    "$dynamicRef": " (use '$ref')",
    "$recursiveRef": " (use '$ref')",
}


def normalized(schema: object) -> Schema:
    """A schema for xgrammar. Raises `GrammarError` naming the keyword and where it stands."""
    return _Normalizer(schema).whole()


class _Normalizer:
    """Walks one document. A `path` is a JSON pointer for people."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._names: dict[str, str] = {}  # of definitions, by pointer or pattern
        self._pending: list[str] = []
        self._definitions: Schema = {}
        self._num_nodes = 0
        self._num_values = 0

    def whole(self) -> Schema:
        result = self._node(self._root, "#", 0)
        while self._pending:
            pointer = self._pending.pop()
            target = resolved(self._root, pointer, "#")
            path = below("#", *pointer.split("/")[1:])
            self._definitions[self._names[pointer]] = self._node(target, path, 0)
        return result | {"$defs": self._definitions} if self._definitions else result

    def _node(self, schema: object, path: str, depth: int) -> Schema:
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise GrammarError(f"the schema at {path} must be an object or true")
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise GrammarError(
                f"a schema may be {MAX_DEPTH} levels deep and have {MAX_NODES} subschemas"
            )
        for keyword, hint in _REFUSED.items():
            if keyword in schema and not (keyword in _FLAGS and schema[keyword] is False):
                refuse(keyword, path, hint)
        leader = next((keyword for keyword in _LEADERS if keyword in schema), None)
        if leader is None:
            return self._typed(schema, path, depth)
        beside = _ASSERTIONS & schema.keys() - {leader}
        beside -= {"type"} if leader in ("const", "enum") else set()
        if beside:
            refuse(min(beside), path, f" beside '{leader}'")
        return self._led(leader, schema, path, depth)

    def _led(self, leader: str, schema: Schema, path: str, depth: int) -> Schema:
        """A schema that is a reference, a list of values, or made of others."""
        if leader == "$ref":
            return {"$ref": f"#/$defs/{self._name(schema['$ref'], path)}"}
        if leader in ("const", "enum"):
            listed = values(schema, path)
            self._num_values += len(listed)
            if self._num_values > MAX_VALUES:
                raise GrammarError(f"a schema may list {MAX_VALUES} values in all")
            return {"enum": listed}
        options = schema[leader]
        if not isinstance(options, list) or not options:
            raise GrammarError(f"'{leader}' at {path} must be a list of at least one schema")
        if leader == "allOf" and len(options) > 1:
            refuse("allOf", path, " with more than one schema")
        if leader == "oneOf":
            check_exclusive(options, self._root, path)
        nodes = [
            self._node(option, f"{path}/{leader}/{index}", depth + 1)
            for index, option in enumerate(options)
        ]
        return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _name(self, pointer: object, path: str) -> str:
        """What the target of a reference is called; it is visited later."""
        if not isinstance(pointer, str):
            raise GrammarError(f"'$ref' at {path} must be a string")
        if pointer not in self._names:
            self._check_reference(pointer, path)
            self._names[pointer] = f"d{len(self._names)}"
            self._pending.append(pointer)
        return self._names[pointer]

    def _shared(self, leaf: Schema) -> Schema:
        """A string by reference: xgrammar then prepares its pattern once, however often it is."""
        if "pattern" not in leaf:
            return leaf
        name = self._names.setdefault(leaf["pattern"], f"d{len(self._names)}")
        self._definitions[name] = leaf
        return {"$ref": f"#/$defs/{name}"}

    def _check_reference(self, pointer: str, path: str) -> None:
        """It points to a schema, in the end: not through others to itself."""
        target: object = {"$ref": pointer}
        for _ in range(MAX_REFERENCES):
            if not isinstance(target, dict) or not isinstance(target.get("$ref"), str):
                return
            target = resolved(self._root, target["$ref"], path)
        raise GrammarError(f"the '$ref' at {path} refers to itself or passes too many others")

    def _typed(self, schema: Schema, path: str, depth: int) -> Schema:
        """By its types; without any, those that its keywords speak of, and all if there are none.

        A union is written out: each type with the keywords that are about it.
        """
        types = types_of(schema, path)
        if types is None:
            types = [name for name, keywords in _FAMILIES.items() if keywords & schema.keys()]
        nodes = [self._of_type(name, schema, path, depth) for name in types]
        return {} if not nodes else nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _of_type(self, name: str, schema: Schema, path: str, depth: int) -> Schema:
        match name:
            case "integer":
                return integer(schema, path)
            case "number":
                return number(schema, path)
            case "string":
                return self._shared(string(schema, path))
            case "array":
                return self._array(schema, path, depth)
            case "object":
                return self._object(schema, path, depth)
            case _:
                return {"type": name}

    def _array(self, schema: Schema, path: str, depth: int) -> Schema:
        prefix = schema.get("prefixItems", [])
        items = schema.get("items", schema.get("unevaluatedItems", not prefix))
        if not isinstance(prefix, list) or isinstance(items, list):
            raise GrammarError(
                f"at {path} 'prefixItems' must be a list of schemas and 'items' one schema"
            )
        least, most = counts(schema, "minItems", "maxItems", path)
        if most is not None and most <= len(prefix):
            prefix, items, most = prefix[:most], False, None
        if items is False and least > len(prefix):
            raise GrammarError(f"no array at {path} can have as many items as 'minItems'")
        nodes = [
            self._node(item, f"{path}/prefixItems/{index}", depth + 1)
            for index, item in enumerate(prefix)
        ]
        rest = items is not False and self._node(items, f"{path}/items", depth + 1)
        result: Schema = {"type": "array", "items": rest}
        return result | present(prefixItems=nodes or None, minItems=least or None, maxItems=most)

    def _object(self, schema: Schema, path: str, depth: int) -> Schema:
        found = properties_of(schema, path)
        declared = {
            name: self._node(inner, below(path, "properties", name), depth + 1)
            for name, inner in found.declared.items()
        }
        rest: Schema | bool = False
        if found.rest is not False:
            rest = self._node(found.rest, below(path, "additionalProperties"), depth + 1)
        result: Schema = {"type": "object", "additionalProperties": rest}
        if declared:
            result |= {"properties": declared, "required": found.required}
        if found.keys is not None:
            named = {written_in_string(found.keys): rest}
            result |= {"patternProperties": named, "additionalProperties": False}
        return result | present(minProperties=found.least, maxProperties=found.most)
