"""Metrics: names and labels by the conventions, and a dashboard that names what there is."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from small_model import BOTH, Lamp

from vdcm.cli import serving
from vdcm.counters import ADI, EDGES, VDEV, Kind, Latencies, nothing
from vdcm.definition import Definition, implicit_parents
from vdcm.errors import PrerequisiteError, TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.metrics import DASHBOARD, MetricsServer, parse_address, scrape
from vdcm.metrics.families import BOUNDS, of_vdevs
from vdcm.snapshot import AdiCounts, VdevCounts

LABELS = {"vdev", "adi", "parent", "sweep", "type", "state", "version", "counter", "le"}
UNITS = ("_seconds", "_bytes")


def families(text: bytes) -> dict[str, Metric]:
    return {one.name: one for one in text_string_to_metric_families(text.decode())}


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    made = Manager()
    made.adopt(Definition(None, tuple(implicit_parents(BOTH).values()), (), tmp_path / "c.sock"))
    return made


async def started(manager: Manager, tmp_path: Path, number: int) -> bytes:
    for index in range(number):
        socket = str(tmp_path / f"{index}.sock")
        manager.start_transient(
            {"type": "plugged-lamp", "name": f"lamp{index}", "socket": socket, "parent": "street"}
        )
    return await scrape(manager)


@pytest.fixture
def scraped(manager: Manager, tmp_path: Path) -> dict[str, Metric]:
    try:
        return families(asyncio.run(started(manager, tmp_path, 2)))
    finally:
        manager.close()


def test_every_counter_is_a_metric_of_each_vdev(scraped: Mapping[str, Metric]) -> None:
    for scope, counters in (("vdev", VDEV), ("direct", ADI)):
        for counter in counters:
            base = re.sub("_ns$", "_seconds", counter.name)
            family = scraped[f"vdcm_{scope}_{base}"]
            assert family.type == counter.kind.value
            assert family.documentation == counter.doc
            assert {sample.labels["vdev"] for sample in family.samples} == {"lamp0", "lamp1"}
    assert {sample.labels["adi"] for sample in scraped["vdcm_adi_units"].samples} == {"0"}
    assert "vdcm_adi_turn_seconds" not in scraped, "of ADIs there may be very many"


def test_the_conventions(scraped: Mapping[str, Metric]) -> None:
    """https://prometheus.io/docs/practices/naming, as promtool checks it."""
    assert len(scraped) > 40
    for name, family in scraped.items():
        assert re.fullmatch(r"(vdcm|process)_[a-z][a-z0-9_]*[a-z]", name), name
        assert family.documentation.endswith("."), name
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_ns")), name
        assert not re.search("(milli|micro|nano)seconds|kilo|mega", name), name
        if family.type == "histogram":
            assert name.endswith(UNITS), name
        for sample in family.samples:
            assert set(sample.labels) <= LABELS, sample
            if family.type == "counter":
                assert sample.name == f"{name}_total", sample
    assert scraped["vdcm_vdev_info"].samples[0].labels["type"] == "plugged-lamp"


def test_states(scraped: Mapping[str, Metric]) -> None:
    states = {one.labels["state"]: one.value for one in scraped["vdcm_vdevs"].samples}
    assert states["ready"] == 2
    assert states["failed"] == states["attached"] == 0


def test_names_are_there_without_vdevs(tmp_path: Path, scraped: Mapping[str, Metric]) -> None:
    empty = families(asyncio.run(started(Manager(), tmp_path, 0)))
    assert set(empty) == set(scraped)


def test_a_histogram_is_cumulative_and_whole() -> None:
    counts = [0] * len(EDGES)
    for at, number in ((0, 1), (EDGES.index(1024), 2), (EDGES.index(3 << 12), 4), (47, 8)):
        counts[at] = number
    own = {**nothing(VDEV), "read_ns": Latencies(tuple(counts), 3_500_000_000)}
    found = of_vdevs([VdevCounts("v", "t", "ready", 0, own, nothing(ADI))])
    (family,) = (one for one in found if one.name == "vdcm_vdev_read_seconds")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert [float(le) for le in buckets] == [*(bound / 1e9 for bound in BOUNDS), float("inf")]
    assert list(buckets.values()) == [1, 3, *[7] * 9, 15]
    rest = {s.name.rpartition("_")[2]: s.value for s in family.samples if "le" not in s.labels}
    assert rest == {"count": 15, "sum": 3.5}


