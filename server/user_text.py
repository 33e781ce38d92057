"""Keeps what users wrote apart from what the template wrote, while the template mixes them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

from .templates import TemplateRefused


class HiddenTexts:
    """Special tokens' texts inside users' strings, each replaced by an unguessable marker.

    A template may trim, move or escape a marker like any other word. Strings of a user's are looked
    at one by one: two that a template writes without anything between them could still make one.
    """

    def __init__(self, specials: re.Pattern[str]) -> None:
        self._specials = specials
        self._nonce = secrets.token_hex(16)
        self._found: list[str] = []

    def hide(self, value: Any) -> Any:
        """A JSON value with every string in it treated so, keys too."""
        match value:
            case str():
                return self._specials.sub(self._hide, value)
            case dict():
                return {self.hide(key): self.hide(item) for key, item in value.items()}
            case list():
                return [self.hide(item) for item in value]
            case _:
                return value

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """What was rendered, in order; true marks what was hidden."""
        parts = re.split(f"x{self._nonce}x([0-9]+)x", rendered)
        yield parts[0], False
        for number, text in zip(parts[1::2], parts[2::2], strict=True):
            yield self._found[int(number)], True
            yield text, False

    def mark_end(self, text: str) -> str:
        """`text` with a mark behind it, for `before_mark`."""
        return text + f"x{self._nonce}end"

    def before_mark(self, rendered: str) -> str:
        """What stands before the last mark, which may have been left out: `TemplateRefused`."""
        before, mark, _ = rendered.rpartition(f"x{self._nonce}end")
        if not mark:
            raise TemplateRefused("The model's chat template does not show the last message.")
        return before

    def _hide(self, match: re.Match[str]) -> str:
        self._found.append(match.group())
        return f"x{self._nonce}x{len(self._found) - 1}x"
