"""Definitions on disk: what a crash, a full disk and other hands make of them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm import store as module
from vdcm.errors import StoreError
from vdcm.store import Store

ONE, TWO, THREE = ("83b8f4f2-509f-382f-3c1e-e6bfe0fa100" + digit for digit in "123")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "a" / "state")
    yield store
    store.close()


def contents(store: Store) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    assert store.read(found.append) == []
    return found


def test_what_is_written_is_read(store: Store) -> None:
    assert contents(store) == []
    assert not store.folder.exists()  # nothing to keep yet
    store.write({"uuid": TWO, "properties": {"label": "é"}}, new=True)
    store.write({"uuid": ONE})
    store.write({"uuid": ONE, "auto": True})
    assert contents(store) == [
        {"uuid": ONE, "auto": True},
        {"uuid": TWO, "properties": {"label": "é"}},
    ]
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in store.folder.iterdir())
    store.remove(TWO)
    store.remove(TWO)
    assert contents(store) == [{"uuid": ONE, "auto": True}]


def test_a_folder_has_one_server(store: Store) -> None:
    store.write({"uuid": ONE})
    other = Store(store.folder)
    for attempt in (
        lambda: other.read(print),
        lambda: other.write({"uuid": TWO}),
        lambda: other.remove(ONE),
    ):
        with pytest.raises(StoreError, match=r"belongs to another server .* with --state"):
            attempt()
    store.close()
    store.close()
    assert contents(other) == [{"uuid": ONE}]
    other.close()


def test_a_folder_in_the_place_of_ours_has_one_server_too(store: Store) -> None:
    store.write({"uuid": ONE})
    store.folder.rename(store.folder.with_name("away"))
    store.remove(ONE)
    store.write({"uuid": TWO})
    assert contents(store) == [{"uuid": TWO}]
    other = Store(store.folder)
    with pytest.raises(StoreError, match="belongs to another server"):
        other.write({"uuid": THREE})


def test_nobody_is_waited_for(store: Store) -> None:
    store.write({"uuid": TWO})
    os.mkfifo(store.folder / f"{ONE}.json")
    found: list[dict[str, Any]] = []
    (error,) = store.read(found.append)
    assert found == [{"uuid": TWO}]
    assert "this definition is left out: it is no file" in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is not JSON"),
        (b'{"uuid": "' + ONE.encode(), "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        (b"[" * 60_000, "it is not JSON"),
        (b"[]", f"it is no JSON object with the uuid {ONE}"),
        (b"{}", "it is no JSON object with the uuid"),
        (json.dumps({"uuid": TWO}).encode(), "it is no JSON object with the uuid"),
        (b" " * (module.FILE_LIMIT + 1), "it is longer than 65536 bytes"),
        (None, "Is a directory"),
    ],
)
def test_garbage_costs_only_itself(store: Store, data: bytes | None, said: str) -> None:
    store.write({"uuid": TWO})
    bad = store.folder / f"{ONE}.json"
    if data is None:
        bad.mkdir()
    else:
        bad.write_bytes(data)
    found: list[dict[str, Any]] = []
    (error,) = store.read(found.append)
    assert found == [{"uuid": TWO}]
    assert str(error).startswith(f"{bad}: this definition is left out: {said}")
    assert "repair the file or remove it" in str(error)
    assert bad.exists()
    with pytest.raises(StoreError, match="is there, and could not be used: repair it or remove"):
        store.write({"uuid": ONE}, new=True)


@given(st.binary(max_size=200))
def test_any_file_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "any")
    store.write({"uuid": ONE})
    (store.folder / f"{ONE}.json").write_bytes(data)
    found: list[dict[str, Any]] = []
    errors = store.read(found.append)
    assert len(errors) + len(found) == 1
    store.close()


def test_a_write_that_was_cut_short_leaves_the_old_one(store: Store) -> None:
    """What a server leaves that is killed between the two steps."""
    store.write({"uuid": ONE})
    unfinished = store.folder / f"{ONE}.new"
    unfinished.write_text('{"uu')
    assert contents(store) == [{"uuid": ONE}]
    assert not unfinished.exists()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store.write({"uuid": ONE})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(module.os, "fdopen", lambda fd, _mode: os.close(fd) or full())
        else:
            patch.setattr(*((Path, "rename") if call == "rename" else (module.os, "fsync")), full)
        with pytest.raises(StoreError, match=r"\.json: cannot be stored: No space left .*--state"):
            store.write({"uuid": ONE, "auto": True})
        with pytest.raises(StoreError, match="No space left"):
            store.write({"uuid": TWO}, new=True)
    with monkeypatch.context() as patch:
        left = [None] * 2  # of two files the second

        def fill(*arguments: Any) -> Any:
            left.pop() if left else full()
            return real(*arguments)

        place, name = (Path, call) if call == "rename" else (module.os, call)
        name = "fdopen" if call == "write" else name
        real = getattr(place, name)
        left.pop()
        patch.setattr(place, name, fill)
        with pytest.raises(StoreError, match="No space left"):
            store.write({"uuid": TWO}, {"uuid": THREE}, new=True)
    assert contents(store) == [{"uuid": ONE}]
    assert [path.name for path in store.folder.iterdir()] == [f"{ONE}.json"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/sub"):
        store = Store(folder)
        with pytest.raises(StoreError, match=r"cannot be stored: .*another folder"):
            store.write({"uuid": ONE})
        store.close()


def test_a_link_in_the_place_of_the_unfinished_file(store: Store, tmp_path: Path) -> None:
    store.write({"uuid": ONE})
    (tmp_path / "victim").write_text("mine")
    (store.folder / f"{TWO}.new").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError):
        store.write({"uuid": TWO})
    assert (tmp_path / "victim").read_text() == "mine"