def test_labels_that_need_escapes_survive() -> None:
    adi = AdiCounts(3, "p/q9", "q", "enabled", nothing(ADI), {'odd "name"\n': 7})
    (family,) = (
        one
        for one in of_vdevs([VdevCounts("v", "t", "ready", 0, nothing(VDEV), nothing(ADI), (adi,))])
        if one.name == "vdcm_adi_model"
    )
    (sample,) = family.samples
    assert sample.labels == {"vdev": "v", "adi": "3", "counter": 'odd "name"\n'}


def test_a_model_that_cannot_count_costs_only_its_own(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = manager.parent("street").driver

    def broken(_adi: Any) -> dict[str, int]:
        raise RuntimeError("no abacus")

    monkeypatch.setattr(driver, "on_counters", broken)
    found = families(asyncio.run(started(manager, tmp_path, 2)))
    manager.close()
    assert len(found["vdcm_adi_units"].samples) == 2
    assert found["vdcm_adi_model"].samples == []


def test_the_documentation_names_what_there_is(scraped: Mapping[str, Metric]) -> None:
    text = (Path(__file__).parents[2] / "docs/observe.md").read_text()
    there = {name for family in scraped.values() for name in _names(family)}
    assert len(named := set(re.findall(r"`(vdcm_\w+)`", text)) - {"vdcm_"}) > 8
    assert named <= there


def _names(family: Metric) -> set[str]:
    return {f"{family.name}_total" if family.type == "counter" else family.name}


# The dashboard.


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [*found, *(one["query"] for one in board["templating"]["list"])]


def test_the_dashboard_names_metrics_and_labels_that_there_are(
    scraped: Mapping[str, Metric],
) -> None:
    there: dict[str, set[str]] = {}
    for family in scraped.values():
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    for name in ("vdcm_sweep_cpu_seconds_total", "vdcm_sweep_nap_seconds"):
        there.setdefault(name, {"parent", "sweep"})
    named = 0
    for expression in expressions():
        metrics = re.findall(r"\b(?:vdcm|process)_\w+", expression)
        labels = set(re.findall(r"(\w+)=~", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= set(group.replace(" ", "").split(","))
        for metric in metrics:
            assert metric in there, f"{metric} of {expression}"
            assert labels <= there[metric], expression
            if "histogram_quantile" not in expression:
                assert "rate(" in expression or not metric.endswith("_total"), expression
        named += len(metrics)
    assert named > 20


def test_the_dashboard_is_one_that_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["title"] and panel["description"] and panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24
    assert {one["name"] for one in board["templating"]["list"]} == {"datasource", "vdev"}


# Its address.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9105", ("127.0.0.1", 9105)),
        (":9105", ("127.0.0.1", 9105)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "http", "65536", "-1", "host:", "1:2:3", "::1:80", "\N{ARABIC-INDIC DIGIT ONE}", "8 0"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(VdcmError, match=r"\[HOST:\]PORT|in brackets"):
        parse_address(text)


def test_a_port_that_is_taken_is_named(manager: Manager) -> None:
    async def both() -> None:
        async with MetricsServer(manager, "127.0.0.1", 0) as first:
            ((host, port),) = first.addresses
            with pytest.raises(TransportError, match=f"{port}: .*in use.*: choose another"):
                await MetricsServer(manager, host, port).__aenter__()

    asyncio.run(both())


def test_a_host_that_there_is_not_is_named(manager: Manager) -> None:
    async def listen() -> None:
        await MetricsServer(manager, "192.0.2.1", 0).__aenter__()

    with pytest.raises(TransportError, match=r"192\.0\.2\.1 port 0"):
        asyncio.run(listen())


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("vdcm.metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delattr("vdcm.metrics", raising=False)
    with pytest.raises(PrerequisiteError, match=r"pip install 'vdcm\[metrics\]'"):
        serving._metrics("9105")


def test_lamps_have_no_direct_path(manager: Manager, tmp_path: Path) -> None:
    """A VDEV without ADIs is in the same families."""

    async def one() -> bytes:
        manager.add(Lamp("lamp"), tmp_path / "lamp.sock")
        await manager.start_all()
        return await scrape(manager)

    found = families(asyncio.run(one()))
    manager.close()
    assert [sample.value for sample in found["vdcm_direct_units"].samples] == [0]
    assert found["vdcm_adi_units"].samples == []
    assert [one.kind for one in ADI if one.name == "turn_ns"] == [Kind.TIMES]
