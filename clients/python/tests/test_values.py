"""The difference between two sets of values, and values that JSON cannot hold."""

import copy
import pickle

import pytest
import support  # noqa: F401

from cloakroom import Tagged
from cloakroom.values import UNKNOWN, changes, dumps, from_json, is_empty, to_json

CHANGES = [
    ({"a": 1}, {"a": 1}, {}),
    ({"a": 1}, {"a": 2}, {"set": {"a": 2}}),
    ({"a": 1}, {"a": True}, {"set": {"a": True}}),
    ({"a": 1}, {"a": 1.0}, {"set": {"a": 1.0}}),
    ({"a": 1}, {"a": None}, {"set": {"a": None}}),
    ({"b": 1, "a": 1, "c": 1}, {"c": 1}, {"remove": ["a", "b"]}),
    ({}, {"a": 0, "b": ""}, {"set": {"a": 0, "b": ""}}),
    # Lists.
    ({"l": [1]}, {"l": [1, 2, 3]}, {"append": {"l": [2, 3]}}),
    ({"l": [1]}, {"l": [True, 2]}, {"set": {"l": [True, 2]}}),
    ({"l": [1, 2]}, {"l": [1]}, {"set": {"l": [1]}}),
    ({"l": [1]}, {"l": [0, 1]}, {"set": {"l": [0, 1]}}),
    ({"l": []}, {"l": [None]}, {"append": {"l": [None]}}),
    ({}, {"l": [1]}, {"append": {"l": [1]}}),
    ({}, {"l": []}, {"set": {"l": []}}),
    ({"l": None}, {"l": [1]}, {"set": {"l": [1]}}),
    ({"l": UNKNOWN}, {"l": [1]}, {"set": {"l": [1]}}),
    # Objects.
    ({"o": {"a": 1, "b": 2}}, {"o": {"b": 2, "a": 1}}, {}),
    ({"o": {"a": 1, "b": 2}}, {"o": {"a": 3, "b": 2}}, {"merge": {"o": {"a": 3}}}),
    ({"o": {"a": 1, "b": 2}}, {"o": {"a": 1}}, {"merge": {"o": {"b": None}}}),
    ({"o": {"a": {"x": 1, "y": 2}}}, {"o": {"a": {"x": 1}}}, {"merge": {"o": {"a": {"y": None}}}}),
    ({"o": {"a": None, "b": 1}}, {"o": {"a": None, "b": 2}}, {"merge": {"o": {"b": 2}}}),
    ({"o": {"a": 1}}, {"o": {"a": None}}, {"set": {"o": {"a": None}}}),
    ({"o": {"a": 1}}, {"o": {"a": 1, "b": {"c": None}}}, {"set": {"o": {"a": 1, "b": {"c": None}}}}),
    ({"o": {"a": 1}}, {"o": {"a": [None]}}, {"merge": {"o": {"a": [None]}}}),
    ({"o": {"a": 1}}, {"o": {}}, {"merge": {"o": {"a": None}}}),
    ({"o": {"a": {}}}, {"o": {"a": 1}}, {"merge": {"o": {"a": 1}}}),
    ({}, {"o": {"a": 1}}, {"merge": {"o": {"a": 1}}}),
    ({}, {"o": {"a": None}}, {"set": {"o": {"a": None}}}),
    ({}, {"o": {}}, {"set": {"o": {}}}),
    ({"o": []}, {"o": {"a": 1}}, {"set": {"o": {"a": 1}}}),
    ({"o": {"a": 1}}, {"o": [1]}, {"set": {"o": [1]}}),
    ({"o": UNKNOWN}, {"o": {"a": 1}}, {"set": {"o": {"a": 1}}}),
    # Tagged values are one value.
    (
        {"t": {"$cloakroom": {"bytes": "x"}}},
        {"t": {"$cloakroom": {"bytes": "y"}}},
        {"set": {"t": {"$cloakroom": {"bytes": "y"}}}},
    ),
    ({}, {"t": {"$cloakroom": {"php": "x"}}}, {"set": {"t": {"$cloakroom": {"php": "x"}}}}),
    ({"t": {"$cloakroom": {"php": "x"}}}, {"t": {"a": 1}}, {"set": {"t": {"a": 1}}}),
    ({"o": {" d": "x"}}, {"o": {" d": "x", "a": 1}}, {"merge": {"o": {"a": 1}}}),
]


@pytest.mark.parametrize(("old", "new", "patch"), CHANGES)
def test_changes(old, new, patch):
    assert changes(old, new) == patch


@pytest.mark.parametrize("value", [b"", b"\x00\xff", {"$cloakroom": 1}, {"$cloakroom": {"php": "x"}, "a": 1}])
def test_values_that_json_cannot_hold_round_trip(value):
    assert from_json(to_json(value)) == value
    assert type(from_json(to_json(value))) is type(value)


def test_values_of_other_languages_are_kept():
    tagged = {"$cloakroom": {"php": "TzowOiIiOjA6e30="}}
    found = from_json(tagged)
    assert isinstance(found, Tagged)
    assert to_json(found) == tagged


def test_a_changed_value_of_another_language_is_plain():
    for copied in [lambda found: found, copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))]:
        found = copied(from_json({"$cloakroom": {"php": "TzowOiIiOjA6e30="}}))
        assert to_json(found) == {"$cloakroom": {"php": "TzowOiIiOjA6e30="}}
        found["$cloakroom"]["php"] = "evil"
        assert to_json(found) == {"$cloakroom": {"json": {"$cloakroom": {"php": "evil"}}}}


def test_headers_are_ascii_without_controls():
    text = dumps({"a": "Zoë \U0001f600 \x7f \n"})
    assert text.isascii()
    assert text.isprintable()


def test_only_null_and_empty_containers_are_empty():
    assert all(map(is_empty, [None, [], {}]))
    assert not any(map(is_empty, [0, False, "", [None], 0.0]))
