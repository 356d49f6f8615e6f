"""Which version serves a partition follows from the records and the partition's start."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.errors import NoChampionError
from batch_platform.models.registry import Registry, read_registry, register
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform_tests.models.decisions import at, decision, version

pytestmark = pytest.mark.unit


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=8), st.integers(-5, 40))
def test_the_champion_is_approved_and_never_from_the_future(made, day):
    versions = [version(f"v{n}", start, n) for n, (start, _) in enumerate(made)]
    decisions = [decision(f"v{n}", "approved" if ok else "refused", n) for n, (_, ok) in enumerate(made)]
    champion = Registry("small", versions, decisions).champion(at(day))
    fit = [start for start, ok in made if ok and start <= day]
    assert (champion is None) == (not fit)
    if champion is not None:
        assert champion.serving_start == at(max(fit))


def test_the_error_for_a_partition_without_a_champion_names_the_earliest_one():
    registry = Registry("small", [version("a", 5)], [decision("a", "approved")])
    with pytest.raises(
        NoChampionError, match=r"partition 2024-01-02.*earliest approved version, a, serves from 2024-01-06 on"
    ):
        registry.require_champion(at(1), "2024-01-02")
    with pytest.raises(NoChampionError, match="no version is approved"):
        Registry("small").require_champion(at(1), "2024-01-02")
    assert registry.require_champion(at(5), "2024-01-06").version == "a"


def test_what_is_registered_is_read_back(tmp_path: Path):
    warehouse = Warehouse(Home(tmp_path / "home"))
    with warehouse.transaction() as con:
        register(con, version("a", 0), decision("a", "approved"))
        register(con, version("b", 3), decision("b", "refused"))
    with warehouse.open() as con:
        registry = read_registry(con, "small")
        assert read_registry(con, "second") == Registry("second", [], [], [], [])
    assert [replace(record, seq=1) for record in registry.versions] == [version("a", 0), version("b", 3)]
    assert [replace(record, seq=1) for record in registry.promotions] == [
        decision("a", "approved"),
        decision("b", "refused"),
    ]
    assert registry.champion(at(9)).version == "a"
    assert registry.versions[0].metric_values == {"roc_auc": 0.75}
    assert registry.versions[0].class_labels == [False, True]
