"""What a config key means, read off the schema: ``diffsiam config explain``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import Config
from engine.config_errors import nearest_key
from engine.errors import UsageError

Schema = Mapping[str, Any]

_SIGNS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
}


@dataclass(frozen=True)
class Entry:
    """One key: its dotted name, its type and default as one writes them in JSON, and what it does."""

    key: str
    type: str
    default: str
    description: str


def explain(key: str | None = None) -> list[Entry]:
    """The entry of a key; those of a section, the section first; all sections and top-level keys without one.

    Raises:
        UsageError: there is no such key; names the nearest.
    """
    known = _entries()
    if key is None:
        return [entry for name, entry in known.items() if "." not in name]
    if key not in known:
        near = nearest_key(key)
        raise UsageError(
            f"{key}: no such key; " + (f"the nearest is {near}" if near else "see diffsiam config explain")
        )
    return [entry for name, entry in known.items() if name == key or name.startswith(f"{key}.")]


def leaves() -> list[str]:
    """All keys that take a value, dotted, in the order of the schema."""
    return [name for name, entry in _entries().items() if entry.type != "section"]


def _entries() -> dict[str, Entry]:
    """Every key in the order of the schema, a section before its keys."""
    schema = Config.model_json_schema()
    entries = {}
    for name, field in schema["properties"].items():
        if "$ref" not in field:
            entries[name] = _entry(name, field)
            continue
        section = schema["$defs"][field["$ref"].rpartition("/")[2]]
        entries[name] = Entry(name, "section", "", _one_line(section["description"]))
        for below, inner in section["properties"].items():
            entries[f"{name}.{below}"] = _entry(f"{name}.{below}", inner)
    return entries


def _entry(key: str, field: Schema) -> Entry:
    return Entry(key, _type(field), json.dumps(field["default"]), _one_line(field["description"]))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _type(field: Schema) -> str:
    if "enum" in field:
        return " | ".join(json.dumps(choice) for choice in field["enum"])
    if "anyOf" in field:
        return " | ".join(_type(choice) for choice in field["anyOf"])
    if "prefixItems" in field:
        return f"[{', '.join(_type(item) for item in field['prefixItems'])}]"
    if field["type"] == "array":
        return f"[{_type(field['items'])}, ...]"
    bounds = [f"{sign} {field[name]}" for name, sign in _SIGNS.items() if name in field]
    return f"{field['type']} {' and '.join(bounds)}".rstrip()
