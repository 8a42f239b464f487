"""Typed fields of JSON objects: what each method accepts, and errors that name file and path."""

from __future__ import annotations

import pytest

from knobctl.data.errors import CheckpointError
from knobctl.data.files.json_fields import JsonFields

RECORD = {
    "name": "m",
    "flag": False,
    "size": 3,
    "rate": 0.5,
    "nothing": None,
    "huge": 10**400,
    "grid": [[1, 2], [3, "4"]],
    "inner": {"size": 0, "deep": {"flag": True}},
}


@pytest.fixture
def fields():
    return JsonFields(RECORD, "a.json", CheckpointError)


def test_values_are_returned_as_they_are(fields):
    assert fields.text("name") == "m"
    assert fields.boolean("flag") is False
    assert fields.integer("size", 1, 3) == fields.count("size") == 3
    assert (fields.number("rate"), fields.positive("size")) == (0.5, 3.0)
    assert fields.fields("inner").fields("deep").boolean("flag")
    assert fields.record("inner") == RECORD["inner"]
    assert fields.optional("nothing", JsonFields.text) is fields.optional("absent", JsonFields.text) is None
    assert fields.one_of("absent", (1, None), default=None) is None


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda f: f.text("absent"), '"absent" is missing'),
        (lambda f: f.text("nothing"), '"nothing" must be a string, not None'),
        (lambda f: f.integer("flag"), '"flag" must be a whole number, not False'),
        (lambda f: f.integer("rate"), '"rate" must be a whole number, not 0.5'),
        (lambda f: f.integer("size", 4), '"size" must be a whole number of at least 4, not 3'),
        (lambda f: f.integer("size", 1, 2), '"size" must be a whole number of at least 1 and at most 2, not 3'),
        (lambda f: f.integer("size", maximum=2), '"size" must be a whole number of at most 2, not 3'),
        (lambda f: f.boolean("size"), '"size" must be true or false, not 3'),
        (lambda f: f.number("flag"), '"flag" must be a number, not False'),
        (lambda f: f.number("huge"), '"huge" is too large: 1000'),
        (lambda f: f.fields("inner").positive("size"), '"inner.size" must be a positive number, not 0'),
        (lambda f: f.fields("inner").fields("deep").text("flag"), '"inner.deep.flag" must be a string, not True'),
        (lambda f: f.fields("size"), '"size" must be an object, not 3'),
        (lambda f: f.each("size", JsonFields.count), '"size" must be a list, not 3'),
        (
            lambda f: f.each("grid", lambda row, name: row.each(name, JsonFields.integer)),
            "\"grid[1][1]\" must be a whole number, not '4'",
        ),
        (lambda f: f.one_of("flag", (0,)), '"flag" is False; supported: 0'),
        (lambda f: f.one_of("absent", (0,)), '"absent" is missing'),
        (
            lambda f: f.refuse_others({"name", "flag", "size", "rate", "nothing", "huge", "grid"}),
            '"inner" is not known',
        ),
    ],
)
def test_errors_name_the_file_and_the_path(fields, read, message):
    with pytest.raises(CheckpointError) as error:
        read(fields)
    assert str(error.value).startswith(f"a.json: {message}")


def test_what_was_read_or_begins_with_an_underscore_is_not_refused():
    fields = JsonFields({"a": 1, "b": None, "_hub": 2}, "a.json", CheckpointError)
    fields.integer("a")
    fields.optional("b", JsonFields.text)
    fields.refuse_others(())


def test_a_source_that_is_not_an_object():
    with pytest.raises(CheckpointError, match=r"^a\.json must be an object, not \[1\]$"):
        JsonFields([1], "a.json", CheckpointError)


def test_untrusted_text_in_a_message_is_short_and_printable():
    with pytest.raises(CheckpointError) as error:
        JsonFields({"size": "\x1b[31m" * 100}, "a.json", CheckpointError).integer("size")
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 150
