"""Where flags come from: command line over --config file over environment over defaults.

Whatever stands in the file or the environment is parsed by the very parser of the command line, so
the three cannot differ in what they take; a complaint names the place it is about.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .arguments import add_arguments
from .settings import SettingsError

PREFIX = "FALCON_"
SECRETS = ("FALCON_API_KEY",)
# What Kubernetes sets in every pod beside a service that is called "falcon".
_KUBERNETES = re.compile(r"FALCON_(SERVICE_(HOST|PORT).*|PORT_.*)")
_SWITCH_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_SWITCH_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def parse_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """All flags, wherever they come from, and `unknown_variables` that may be misspelled ones.

    Raises `SettingsError`; the parser exits for what was typed. Secrets are taken out of the
    environment, so that the engine process does not inherit them.
    """
    typed = _parse_known(parser, words)
    environment = _flags_of_environment(parser)
    for name in SECRETS:
        os.environ.pop(name, None)
    parser.set_defaults(**_values(environment))
    file = typed.config or (environment.get("config") or _NOWHERE).value
    if file is not None:
        parser.set_defaults(**_values(_flags_of_file(parser, Path(str(file)))))
    args = _parse_known(parser, words)
    args.unknown_variables = _unknown_variables(parser)
    return args


def parse_values(values: Mapping[str, object], place: str) -> argparse.Namespace:
    """All flags, those of a command line given by their names, as a file has them.

    Raises `SettingsError` that names the place.
    """
    parser = _PlaceParser(place)
    add_arguments(parser)
    names = _names(parser)
    given = _given(names, values, place)
    for name, flag in given.items():
        if isinstance(flag.value, str):
            flag.value = _of_text(names[name], flag.value)
    _values(given)  # complains of the very flag
    by_place = sorted(given, key=lambda name: bool(names[name].option_strings))
    words = [word for name in by_place for word in _words(names[name], given[name])]
    return parse_flags(parser, words)


def _parse_known(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Unknown flags are named, but not what follows them: it may be a secret."""
    args, unknown = parser.parse_known_args(words)
    for word in unknown:
        name = word.partition("=")[0]
        if name.startswith("-"):
            parser.error(f"unknown flag {name}{_hint(name, parser._option_string_actions)}")
    if unknown:
        parser.error("more than one MODEL is given: serve each by a server of its own")
    return args


class Given:
    """What a flag is set to, and where."""

    def __init__(self, place: str, value: object) -> None:
        self.place = place
        self.value = value


_NOWHERE = Given("", None)


def _flags_of_environment(parser: argparse.ArgumentParser) -> dict[str, Given]:
    names = _names(parser)
    found = {}
    for variable, value in os.environ.items():
        name = variable.removeprefix(PREFIX).lower()
        is_ours = variable.startswith(PREFIX) and not _KUBERNETES.fullmatch(variable)
        if is_ours and name in names and not (name == "port" and value.startswith("tcp://")):
            found[name] = Given(variable, _of_text(names[name], value))
    return found


def _unknown_variables(parser: argparse.ArgumentParser) -> list[str]:
    """Variables that look like flags of ours and are none."""
    names = {PREFIX + name.upper() for name in _names(parser)}
    return sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in names and not _KUBERNETES.fullmatch(name)
    )


def _flags_of_file(parser: argparse.ArgumentParser, file: Path) -> dict[str, Given]:
    names = _names(parser)
    del names["config"]
    return _given(names, _read(file), str(file))


def _given(
    names: Mapping[str, argparse.Action], values: Mapping[Any, object], place: str
) -> dict[str, Given]:
    """What is set there, by flags that are known. Raises `SettingsError`."""
    found = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            hint = _hint(name, names) or f": known are {', '.join(sorted(names))}"
            raise SettingsError(f"{place}: unknown flag '{key}'{hint}")
        if value is not None:
            found[name] = Given(f"{place}, '{key}'", value)
    return found


def _read(file: Path) -> Mapping[object, object]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise SettingsError(f"{file} is no YAML{place}: write one 'flag: value' a line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold one 'flag: value' a line")
    return content


def _names(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every flag by its names without dashes, the positional one by its own."""
    names = {
        flag.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and not _is_negation(flag, action)
    }
    return names | {a.dest: a for a in parser._get_positional_actions()}


def _is_negation(flag: str, action: argparse.Action) -> bool:
    return flag.startswith("--no-") and isinstance(action, argparse.BooleanOptionalAction)


def _of_text(action: argparse.Action, text: str) -> object:
    """Several values of one variable are separated by commas or blanks."""
    return re.split(r"[,\s]+", text.strip()) if action.nargs == "+" else text


def _values(flags: Mapping[str, Given]) -> dict[str, Any]:
    """What a parser makes of the flags, by destination. Raises `SettingsError`."""
    values = {}
    for name, given in flags.items():
        parser = _PlaceParser(given.place)
        add_arguments(parser)
        action = _names(parser)[name]
        args = parser.parse_args(_words(action, given))
        if action.dest != argparse.SUPPRESS:
            values[action.dest] = getattr(args, action.dest)
    return values


class _PlaceParser(argparse.ArgumentParser):
    """Complains of a place instead of the command line."""

    def __init__(self, place: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._place = place

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{self._place}: {message.partition(': ')[2] or message}")


def _words(action: argparse.Action, given: Given) -> list[str]:
    """The command line that sets a flag to a value."""
    value = given.value
    flag = next((f for f in action.option_strings if f.startswith("--")), None)
    if flag is None:
        return [_text(value)]
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        is_on = _SWITCH_WORDS.get(_text(value).lower())
        if is_on is None:
            raise SettingsError(f"{given.place}: write true or false")
        return [flag] if is_on else [f for f in action.option_strings if _is_negation(f, action)]
    if action.nargs == "+":
        items = value if isinstance(value, list) else [value]
        return [flag, *map(_text, items)] if items else []
    if action.choices is not None and isinstance(value, bool):
        value = "on" if value else "off"  # YAML takes these words for booleans
    return [f"{flag}={_text(value)}"]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [flag for flag in known if len(flag) > 2], 1)
    return f"; did you mean {close[0]}?" if close else ""
