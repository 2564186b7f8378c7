"""Definition files: what they mean, and what is said of those that are wrong."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import BOTH, HOUSE, House

from vdcm.definition import (
    Definition,
    checked,
    choices,
    file,
    implicit_parents,
    load,
    places,
    runtime_folder,
    state_folder,
    vdev_from_json,
)
from vdcm.errors import DefinitionError, VdcmError

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is made in it, and a folder of the test's own may be too long for sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/nobody")
    return Path("/run/nobody/vdcm")


def read(folder: Path, text: str | bytes, models: object = HOUSE) -> Definition:
    path = folder / "d.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, models)  # type: ignore[arg-type]


def mistakes(folder: Path, text: str | bytes, models: object = HOUSE) -> list[str]:
    """The lines of the error, without the folder's name."""
    with pytest.raises(DefinitionError) as raised:
        read(folder, text, models)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def mistake(folder: Path, text: str | bytes, models: object = HOUSE) -> str:
    lines = mistakes(folder, text, models)
    assert len(lines) == 1
    return lines[0]


# What they mean


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    made = read(
        tmp_path,
        """
parents:
  home: {model: house, storeys: 3}
vdevs:
  lamp0:
    type: lamp
    parent: home
    socket: sub/lamp.sock
    level: 0x0f
    label: "on"
    lit: true
control: /elsewhere/c.sock
""",
    )
    (parent,) = made.parents
    assert not parent.implicit
    (vdev,) = made.vdevs
    assert (parent.name, parent.model, parent.factory) == ("home", "house", House)
    assert parent.properties == {"storeys": 3}
    assert (vdev.name, vdev.type, vdev.parents) == ("lamp0", "lamp", ("home",))
    assert vdev.socket == tmp_path / "sub/lamp.sock"
    assert vdev.properties == {"level": 15, "label": "on", "lit": True}
    assert made.control == Path("/elsewhere/c.sock")


def test_the_shortest_one_has_defaults(tmp_path: Path, runtime: Path) -> None:
    made = read(tmp_path, "vdevs: {a: {type: lamp}, b: {type: lamp}}")
    assert [parent.name for parent in made.parents] == ["house"]
    assert [vdev.parents for vdev in made.vdevs] == [("house",), ("house",)]
    assert [vdev.auto for vdev in made.vdevs] == [True, True]
    assert [vdev.path for vdev in made.vdevs] == [runtime / "a.sock", runtime / "b.sock"]
    assert made.control == runtime / "control.sock"


def test_the_folder_of_the_file_counts_not_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/d.yaml").write_text("vdevs: {a: {type: lamp, socket: a.sock}}")
    assert load(Path("sub/d.yaml"), HOUSE).vdevs[0].socket == tmp_path / "sub/a.sock"


def test_an_alias_is_what_it_stands_for(tmp_path: Path, runtime: Path) -> None:
    made = read(tmp_path, "vdevs:\n  a: &lamp {type: lamp, level: 3}\n  b: *lamp\n")
    assert [vdev.properties for vdev in made.vdevs] == [{"level": 3}] * 2
    assert [vdev.path.parent for vdev in made.vdevs] == [runtime] * 2


def test_a_parent_named_as_the_model_is_the_implicit_one(tmp_path: Path) -> None:
    made = read(tmp_path, "parents: {house: {model: house, storeys: 2}}\nvdevs: {a: {type: lamp}}")
    assert [parent.properties for parent in made.parents] == [{"storeys": 2}]


