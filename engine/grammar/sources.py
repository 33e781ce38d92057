"""From what a request asks for to what xgrammar compiles: checked, bounded, and exact.

json_object      -                  a JSON object
json_schema      a JSON Schema      JSON that validates against it
regex            a pattern          a text that it matches as a whole
choice           a list of texts    one of them
ebnf             a grammar          a text of its rule `root`, in llama.cpp's notation
structural_tag   xgrammar's JSON    text with tagged parts
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from .json_schemas import MAX_DEPTH, normalized
from .regex_parser import parse_whole
from .regexes import GrammarError, written
from .schema_leaves import MAX_VALUES
from .structural_tags import checked_tag

Kind = Literal["json_object", "json_schema", "regex", "choice", "ebnf", "structural_tag"]

MAX_BYTES = 64 * 1024
# Text where a grammar binds the answer, even to tokenizers that have them as special tokens.
TAGS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})


@dataclass(frozen=True, slots=True)
class Source:
    """What to compile, and by which of xgrammar's languages."""

    language: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    text: str


def source_of(kind: Kind, text: str) -> Source:
    """Raises `GrammarError` with what is wrong or not supported, in words for whoever sent it."""
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise GrammarError(f"a grammar may have {MAX_BYTES} bytes")
    if "\0" in text:
        raise GrammarError("a grammar must not hold the character U+0000")
    match kind:
        case "json_object":
            return Source("json_schema", '{"type": "object"}')
        case "json_schema":
            return Source("json_schema", json.dumps(normalized(_parsed(text))))
        case "regex":
            return Source("regex", written(parse_whole(text)))
        case "choice":
            return Source("ebnf", _choice(_parsed(text)))
        case "ebnf":
            return Source("ebnf", text)
        case "structural_tag":
            return Source("structural_tag", json.dumps(checked_tag(_parsed(text))))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise GrammarError(f"it must be JSON, nested at most {MAX_DEPTH} levels deep") from None


def _choice(options: object) -> str:
    texts = options if isinstance(options, list) else []
    if not 1 <= len(texts) <= MAX_VALUES or not all(isinstance(t, str) and t for t in texts):
        raise GrammarError(f"choices must be a list of 1 to {MAX_VALUES} texts, none empty")
    quoted = (json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
    return f"root ::= {' | '.join(quoted)}"
