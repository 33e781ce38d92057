"""The output items of a response while they grow, and the events that tell of them.

    text, reasoning   output_item.added -> content_part.added -> delta ... -> done
                      -> content_part.done -> output_item.done
    a call            output_item.added -> delta ... -> done -> output_item.done

Events have no sequence number yet. `entries` are log-probabilities as chat completions have them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from .parts import Part, Reasoning, Text, ToolCall

Json = dict[str, Any]


class Output:
    """All items of one answer; they come one after the other."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._finished: list[Json] = []
        self._growing: OutputItem | None = None
        self._waiting: list[Json] = []  # entries of tokens that brought no part yet

    @property
    def items(self) -> list[Json]:
        """As a response lists them, also when it is cut off."""
        growing = [] if self._growing is None else [self._growing.body("incomplete")]
        return self._finished + growing

    def add(self, parts: list[Part], entries: list[Json]) -> Iterator[Json]:
        """The events of one delta. Entries go with the next part; a message alone tells them."""
        self._waiting += entries
        for part in parts:
            if self._growing is None or not self._growing.is_continued_by(part):
                yield from self._close("completed", [])
                self._growing = self._item_for(part)
                yield from self._growing.start()
            yield from self._growing.add(part, self._taken())

    def finish(self, status: str) -> Iterator[Json]:
        """The events of the end. An answer of nothing is an empty message."""
        if self._growing is None:
            self._growing = OutputMessage(self._request_id, 0)
            yield from self._growing.start()
        yield from self._close(status, self._taken())

    def _close(self, status: str, entries: list[Json]) -> Iterator[Json]:
        if self._growing is not None:
            yield from self._growing.finish(status, entries)
            self._finished.append(self._growing.body(status))
            self._growing = None

    def _item_for(self, part: Part) -> OutputItem:
        index = len(self._finished)
        match part:
            case Text():
                return OutputMessage(self._request_id, index)
            case Reasoning():
                return OutputReasoning(self._request_id, index)
            case ToolCall():
                return OutputCall(self._request_id, index, part)

    def _taken(self) -> list[Json]:
        taken, self._waiting = self._waiting, []
        return taken


class OutputItem(ABC):
    prefix: ClassVar[str]

    def __init__(self, request_id: str, index: int) -> None:
        self._id = f"{self.prefix}_{request_id}{index:04x}"
        self._index = index

    @abstractmethod
    def body(self, status: str) -> Json:
        """The item as far as it has come."""

    @abstractmethod
    def is_continued_by(self, part: Part) -> bool: ...

    def start(self) -> Iterator[Json]:
        yield self._item_event("added", "in_progress")

    @abstractmethod
    def add(self, part: Any, entries: list[Json]) -> Iterator[Json]:
        """The events of a part that continues this item."""

    def finish(self, status: str, entries: list[Json]) -> Iterator[Json]:
        """The last events; `entries` are of tokens that brought no text any more."""
        yield self._item_event("done", status)

    def _item_event(self, what: str, status: str) -> Json:
        name = f"response.output_item.{what}"
        return {"type": name, "output_index": self._index, "item": self.body(status)}

    def _event(self, name: str, /, **fields: Any) -> Json:
        place = {"item_id": self._id, "output_index": self._index}
        return {"type": f"response.{name}", **place, **fields}


class TextItem(OutputItem):
    """An item whose content is one part of text, there from its second event on."""

    part_type: ClassVar[str]

    def __init__(self, request_id: str, index: int) -> None:
        super().__init__(request_id, index)
        self._has_part = False
        self._pieces: list[str] = []
        self._entries: list[Json] = []

    @property
    def _text(self) -> str:
        return "".join(self._pieces)

    @property
    def _content(self) -> list[Json]:
        return [self._part()] if self._has_part else []

    @abstractmethod
    def _part(self) -> Json: ...

    def _logprobs(self, entries: list[Json]) -> Json:
        """What an event of the text says of these, if anything."""
        return {}

    def start(self) -> Iterator[Json]:
        yield from super().start()
        self._has_part = True
        yield self._event("content_part.added", content_index=0, part=self._part())

    def add(self, part: Text | Reasoning, entries: list[Json]) -> Iterator[Json]:
        self._pieces.append(part.text)
        self._entries += entries
        yield self._text_event("delta", delta=part.text, **self._logprobs(entries))

    def finish(self, status: str, entries: list[Json]) -> Iterator[Json]:
        self._entries += entries
        yield self._text_event("done", text=self._text, **self._logprobs(self._entries))
        yield self._event("content_part.done", content_index=0, part=self._part())
        yield from super().finish(status, entries)

    def _text_event(self, what: str, **fields: Any) -> Json:
        return self._event(f"{self.part_type}.{what}", content_index=0, **fields)


class OutputMessage(TextItem):
    prefix = "msg"
    part_type = "output_text"

    def body(self, status: str) -> Json:
        head = {"id": self._id, "type": "message", "status": status}
        return head | {"role": "assistant", "content": self._content}

    def is_continued_by(self, part: Part) -> bool:
        return isinstance(part, Text)

    def _part(self) -> Json:
        logprobs = [
            _logprob(entry) | {"top_logprobs": [_logprob(other) for other in entry["top_logprobs"]]}
            for entry in self._entries
        ]
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, entries: list[Json]) -> Json:
        return {"logprobs": [_event_logprob(entry) for entry in entries]}


class OutputReasoning(TextItem):
    prefix = "rs"
    part_type = "reasoning_text"

    def body(self, status: str) -> Json:
        head = {"id": self._id, "type": "reasoning", "status": status}
        return head | {"summary": [], "content": self._content}

    def is_continued_by(self, part: Part) -> bool:
        return isinstance(part, Reasoning)

    def _part(self) -> Json:
        return {"type": "reasoning_text", "text": self._text}


class OutputCall(OutputItem):
    prefix = "fc"

    def __init__(self, request_id: str, index: int, call: ToolCall) -> None:
        super().__init__(request_id, index)
        self._call = call
        self._pieces: list[str] = []

    def body(self, status: str) -> Json:
        head = {"id": self._id, "type": "function_call", "status": status}
        names = {"call_id": self._call.id, "name": self._call.name}
        return head | names | {"arguments": self._arguments}

    @property
    def _arguments(self) -> str:
        return "".join(self._pieces)

    def is_continued_by(self, part: Part) -> bool:
        return isinstance(part, ToolCall) and not part.is_start

    def add(self, part: ToolCall, entries: list[Json]) -> Iterator[Json]:
        if part.arguments:
            self._pieces.append(part.arguments)
            yield self._event("function_call_arguments.delta", delta=part.arguments)

    def finish(self, status: str, entries: list[Json]) -> Iterator[Json]:
        told = {"name": self._call.name, "arguments": self._arguments}
        yield self._event("function_call_arguments.done", **told)
        yield from super().finish(status, entries)


def _logprob(entry: Json) -> Json:
    """OpenAI's schema wants bytes; tokens that are no text have none."""
    return {"token": entry["token"], "bytes": entry["bytes"] or [], "logprob": entry["logprob"]}


def _event_logprob(entry: Json) -> Json:
    """Events have no bytes."""
    own = {"token": entry["token"], "logprob": entry["logprob"]}
    best = [{"token": o["token"], "logprob": o["logprob"]} for o in entry["top_logprobs"]]
    return own | {"top_logprobs": best}