# What is said of wrong ones


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "d.yaml:1: is empty"),
        ("# nothing\n", "d.yaml:1: is empty"),
        ("- a\n", "d.yaml:1: a definition file is a mapping (KEY: VALUE), not a list"),
        ("vdevs: [a]\n", "d.yaml:1: vdevs is a mapping (KEY: VALUE), not a list"),
        ("vdevs:\n  a: {type: [lamp}\n", "d.yaml:2: is not YAML: "),
        (
            "vdevs: {}\n---\n{}\n",
            "d.yaml:2: is not YAML: expected a single document in the stream but found another",
        ),
        ("vdevs: {a: *nobody}\n", "d.yaml:1: is not YAML: found undefined alias"),
        (
            "vdevs:\n  a:\n    type:lamp\n    level: 3\n",
            "d.yaml:4: is not YAML: mapping values are not allowed here: is there a space",
        ),
        (
            "vdevs:\n\ta: {type: lamp}\n",
            "d.yaml:2: is not YAML: found character '\\t' that cannot start any token while "
            "scanning for the next token: indent with spaces",
        ),
        ("vdevs:\n", "d.yaml:1: vdevs has no VDEV"),
        ("vdevs: {a: 3}", "d.yaml:1: VDEV a is a mapping (KEY: VALUE), not '3'"),
        (
            "vdevs: {a: {type: lamp}}\nvdev: {}\n",
            "d.yaml:2: unknown key vdev (did you mean vdevs? known: control, parents, vdevs)",
        ),
        ("vdevs:\n  a: {type: lamp}\n  a: {type: lamp}\n", "d.yaml:3: a is here twice, first in"),
        ("vdevs:\n  a:\n    type: lamp\n    type: lamp\n", "d.yaml:4: type is here twice"),
        (
            "vdevs:\n  a: {type: lmap}\n",
            "d.yaml:2: unknown type lmap (did you mean lamp? known: broken-lamp, lamp)",
        ),
        ("vdevs: {a: {level: 3}}", "d.yaml:1: VDEV a needs a type (known: broken-lamp, lamp)"),
        (
            "vdevs:\n  a: {\n    typ: lamp}\n",
            "d.yaml:3: unknown key typ (did you mean type?)",
        ),
        ("vdevs: {a: {type: lam}}", "d.yaml:1: unknown type lam (did you mean lamp?"),
        ("vdevs: {a: {type: }}", "d.yaml:1: type takes the name of a type, not nothing"),
        ("vdevs: {a: {type: [x]}}", "d.yaml:1: type takes the name of a type, not a list"),
        (
            "vdevs:\n  a: {type: lamp,\n    parent: home}\n",
            "d.yaml:3: unknown parent home (known: house)",
        ),
        (
            "parents:\n  home: {model: hose}\nvdevs: {a: {type: lamp, parent: home}}",
            "d.yaml:2: unknown model hose (did you mean house? known: house)",
        ),
        ("parents: {home: {}}\nvdevs: {a: {type: lamp}}", "d.yaml:1: parent home needs a model"),
        (
            "parents: {home: {model: house, stories: 2}}\nvdevs: {a: {type: lamp}}",
            "d.yaml:1: unknown key of model house: stories "
            "(did you mean storeys? known: model, storeys)",
        ),
        ("vdevs: {a: {type: lamp, levl: 1}}", "d.yaml:1: unknown key of type lamp: levl (did you"),
        ("vdevs: {a: {type: lamp, model: x}}", "d.yaml:1: unknown key of type lamp: model"),
        ("vdevs: {a: {type: lamp, name: x}}", "d.yaml:1: unknown key of type lamp: name"),
        ("vdevs: {a: {type: lamp, auto: 1}}", "d.yaml:1: auto takes true or false, not 1"),
        ("vdevs: {a: {type: lamp, auto: }}", "d.yaml:1: auto takes true or false, not nothing"),
        ("vdevs: {a: {type: lamp, uuid: 1}}", "d.yaml:1: '1' is no UUID: 32 hexadecimal digits"),
        (
            f"vdevs: {{a: {{type: lamp, uuid: {UUID}}},\nb: {{type: lamp, uuid: {UUID.upper()}}}}}",
            "d.yaml:2: b has the same UUID as a",
        ),
        ("vdevs: {a: {type: lamp, parents: []}}", "d.yaml:1: parents has no parent"),
        ("vdevs: {a: {type: lamp, parents: [x]}}", "d.yaml:1: unknown parent x (known: house)"),
        ("vdevs: {a: {type: lamp, parents: [{}]}}", "d.yaml:1: parents takes the name of a parent"),
        ("vdevs: {a: {type: lamp, parents: [house, house]}}", "d.yaml:1: parent house is here tw"),
        ("vdevs: {a: {type: lamp, parent: [house]}}", "d.yaml:1: parent takes the name of a par"),
        (
            "vdevs: {a: {type: lamp, parent: house, parents: [house]}}",
            "d.yaml:1: parent and parents",
        ),
        ("vdevs: {a: {type: lamp, <<: {}}}", "d.yaml:1: unknown key of type lamp: <<"),
        ("vdevs: {a: {type: lamp, [b]: 1}}", "d.yaml:1: a key is a word, not a list"),
        ("vdevs: {-a: {type: lamp}}", "d.yaml:1: '-a' is no name"),
        ("vdevs: {a/b: {type: lamp}}", "d.yaml:1: 'a/b' is no name"),
        ("vdevs: {'': {type: lamp}}", "d.yaml:1: '' is no name"),
        ("vdevs: {" + "a" * 65 + ": {type: lamp}}", "d.yaml:1: '" + "a" * 65 + "' is no name"),
        (b"vdevs:\n  a\xff: {}\n", "d.yaml:2: is not UTF-8"),
        ("vdevs:\n\n  a\x01: {}\n", "d.yaml:3: has a character that YAML forbids: U+0001"),
        ("vdevs: " + "[" * 5000, "d.yaml:1: is nested too deeply"),
        ("#" * (file.FILE_LIMIT + 1), "d.yaml:1: is longer than"),
    ],
)
def test_mistakes(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert mistake(tmp_path, text).startswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("level: 0x100", "level takes 0 to 255 (0xff), not 256 (0x100)"),
        ("level: -1", "level takes 0 to 255 (0xff), not -1"),
        ("level: true", "level takes a whole number, not True"),
        ("level: 'x'", "level takes a whole number, not 'x'"),
        ("level: 1.5", "level takes no float such as '1.5'"),
        ("level:", "level takes a whole number, not nothing"),
        ("lit: ~", "lit takes true or false, not nothing"),
        ("level: {}", "level takes one value, not a mapping"),
        ("level: [1]", "level takes one value, not a list"),
        ("level: 0x_", "level: '0x_' is no value"),
        ("level: " + "9" * 5000, "level: "),
        ("level: !!int x", "level: 'x' is no value"),
        ("level: !!python/name:os.system ''", "level takes no "),
        ("lit: 1", "lit takes true or false, not 1"),
        ("lit: !!bool x", "lit: 'x' is no value"),
        ("label: 1", "label takes text, not 1: write it in quotes"),
        ("label: off", "label takes text, not False: write it in quotes"),
        ("label: 2001-01-01", "label takes no timestamp such as '2001-01-01': write it in quotes"),
        ("label: 2001-99-99", "label takes no timestamp"),
    ],
)
def test_wrong_values(tmp_path: Path, value: str, said: str) -> None:
    text = f"vdevs:\n  a:\n    type: lamp\n    {value}\n"
    assert mistake(tmp_path, text).startswith(f"d.yaml:4: {said}")


