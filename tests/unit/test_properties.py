"""Properties: defaults, checks, handlers, and the text of a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import DeclarationError
from vdcm.parent import Parent
from vdcm.properties import RESERVED, Property, PropertyError, properties_of
from vdcm.vdev import Vdev


class Base:
    count = Property(3, minimum=1, maximum=9)
    label = Property("none")


class Thing(Base):
    lit = Property(False)
    wide = Property(0)
    label = Property("some")
    mode = Property("fast", choices=("fast", "slow"))

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_set_count(self, value: int) -> None:
        assert self.count == value  # in place already
        self.seen.append(value)


def test_defaults_and_values_are_each_instances_own() -> None:
    one, other = Thing(), Thing()
    one.count = 5
    assert (one.count, other.count, one.label, one.lit) == (5, 3, "some", False)
    assert one.seen == [5] and other.seen == []
    assert Thing.count.maximum == 9


def test_a_class_has_its_bases_properties() -> None:
    assert sorted(properties_of(Thing)) == ["count", "label", "lit", "mode", "wide"]
    assert properties_of(Thing)["label"].default == "some"
    assert properties_of(Base)["label"].default == "none"
    assert properties_of(int) == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count takes 1 to 9, not 0$"),
        ("count", 10, r"count takes 1 to 9, not 10 \(0xa\)"),
        ("count", "5", "count takes a whole number, not '5'"),
        ("count", True, "count takes a whole number, not True"),
        ("count", 5.0, "count takes a whole number, not 5.0"),
        ("count", None, "count takes a whole number, not nothing"),
        ("wide", -1, "wide takes 0 or more, not -1"),
        ("lit", 1, "lit takes true or false, not 1"),
        ("label", 7, "label takes text, not 7"),
        ("mode", "lazy", "mode takes fast or slow, not 'lazy'"),
        ("count", "5" * 999, r"not '5{79}\.\.\.$"),
        ("count", 1 << 999, r"not 0x80{77}\.\.\.$"),
    ],
)
def test_wrong_values_change_nothing(name: str, value: object, message: str) -> None:
    thing = Thing()
    with pytest.raises(PropertyError, match=message):
        setattr(thing, name, value)
    assert getattr(thing, name) == properties_of(Thing)[name].default
    assert thing.seen == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "0x7", 7),
        ("count", "0b11", 3),
        ("lit", "on", True),
        ("lit", "False", False),
        ("label", "", ""),
        ("label", "0x7", "0x7"),
    ],
)
def test_text_of_a_command_line(name: str, text: str, value: object) -> None:
    assert properties_of(Thing)[name].parse(text) == value


@pytest.mark.parametrize(("name", "text"), [("count", "seven"), ("count", ""), ("lit", "1")])
def test_text_that_is_no_value(name: str, text: str) -> None:
    with pytest.raises(PropertyError):
        properties_of(Thing)[name].parse(text)


@given(st.integers(), st.sampled_from([str, hex, oct, bin]))
def test_a_number_in_any_notation_is_taken_if_it_is_in_range(value: int, write: object) -> None:
    text = write(value)  # type: ignore[operator]
    prop = properties_of(Thing)["count"]
    if 1 <= value <= 9:
        assert prop.parse(text) == value
    else:
        with pytest.raises(PropertyError):
            prop.parse(text)


@given(st.text())
def test_any_text_is_a_value_or_a_property_error(text: str) -> None:
    for name, prop in properties_of(Thing).items():
        try:
            value = prop.parse(text)
        except PropertyError:
            assert name != "label"
        else:
            prop.check(value)


def test_what_the_property_itself_takes_is_checked() -> None:
    with pytest.raises(PropertyError, match="whole number"):
        Property(3).check(object())


@pytest.mark.parametrize("name", sorted(RESERVED))
@pytest.mark.parametrize("base", [Vdev, Parent])
def test_a_name_that_a_definition_needs_is_refused_when_the_class_is_made(
    base: type, name: str
) -> None:
    with pytest.raises(DeclarationError, match=f"Odd: a property cannot be called {name}, "):
        type("Odd", (base,), {name: Property(0)})
    mixin = type("Mixin", (), {name: Property(0)})
    with pytest.raises(DeclarationError, match=f"Odd: a property cannot be called {name}, "):
        type("Odd", (mixin, base), {})
    type("Even", (base,), {f"{name}s_": Property(0)})
