"""Values as JSON, and the difference between two sets of them."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from typing import Any

TAG = "$cloakroom"
UNKNOWN: Any = object()
"""Stands for the old value of a key that was written without being read."""


class Tagged(dict):  # type: ignore[type-arg]
    """A value that only a site in another language can use; it is kept as it is.

    If it is changed, it is a plain dict: else user input that reached it could be read as an object elsewhere.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._form = _text(value)

    @property
    def is_unchanged(self) -> bool:
        return _text(self) == self._form


def to_json(value: Any) -> Any:
    """Returns the JSON form of a value."""
    if isinstance(value, (bytes, bytearray)):
        return {TAG: {"bytes": base64.b64encode(value).decode()}}
    if isinstance(value, dict) and TAG in value and not (isinstance(value, Tagged) and value.is_unchanged):
        return {TAG: {"json": value}}
    return value


def from_json(value: Any) -> Any:
    """Returns the value of a JSON form."""
    if not isinstance(value, dict) or TAG not in value:
        return value
    form = value[TAG]
    if isinstance(form, dict) and "json" in form:
        return form["json"]
    if isinstance(form, dict) and isinstance(form.get("bytes"), str):
        return base64.b64decode(form["bytes"], validate=True)
    return Tagged(value)


def dumps(value: Any) -> str:
    """Returns JSON in ASCII, as it may be in a header."""
    # json does not escape DEL, which a header cannot have.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f")


def is_empty(value: Any) -> bool:
    """Returns whether a value is not worth a session of its own: null and empty containers."""
    return value is None or (isinstance(value, (list, dict)) and not value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_tagged(value: Any) -> bool:
    """Returns whether an object is one value as a whole."""
    return isinstance(value, dict) and TAG in value


def is_plain(value: Any) -> bool:
    """Returns whether a value comes back from JSON as it is."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(member) for key, member in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def _has_null(value: Any) -> bool:
    """Returns whether a merge would lose nulls of this value. Lists are stored as a whole, nulls included."""
    return value is None or (isinstance(value, dict) and any(map(_has_null, value.values())))


def _begins_with(longer: list[Any], shorter: list[Any]) -> bool:
    return len(longer) > len(shorter) and _text(longer[: len(shorter)]) == _text(shorter)


class _CannotMerge(Exception):
    """A member became null, or is a tagged value."""


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the members that differ, as RFC 7396 merges them."""
    changed: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name, UNKNOWN)
        if before is not UNKNOWN and _text(before) == _text(value):
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            if _is_tagged(before) or _is_tagged(value):
                raise _CannotMerge
            changed[name] = _merge(before, value)
        elif _has_null(value):
            raise _CannotMerge
        else:
            changed[name] = value
    return changed


def changes(old: Mapping[str, Any], new: Mapping[str, Any], is_whole: bool = False) -> dict[str, Any]:
    """Returns the members of a patch that turn old values into new ones and lose no parallel update.

    A list that has grown at its end is appended to, and members of an object are merged. A missing value counts as
    empty, so that parallel requests that each start a list are both kept. With `is_whole`, values are set whole.
    """
    patch: dict[str, Any] = {}
    if removed := sorted(key for key in old if key not in new):
        patch["remove"] = removed
    for key, value in new.items():
        before = old.get(key, type(value)()) if isinstance(value, (list, dict)) and value else old.get(key, UNKNOWN)
        if key in old and before is not UNKNOWN and _text(before) == _text(value):
            continue
        if is_whole:
            patch.setdefault("set", {})[key] = value
            continue
        if isinstance(before, list) and isinstance(value, list) and _begins_with(value, before):
            patch.setdefault("append", {})[key] = value[len(before) :]
            continue
        if isinstance(before, dict) and isinstance(value, dict) and not _is_tagged(before) and not _is_tagged(value):
            with contextlib.suppress(_CannotMerge):
                patch.setdefault("merge", {})[key] = _merge(before, value)
                continue
        patch.setdefault("set", {})[key] = value
    return patch
