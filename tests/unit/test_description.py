"""Templates and pointers of described providers: values are put in, nothing is evaluated."""

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batch.providers.description import fill, fill_path, pointed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
VALUES = {
    "model": "m-1",
    "client_ref": "r",
    "params": {"prompt": "a {model} toll", "n": 2, "seed": 0, "empty": "", "sizes": [1, 2]},
    "links": {"status": "https://a.example/x?y=1"},
}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{model}", "m-1"),
        ("{params.n}", 2),
        ("{params.seed}", 0),
        ("{params.sizes}", [1, 2]),
        ("{params}", VALUES["params"]),
        ("n={params.n} of {model}", "n=2 of m-1"),
        ("sizes {params.sizes}", "sizes [1,2]"),
        ("{params.prompt}", "a {model} toll"),  # a value is no template
        ("say {params.prompt}", "say a {model} toll"),
        ("{params.nothing}", None),
        ("{params.empty}", None),
        ("<{params.nothing}>", "<>"),
        ("{unknown} {} {Model} {0}", " {} {Model} {0}"),
        ("{model.upper}", None),
        (7, 7),
        (True, True),
    ],
)
def test_placeholders(template, filled):
    assert fill(template, VALUES) == filled


def test_what_has_no_value_is_left_out():
    template = {
        "a": "{params.nothing}",
        "b": ["{params.n}", "{params.empty}"],
        "c": {"d": "{kind}"},
    }
    assert fill(template, VALUES) == {"b": [2], "c": {}}


@given(value=JSON, other=st.text(max_size=30))
def test_values_arrive_as_they_are(value, other):
    values = {"params": {"x": value, "y": other}}
    filled = fill({"x": "{params.x}", "y": "<{params.y}>"}, values)
    assert filled["y"] == f"<{other}>"
    assert filled.get("x") == (None if value == "" else value)


@given(st.text(max_size=60))
def test_a_value_stays_inside_its_part_of_a_path(value):
    path = fill_path("/jobs/{id}?ref={client_ref}", {"id": value, "client_ref": value})
    parts = urlsplit("https://a.example" + path)
    assert parts.path.startswith("/jobs/")
    assert parts.path.count("/") == 2
    assert unquote(parts.path.removeprefix("/jobs/")) == value
    assert unquote(parts.query.removeprefix("ref=")) == value
    assert parts.fragment == ""


TOLD = {"job": {"id": 7, "a/b": 1, "c~d": 2, "none": None}, "files": [{"u": "x"}, {}, {"u": "y"}]}


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/job/id", [7]),
        ("/job/a~1b", [1]),
        ("/job/c~0d", [2]),
        ("/job/none", []),
        ("/job/none/x", []),
        ("/files/*/u", ["x", "y"]),
        ("/files/2/u", ["y"]),
        ("/files/9/u", []),
        ("/files/-1/u", []),
        ("/job/*", []),
        ("", [TOLD]),
        ("/nothing/at/all", []),
    ],
)
def test_pointers(pointer, found):
    assert pointed(TOLD, pointer) == found


@given(value=JSON, pointer=st.lists(st.text(max_size=4), max_size=4).map("/".join))
def test_any_pointer_into_anything_finds_something_or_nothing(value, pointer):
    assert isinstance(pointed(value, "/" + pointer), list)
