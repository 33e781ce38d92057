"""What every check of a setting raises."""

from __future__ import annotations


class SettingsError(Exception):
    """The settings cannot be served; the text is for the person who wrote them."""
