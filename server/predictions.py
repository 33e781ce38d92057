"""Predicted outputs: the client's guess of the answer, for the engine to draft from."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from pydantic import BeforeValidator

from .chat_messages import Content, join_text_parts
from .errors import context_length_exceeded
from .served import ServedModel
from .strict import Strict
from .submits import check_characters


class Prediction(Strict):
    type: Literal["content"]
    content: Annotated[str, BeforeValidator(join_text_parts, json_schema_input_type=Content)]


async def encode_prediction(prediction: Prediction | None, served: ServedModel) -> list[int]:
    """Its ids, no more than the context has room for. Raises `ApiError`."""
    if prediction is None:
        return []
    check_characters(len(prediction.content), "prediction", served)
    ids = await asyncio.to_thread(served.tokenizer.encode_plain, prediction.content)
    if len(ids) > served.context_length:
        detail = f"your prediction resulted in {len(ids)} tokens. Please shorten it."
        raise context_length_exceeded(served.context_length, detail, "prediction")
    return ids
