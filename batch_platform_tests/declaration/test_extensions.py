"""Extensions are found by name: those of the package, registered ones, and the entry points of distributions."""

import subprocess
import sys

import pytest

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.extensions import ENGINES, METRICS, SINKS, SOURCES
from batch_platform_tests.harness.distribution import (
    REGISTRIES,
    beside_the_package,
    shop_extensions,  # noqa: F401 - a fixture
)
from batch_platform_tests.monitoring.every_task import require_one_value_of_rows


def write_distribution(site, group, entry):
    """Write what an installer leaves of a distribution with one entry point."""
    info = site / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[batch_platform.{group}]\n{entry}\n")


def test_the_extensions_of_the_package_are_what_their_group_takes_and_bear_their_names():
    assert {registry.group.rpartition(".")[2] for registry in REGISTRIES} == {
        *("sources", "flavours", "measures", "metrics", "engines", "sinks")
    }
    for registry in REGISTRIES:
        for name, extension in registry.items():
            assert registry._fits(extension), name
            assert getattr(extension, "name", name) == name


def test_what_is_registered_is_found_until_it_is_forgotten(monkeypatch):
    monkeypatch.setitem(SINKS, "other", SINKS["csv"])
    SINKS.register("csv", SINKS["parquet"])
    assert [*SINKS] == ["parquet", "csv", "delta", "iceberg", "sql", "other"]
    assert SINKS["csv"] is SINKS["parquet"] is not SINKS["other"]
    del SINKS["csv"]
    assert SINKS["csv"] is SINKS["other"]
    assert "orphan" not in SINKS
    assert SINKS.get("orphan") is None


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("odd = no.such.module:SINK", r"cannot be loaded \(ModuleNotFoundError: No module named 'no'\)"),
        ("odd = batch_platform.delivery.sink:Sink", "is not an object of the kind Sink"),
        ("csv = batch_platform.delivery.files:DELTA", "has the name of another one"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_an_error_that_names_its_distribution_when_it_is_looked_up(
    tmp_path, entry, problem
):
    write_distribution(tmp_path, "sinks", entry)
    with beside_the_package(tmp_path):
        assert SINKS["parquet"]
        assert {**SOURCES, **ENGINES}, "other groups are not concerned"
        with pytest.raises(
            WrongUseError,
            match=rf"^The distribution 'acme' declares .* in the group batch_platform\.sinks, which {problem}\. Hint: .*pip uninstall acme\.",
        ):
            [*SINKS.values()]


@pytest.mark.full
def test_an_import_of_the_package_looks_for_no_distribution():
    code = "import batch_platform.cli.app, batch_platform.components, batch_platform.pipeline.pipeline, batch_platform.reports.report, batch_platform.declaration.extensions as e; assert e._entry_points.cache_info().misses == 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("shop_extensions")
def test_the_metric_of_the_guide_obeys_the_law_of_every_metric():
    cost = METRICS["cost"]
    require_one_value_of_rows(cost, "binary")
    assert cost.value.__doc__
