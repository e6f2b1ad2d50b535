"""From pydantic's errors to one line: where, which key, what is wrong, and the nearest valid key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from engine.config import Config
from engine.config_checks import Conflict

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list [...]",
    "model_type": "a section {...}",
}


@dataclass(frozen=True)
class Origins:
    """Where each dotted key was written: the file with its line, or the override."""

    file: str
    lines: dict[str, int]
    overrides: dict[str, str]

    def where(self, key: str) -> str:
        """``file:line``, or ``file`` with the override that set ``key`` or a section around it."""
        names = key.split(".")
        around = [".".join(names[:length]) for length in range(len(names), 0, -1)]
        for candidate in around:
            if candidate in self.overrides:
                return f"{self.file}, override {self.overrides[candidate]}"
        return next(
            (f"{self.file}:{self.lines[candidate]}" for candidate in around if candidate in self.lines),
            self.file,
        )


def explain(error: ValidationError, origins: Origins) -> str:
    """One line for the first problem (unknown keys first: typing slips) and how many more there are."""
    problems = sorted(
        error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden"
    )
    key, message = _describe(problems[0])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{origins.where(key)}: {message}{more}"


def key_lines(text: str) -> dict[str, int]:
    """Line (from 1) of every dotted key of a JSON object. ``text`` must be valid JSON."""
    lines: dict[str, int] = {}
    sections, dotted, last, last_line = [""], "", "", 1
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}:]', text):
        if token[0] == "{":
            sections.append(dotted + "." if dotted else "")
        elif token[0] == "}":
            sections.pop()
        elif token[0] == ":":
            dotted = sections[-1] + last
            lines[dotted] = last_line
        else:
            last, last_line = json.loads(token[0]), text.count("\n", 0, token.start()) + 1
    return lines


def nearest_key(key: str) -> str | None:
    """The valid dotted key that ``key`` was most likely meant to be; a bare name may mean several."""
    keys = _keys(Config)
    section, _, name = key.rpartition(".")
    namesakes = [other for other in keys if _leaf(other) == name]
    if namesakes:
        return _closest(key, namesakes, cutoff=0.0) if section else " or ".join(namesakes)
    siblings = {_leaf(other): other for other in _siblings(key)}
    if near := _closest(name, siblings):
        return siblings[near]
    elsewhere = {_leaf(other): other for other in keys}
    near = _closest(name, elsewhere)
    return elsewhere[near] if near else None


def _closest(wanted: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(wanted, list(candidates), n=1, cutoff=cutoff)), None)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _describe(problem: ErrorDetails) -> tuple[str, str]:
    """The dotted key and a sentence about it."""
    key = ".".join(str(part) for part in problem["loc"])
    kind, given = problem["type"], problem["input"]
    conflict = problem.get("ctx", {}).get("error")
    if isinstance(conflict, Conflict):
        return conflict.key, str(conflict)
    if kind == "extra_forbidden":
        there_are = f"there are {', '.join(_siblings(key))}"
        while isinstance(given, dict) and len(given) == 1:  # the key below an unknown section says more
            name, given = next(iter(given.items()))
            key = f"{key}.{name}"
        near = nearest_key(key)
        return key, f"{key}: no such key; {f'the nearest is {near}' if near else there_are}"
    if kind == "literal_error":
        expected, near = problem["ctx"]["expected"], _nearest_choice(problem)
        return key, f"{key}: expected {expected}, got {json.dumps(given)}{near}"
    return key, f"{key}: {_expectation(problem)}, got {json.dumps(given)}{_rewritten(key, kind, given)}"


def _expectation(problem: ErrorDetails) -> str:
    if problem["type"] in _EXPECTED:
        return f"expected {_EXPECTED[problem['type']]}"
    message = problem["msg"]
    if message.startswith("Input should be "):
        return f"expected a value {message.removeprefix('Input should be ')}"
    return message[0].lower() + message[1:]


def _rewritten(key: str, kind: str, given: Any) -> str:
    """How to write a value that JSON read as another type than the one meant."""
    if kind == "string_type" and isinstance(given, int | float):
        return f"; write {key}='{json.dumps(str(given))}' for the text"
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return f"; write {int(given)}"
    return ""


def _nearest_choice(problem: ErrorDetails) -> str:
    near = _closest(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"; the nearest is {near}" if near else ""


def _siblings(key: str) -> list[str]:
    section = key.rpartition(".")[0]
    return [other for other in _keys(Config) if other.rpartition(".")[0] == section]


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key, sections included, in the order of the schema."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section: Any = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += _keys(section, f"{prefix}{name}.")
    return keys
