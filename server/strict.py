"""The base of every request schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Strict(BaseModel):
    """No bool becomes an int, no "2" a 2; fields that the schema does not know are kept aside."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


def sent_as(form: Any) -> BeforeValidator:
    """Says in the API's description what a field may hold; other code than its type checks it."""
    return BeforeValidator(_as_it_is, json_schema_input_type=form)


def _as_it_is(value: object) -> object:
    return value
