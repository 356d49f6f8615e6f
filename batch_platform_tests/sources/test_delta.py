"""Delta tables: exactly the rows of one version, or a refusal that says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_platform.declaration.errors import SourceError
from batch_platform.features.build import FeatureBuilder
from batch_platform.sources.opening import Sources
from batch_platform_tests.sources.declared import FIRST, SECOND, rows, sources_in
from batch_platform_tests.sources.delta_tables import ODD, added, commit, odd_table


def sources(folder: Path, **declared: object) -> Sources:
    """A table in the folder `a`."""
    return sources_in(folder, a={"delta": "a", **declared})


def test_the_rows_are_those_of_the_log_with_values_of_every_type(tmp_path):
    expected = odd_table(tmp_path / "a")
    of = sources(tmp_path)
    with of.connect(FIRST) as con:
        read = con.duckdb.sql("FROM a ORDER BY id").pl()
        types = dict(zip(read.columns, map(str, con.duckdb.sql("FROM a").types), strict=True))
        assert con.frames(FIRST, ["a"])["a"].sort("id").collect().equals(read)
    in_utc = read.with_columns(pl.col("at", "ts").dt.convert_time_zone("UTC")).select(expected.columns)
    assert in_utc.equals(expected)
    assert in_utc.schema == expected.schema
    assert [types[name] for name in ("day", "n", "price", "at")] == [
        *("DATE", "SMALLINT", "DECIMAL(9,2)", "TIMESTAMP WITH TIME ZONE")
    ]
    assert of.state("a", None).rows == 12


def test_a_condition_finds_the_same_rows_whether_or_not_it_can_skip_files(tmp_path):
    odd_table(tmp_path / "a")
    quoted = ODD.replace('"', '""')
    conditions = [
        *("added IS NULL", "added = 'new'", "day IS NULL", "day < '2000-01-01'", "n IN (2, 7)", "price < 10.05"),
        *("flag IS NULL", "NOT flag", "file > 0.4", "file = 'nan'", "file < 'nan'", "ts::date = '2024-07-01'"),
        *(""""at" >= '2024-07-01 12:30+00'""", f"\"{quoted}\" >= 'é'", "id = 3 OR day = '2024-01-01'"),
    ]
    with sources(tmp_path).connect(FIRST) as con:
        con.duckdb.execute("CREATE TEMP TABLE copied AS FROM a")
        for condition in conditions:
            found, expected = (
                con.duckdb.execute(f"SELECT id FROM {table} WHERE {condition} ORDER BY id").fetchall()
                for table in ("a", "copied")
            )
            assert found == expected != [], condition


def test_the_version_is_that_of_the_files_and_may_be_declared(tmp_path):
    table = tmp_path / "a"
    write_deltalake(table, pl.DataFrame({"x": [1]}).to_arrow())
    (tmp_path / "features.sql").write_text("SELECT x AS id FROM a")
    first = sources(tmp_path).version("a", FIRST)
    write_deltalake(table, pl.DataFrame({"x": [2]}).to_arrow(), mode="append")
    second = sources(tmp_path).version("a", FIRST)
    DeltaTable(table).alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    assert DeltaTable(table).version() == 2
    assert sources(tmp_path).version("a", FIRST) == second != first == sources(tmp_path, version=0).version("a", FIRST)
    assert rows(sources(tmp_path)) == [(1,), (2,)]
    assert rows(sources(tmp_path, version=0)) == [(1,)]
    code = [FeatureBuilder(of.spec, of).code_version for of in (sources(tmp_path), sources(tmp_path, version=0))]
    assert code[0] != code[1]


def vectors(table: Path) -> None:
    """Mark the first row of the table's file as deleted, as the protocol writes it."""
    (file,) = table.glob("*.parquet")
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 40,
    }
    size = file.stat().st_size
    action = {"path": file.name, "partitionValues": {}, "size": size, "modificationTime": 0, "dataChange": True}
    action["stats"] = json.dumps({"numRecords": 40})
    commit(
        table,
        protocol("deletionVectors"),
        {"remove": {"path": file.name, "dataChange": True, "deletionTimestamp": 0}},
        {"add": {**action, "deletionVector": {**vector, "cardinality": 6}}},
    )


def protocol(*features: str) -> dict[str, Any]:
    return {
        "protocol": {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": [*features],
            "writerFeatures": [*features],
        }
    }