def test_all_mistakes_are_said_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
parents:
  home: {model: cave}
vdevs:
  a: {type: lamp, level: 999}
  b: {type: lamp, parent: home, wiring: 1}
  c: {type: candle}
contrl: x
"""
    assert [line.split(" (")[0] for line in mistakes(tmp_path, text)] == [
        "d.yaml:2: unknown model cave",
        "d.yaml:4: level takes 0 to 255",
        "d.yaml:6: unknown type candle",
        "d.yaml:7: unknown key contrl",
    ]


def test_the_error_carries_the_place(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as raised:
        read(tmp_path, "vdevs:\n  a: {type: candle}\n")
    assert raised.value.file == tmp_path / "d.yaml"
    assert (raised.value.line, raised.value.column) == (2, 13)


def test_a_model_with_a_parent_has_no_implicit_one(tmp_path: Path) -> None:
    made = read(tmp_path, "parents: {s: {model: street}}\nvdevs: {a: {type: street-lamp}}", BOTH)
    assert [(parent.name, parent.implicit) for parent in made.parents] == [
        ("s", False),
        ("house", True),
    ]
    assert made.vdevs[0].parents == ("s",)


def test_several_parents(tmp_path: Path) -> None:
    text = (
        "parents: {s: {model: street}, t: {model: street}}\n"
        "vdevs: {a: {type: street-lamp, parents: [t, s]}}"
    )
    assert read(tmp_path, text, BOTH).vdevs[0].parents == ("t", "s")
    said = mistake(tmp_path, text.replace("parents: [t, s]", "auto: false"), BOTH)
    assert said.startswith("d.yaml:2: several parents have the type street-lamp: ")


def test_uuids(tmp_path: Path) -> None:
    text = f"vdevs: {{a: {{type: lamp, uuid: {UUID.upper()}}}, b: {{type: lamp, auto: false}}}}"
    a, b = read(tmp_path, text).vdevs
    assert (a.uuid, a.auto, b.auto) == (UUID, True, False)
    assert read(tmp_path, text).vdevs[1].uuid == b.uuid  # the same each time
    (tmp_path / "sub").mkdir()
    assert read(tmp_path / "sub", text).vdevs[1].uuid != b.uuid


def test_a_file_without_vdevs(tmp_path: Path) -> None:
    made = read(tmp_path, "parents: {home: {model: house, storeys: 2}}")
    assert [parent.name for parent in made.parents] == ["home"]
    assert made.vdevs == ()


def test_a_type_of_several_models_needs_a_parent(tmp_path: Path) -> None:
    said = mistake(tmp_path, "vdevs: {a: {type: lamp}}", BOTH)
    assert said == (
        "d.yaml:1: several parents have the type lamp: give VDEV a a parent, house or street"
    )
    text = "parents: {s: {model: street}}\nvdevs: {a: {type: lamp, parent: s}}"
    assert read(tmp_path, text, BOTH).vdevs[0].parents == ("s",)


def test_a_type_of_another_model_than_the_parents(tmp_path: Path) -> None:
    text = "parents: {h: {model: house}}\nvdevs: {a: {type: street-lamp, parent: h}}"
    assert mistake(tmp_path, text, BOTH).startswith("d.yaml:2: parent h has no type street-lamp (")


def test_an_implicit_parents_name_taken_by_another_model(tmp_path: Path) -> None:
    text = "parents: {street: {model: house}}\nvdevs: {a: {type: street-lamp}}"
    assert mistake(tmp_path, text, BOTH).startswith("d.yaml:2: unknown type street-lamp (known: ")


@pytest.mark.parametrize("second", ["x.sock", "./x.sock", "sub/../x.sock"])
def test_one_socket_for_two(tmp_path: Path, second: str) -> None:
    (tmp_path / "sub").mkdir()
    text = f"vdevs:\n  a: {{type: lamp, socket: x.sock}}\n  b: {{type: lamp, socket: {second}}}\n"
    assert mistake(tmp_path, text).startswith("d.yaml:3: b has the same socket as a: ")


def test_one_socket_for_a_vdev_and_control(tmp_path: Path, runtime: Path) -> None:
    assert "same socket as the control socket" in mistake(
        tmp_path, "control: x.sock\nvdevs: {a: {type: lamp, socket: x.sock}}"
    )
    # A default is a socket like any other.
    assert "same socket as the control socket" in mistake(
        tmp_path, f"vdevs: {{a: {{type: lamp, socket: {runtime}/control.sock}}}}"
    )
    assert "same socket as the control socket" in mistake(
        tmp_path, "vdevs: {control: {type: lamp}}"
    )


def test_the_kernels_limit_of_a_sockets_path(tmp_path: Path) -> None:
    longest = "/" + "é" * ((checked.PATH_LIMIT - 1) // 2)
    assert len(os.fsencode(longest)) == checked.PATH_LIMIT
    read(tmp_path, f"vdevs: {{a: {{type: lamp, socket: {longest}}}}}")
    said = mistake(tmp_path, f"vdevs: {{a: {{type: lamp, socket: {longest}x}}}}")
    assert "has 108 bytes, the kernel takes 107" in said


def test_a_nul_in_a_path(tmp_path: Path) -> None:
    said = mistake(tmp_path, 'vdevs: {a: {type: lamp, socket: "x\\0y"}}')
    assert said == "d.yaml:1: a path has no NUL in it"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"none\.yaml:1: cannot be read: No such file"):
        load(tmp_path / "none.yaml", HOUSE)
    with pytest.raises(DefinitionError, match="cannot be read: Is a directory"):
        load(tmp_path, HOUSE)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    wide = ", ".join(f"k{i}: 1" for i in range(1000))
    lines = [f"  a{i}: *wide" for i in range(1000)]
    text = "vdevs:\n  a: &wide {type: lamp, " + wide + "}\n" + "\n".join(lines)
    assert "has more than 10000 keys" in mistake(tmp_path, text)
    assert "a mapping" in mistake(tmp_path, "vdevs: &v\n  a: {type: lamp, level: *v}\n")


@given(st.one_of(st.text(), st.binary()))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    try:
        read(folder, data)
    except DefinitionError as error:
        assert str(error).startswith(f"{folder}/d.yaml:")
        assert error.line >= 1


# Only what YAML makes of structure: keys of ours with values of all kinds.
_VALUES = st.recursive(
    st.sampled_from(
        ["lamp", "0x10", "~", "'q'", "1.5", "*a", "&a x", "!!int 3", "a.sock", "house"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]"),
        st.dictionaries(
            st.sampled_from(
                ["type", "parent", "parents", "uuid", "auto", "socket", "model", "level", "? [x]"]
            ),
            inner,
            max_size=4,
        ).map(lambda each: "{" + ", ".join(f"{k}: {v}" for k, v in each.items()) + "}"),
    ),
    max_leaves=12,
)


@given(_VALUES, _VALUES)
def test_any_structure_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, parents: str, vdevs: str
) -> None:
    try:
        read(tmp_path_factory.getbasetemp(), f"parents: {parents}\nvdevs: {vdevs}\n", BOTH)
    except DefinitionError as error:
        assert "d.yaml:" in str(error)


# The runtime folder and suggestions


def test_the_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert runtime_folder() == Path("/run/user/1/vdcm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_folder() == Path("/run/vdcm")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: "/tmp")
    assert runtime_folder() == Path("/tmp/vdcm-1000")


def test_choices() -> None:
    assert choices("b", ["b2", "a"]) == "(known: a, b2)"
    assert choices("inptus", ["outputs", "inputs"]).startswith("(did you mean inputs? known: ")
    assert choices("x", []) == "(known: none)"
    assert choices("x", map(str, range(100, 150))).endswith(", 118, 119 and 30 more)")


# Where stored definitions are


def test_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/tmp/x")
    assert state_folder() == Path("/var/tmp/x/vdcm")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_folder() == Path("/var/lib/vdcm")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/x")
    assert state_folder() == Path("/home/x/.local/state/vdcm")


# As JSON

KNOWN = implicit_parents(BOTH)


def test_json_has_defaults(runtime: Path) -> None:
    made = vdev_from_json({"type": "street-lamp"}, KNOWN)
    assert made.name == made.uuid == str(uuid.UUID(made.uuid))
    assert made.parents == ("street",)
    assert (made.socket, made.path) == (None, runtime / f"{made.uuid}.sock")
    assert not made.auto
    assert made.properties == {}


@pytest.mark.parametrize("uuid", [UUID, None])
@pytest.mark.parametrize("place", ["/elsewhere/a.sock", None])
def test_json_goes_round(runtime: Path, uuid: str | None, place: str | None) -> None:
    given = {
        "name": "a",
        "type": "lamp",
        "parents": ["street", "house"],
        "auto": True,
        "properties": {"level": "0x10", "label": "7", "lit": True},
    }
    given |= {"uuid": uuid} if uuid else {}
    given |= {"socket": place} if place else {}
    made = vdev_from_json(given, KNOWN)
    assert made.properties == {"level": 16, "label": "7", "lit": True}
    assert made.path == Path(place or runtime / "a.sock")
    assert vdev_from_json(made.to_json(), KNOWN) == made
    assert vdev_from_json({**made.to_json(), "state": "ready", "origin": "file"}, KNOWN) == made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "type is missing"),
        ({"type": 3}, "type is text"),
        ({"type": "lmap", "parent": "house"}, r"parent house has no type lmap \(did you mean lamp"),
        ({"type": "street-lmap"}, r"unknown type street-lmap \(did you mean street-lamp"),
        ({"type": "lamp"}, "several parents have the type lamp: give VDEV .* a parent, house or"),
        ({"parent": "hous"}, r"unknown parent hous \(did you mean house"),
        ({"parents": "house"}, "parents is a list of names"),
        ({"parents": [1]}, "parents is a list of names"),
        ({"parents": ["house", "house"]}, "parent house is here twice"),
        ({"parent": "house", "parents": ["house"]}, "say the same"),
        ({"uuid": "x"}, "'x' is no UUID"),
        ({"uuid": UUID.replace("-", "")}, "is no UUID"),
        ({"uuid": None}, "uuid is missing"),
        ({"name": ""}, "name is text, and not empty"),
        ({"name": "-a"}, "'-a' is no name"),
        ({"auto": 1}, "auto is true or false"),
        ({"socket": "a.sock"}, "the whole path, beginning with /, not a.sock"),
        ({"socket": "/a\0b"}, "no NUL"),
        ({"socket": "/" + "x" * 107}, "has 108 bytes, the kernel takes 107"),
        ({"socket": "/" + "x" * 100_000}, "^.{0,250}has 100001 bytes"),
        ({"socket": "x" * 100_000}, "^.{0,200}$"),
        ({"socket": "/\ud800"}, "it is not Unicode"),
        ({"properties": []}, "properties is a JSON object"),
        ({"properties": {"levl": 1}}, r"type lamp has no property levl \(did you mean level"),
        ({"properties": {"level": True}}, "level takes a whole number, not True"),
        ({"properties": {"level": "x"}}, "level takes a whole number, not 'x'"),
        ({"propertys": {}}, r"a definition has no propertys \(did you mean properties\?"),
    ],
)
def test_wrong_json(given: dict[str, object], said: str) -> None:
    valid = {"type": "lamp", "parent": "house"} if given and "type" not in given else {}
    if "parents" in given and "parent" not in given:
        valid.pop("parent", None)
    with pytest.raises(VdcmError, match=said):
        vdev_from_json({**valid, **given}, KNOWN)