def vacuumed(table: Path) -> None:
    write_deltalake(table, pl.DataFrame({"x": [2]}).to_arrow(), mode="overwrite")
    DeltaTable(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


def without_first_commit(table: Path) -> None:
    for x in range(3):
        write_deltalake(table, pl.DataFrame({"x": [x]}).to_arrow(), mode="append")
    DeltaTable(table).create_checkpoint()
    (table / "_delta_log" / f"{0:020}.json").unlink()


def outside(table: Path) -> None:
    pl.DataFrame({"x": [2]}).write_parquet(table.parent / "secret.parquet")
    commit(table, added(table, pl.DataFrame({"x": [2]}), "../secret.parquet", {}))


def cut(table: Path) -> None:
    (file,) = table.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-1])


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "a feature of later": (
        lambda table: commit(table, protocol("typeWidening")),
        {},
        r"version 1 of .* cannot be loaded: .*Unsupported table features required: \[TypeWidening\]\. Hint: .*install -U",
    ),
    "a version to come": (lambda _: None, {"version": 3}, r"version 3 of .* does not exist: the newest version is 0\."),
    "a version that is gone": (
        without_first_commit,
        {"version": 0},
        r"version 0 of .* cannot be loaded: .* Hint: its commits may have been removed",
    ),
    "a version that was vacuumed": (vacuumed, {"version": 0}, r"version 0 has no file .* any more .* Hint: it was vac"),
    "a file elsewhere": (outside, {}, r"version 1 of .* refers to \.\./secret\.parquet, a file outside of the table"),
    "a file that was cut": (cut, {}, r".*\.parquet has \d+ bytes, not \d+ as the log of version 0 says"),
    "a damaged log": (
        lambda table: (table / "_delta_log" / f"{0:020}.json").write_text('{"add": no'),
        {},
        r"version 0 of .* cannot be loaded: .* Hint: the table is damaged",
    ),
}


@pytest.mark.parametrize(("change", "declared", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_exactly_is_refused_with_what_to_do(tmp_path, change, declared, problem):
    write_deltalake(tmp_path / "a", pl.DataFrame({"x": [*range(40)]}).to_arrow())
    change(tmp_path / "a")
    with pytest.raises(SourceError, match=f"Source 'a' of 'small': {problem}") as refused:
        rows(sources(tmp_path, **declared))
    assert "\n" not in str(refused.value)


def test_rows_marked_as_deleted_are_left_out(tmp_path):
    write_deltalake(tmp_path / "a", pl.DataFrame({"x": [*range(40)]}).to_arrow())
    before = sources(tmp_path).version("a", FIRST)
    vectors(tmp_path / "a")
    of = sources(tmp_path)
    assert [x for (x,) in rows(of)] == [x for x in range(40) if x not in (3, 4, 7, 11, 18, 29)]
    with of.connect(FIRST) as con:
        assert con.frames(FIRST, ["a"])["a"].collect().height == 34
        assert con.duckdb.execute("SELECT count(*) FROM a JOIN a AS b USING (x) WHERE x > 5").fetchall() == [(30,)]
    assert of.version("a", FIRST) != before


def test_columns_with_other_names_in_the_files_have_those_of_the_table(tmp_path):
    table = pl.DataFrame({"day": ["x", "y"], "id": [1, 2]}).to_arrow()
    mapping = {"delta.columnMapping.mode": "name"}
    DeltaTable.create(tmp_path / "a", table.schema, configuration=mapping, partition_by=["day"])
    write_deltalake(tmp_path / "a", table, mode="append")
    of = sources(tmp_path)
    assert rows(of) == [("x", 1), ("y", 2)]
    assert of.state("a", None).columns == {"day": "VARCHAR", "id": "BIGINT"}
    assert of.kind("a").parquet_files(of.table("a", FIRST)) is None


def test_an_open_connection_reads_one_version_until_its_files_are_gone(tmp_path):
    table = tmp_path / "a"
    write_deltalake(table, pl.DataFrame({"x": [1, 2]}).to_arrow())
    of = sources(tmp_path)
    with of.connect(FIRST) as con:
        version = of.version("a", FIRST)
        write_deltalake(table, pl.DataFrame({"x": [3]}).to_arrow(), mode="append")
        assert con.duckdb.execute("FROM a ORDER BY x").fetchall() == [(1,), (2,)]
        assert con.table("a", SECOND).source.version == 0
        assert con.is_current(FIRST) is False
        assert of.version("a", FIRST) != version == of.kind("a").version(con.table("a", FIRST))
        vacuumed(table)
        with pytest.raises(SourceError, match=r"cannot be read: .* Hint: a file of the table may have been vacuumed"):
            con.frames(FIRST, ["a"])
    assert rows(of) == [(2,)]
