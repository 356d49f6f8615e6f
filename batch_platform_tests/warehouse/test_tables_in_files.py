"""Tables in files of the lake: one table for readers, files that no reader loses, and nothing that is left over.

A challenger scores as the champion does, so that `challenger_scores` must hold what `predictions` hold.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import DamagedRowsError, DataError, WarehouseError
from batch_platform.declaration.explaining import explained
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.measure import ChallengerRun, StagedChallenger
from batch_platform.monitoring.measures.challengers import replace_challengers
from batch_platform.operations.cleanup import drop_pipelines
from batch_platform.warehouse.database import StagedScores, Warehouse
from batch_platform.warehouse.deletion import drop_rows, held_rows, leave_mark
from batch_platform.warehouse.descriptions import OF_PIPELINES
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun, as_record, note
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.recovery import restore_from_published, verify
from batch_platform.warehouse.tables_in_files import CHALLENGER_SCORES, PREDICTIONS, TABLES_IN_FILES, staged_files
from batch_platform.warehouse.user_tables import TableName, open_table, stored_partitions
from batch_platform_tests.warehouse.commits import DAY, KEYS, commit, staged

VIEW = TableName("small", "predictions")
TABLES = ("predictions", "challenger_scores")
WITHOUT_CHALLENGER = {"predictions": "", "challenger_scores": "EXCLUDE (challenger)"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def in_files(scores: StagedScores) -> StagedScores:
    return replace(scores, files=staged_files(scores.run, PREDICTIONS, scores.predictions))


def beside(scores: StagedScores, name: str = "linear") -> StagedChallenger:
    """What a challenger commits that scores as the champion does, into the same store."""
    run = scores.run
    (champions,) = scores.predictions
    path = champions.with_suffix(f".{name}.challenger")
    pl.read_parquet(champions).with_columns(challenger=pl.lit(name)).write_parquet(path)
    files = staged_files(run, CHALLENGER_SCORES, [path], challenger=name) if scores.files is not None else None
    facts = {"model_version": "c1", "champion_version": run.model_version, "rows_rejected": 0, "reasons": "{}"}
    unknown = {"rank_correlation": None, "decisions_flipped": None, "failure": None}
    made = as_record(
        ChallengerRun, run, challenger=name, rows_in=run.rows_scored, scored_at=DAY, **{**facts, **unknown}
    )
    return StagedChallenger(made, [path], files)


def write(  # noqa: PLR0913 - a partition, its rows, their place, and who scores them
    home: Home,
    folder: Path,
    key: str,
    run_id: str,
    *,
    files: bool = True,
    challengers: Sequence[str] = ("linear",),
    **columns: Any,
) -> None:
    """Commit a partition again, whatever it holds, with its challengers."""
    seen = Warehouse(home).latest(ScoreRun, "small").get(key)
    scores = staged(folder, key, seen=seen.seq if seen else 0, run_id=run_id, **columns)
    scores = in_files(scores) if files else scores
    others = {key: [beside(scores, name) for name in challengers]}
    commit(
        Warehouse(home),
        scores,
        may_empty=True,
        in_transaction=lambda con, runs: note(con, replace_challengers(con, home, runs, others)),
    )


def files_of(home: Home) -> list[str]:
    """The partitions that have files in the lake, once for each file of predictions and of challengers."""
    predictions, scores = (
        sorted(path.parent.name for path in home.lake.glob(f"small/{table}/*/*")) for table in TABLES
    )
    assert predictions == scores
    return predictions


def shown(path: Path, columns: str = "*") -> list[tuple[Any, ...]]:
    """What a reader who knows nothing of this project sees."""
    with duckdb.connect(str(path), read_only=True) as con:
        predictions, scores = (
            con.execute(f"SELECT {columns} FROM (SELECT * {without} FROM small.{table}) ORDER BY ALL").fetchall()
            for table, without in WITHOUT_CHALLENGER.items()
        )
    assert predictions == scores
    return predictions


def table_of(home: Home) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
    """Names, types and rows of predictions."""
    with Warehouse(home).open() as con:
        predictions, scores = (
            (table.columns, [str(dtype) for dtype in table.types], table.fetchall())
            for table in (
                con.sql(f"SELECT * {without} FROM small.{name} ORDER BY partition_key, run_id")
                for name, without in WITHOUT_CHALLENGER.items()
            )
        )
    assert predictions == scores
    return predictions


COLUMNS: dict[str, list[dict[str, Any]]] = {  # of partitions, which are committed one after the other
    "a new one": [{"id": [1]}, {"id": [2], "shop": ["x"]}, {"id": [3]}],
    "another case": [{"id": [1], "Shop": ["x"], "É": [1]}, {"id": [2], "shop": ["y"], "é": [2]}, {"SHOP": ["z"]}],
    "another type": [{"Value": [1]}, {"value": ["x"]}],
    "no value yet": [{"value": pl.Series([None], dtype=pl.Null)}, {"value": ["text"]}, {"value": ["more"]}],
    "no rows": [{"id": pl.Series([], dtype=pl.Int64)}, {"id": [1]}, {"id": pl.Series([], dtype=pl.Int64)}],
    "times and lists": [{"at": [DAY], "tags": [["a", "b"]]}, {"at": [DAY], "tags": [[]]}],
    "names that SQL would misread": [{"'; DROP TABLE x; --": ["'"], 'sa"y': [1]}, {'sa"y': [2]}],
}


@pytest.mark.parametrize("partitions", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.full
def test_predictions_are_one_table_with_the_same_columns_wherever_their_partitions_are(tmp_path, partitions):
    def committed(name: str, is_file: Callable[[int], bool]) -> object:
        home = Home(tmp_path / name).create()
        try:
            for number, columns in enumerate(partitions):
                write(home, tmp_path / name, KEYS[number], f"run{number}", files=is_file(number), **columns)
        except DataError as error:
            return error.message, table_of(home)
        publish(home)
        with open_published(home) as con:
            types = con.execute(
                "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = 'predictions'"
            )
            return types.fetchall(), shown(home.published), table_of(home)

    in_duckdb = committed("duckdb", lambda _: False)
    assert committed("files", lambda _: True) == in_duckdb
    assert committed("files first", lambda number: number == 0) == in_duckdb
    assert committed("files last", lambda number: number > 0) == in_duckdb


def test_a_partition_has_one_place_and_its_tables_say_where(home, tmp_path):
    with Warehouse(home).open() as con:
        con.execute("CREATE SCHEMA mine; CREATE TABLE mine.prediction_files AS SELECT 1 AS id")
    for number, files in enumerate([False, True, True, False, True][2:]):
        write(home, tmp_path, KEYS[0], f"run{number}", files=files, id=[1, number])
        write(home, tmp_path, KEYS[1], f"other{number}", files=not files, id=[7])
        publish(home)
        assert shown(home.published, "id, run_id") == sorted(
            [(1, f"run{number}"), (number, f"run{number}"), (7, f"other{number}")]
        )
        reading = verify(home)
        assert (reading.is_newest, reading.differing) == (True, ())
    with open_published(home) as con:
        assert con.sql("SELECT partition_key, part, rows, run_id FROM small.prediction_files").fetchall() == [
            (KEYS[0], 0, 2, "run2")
        ]
        assert con.sql("SELECT partition_key, id FROM small.predictions_in_duckdb").fetchall() == [(KEYS[1], 7)]
        query = "SELECT comment FROM duckdb_views() WHERE view_name = 'predictions' AND NOT internal"
        assert con.execute(query).fetchall() == [(OF_PIPELINES["predictions"].row,)]
    assert stored_partitions(home, VIEW) == {*KEYS[:2]}
    assert open_table(home, VIEW, partitions=[KEYS[1]], columns=["id"]).fetchall() == [(7,)]


def test_a_query_of_some_partitions_opens_their_files_only(home, tmp_path):
    for key in KEYS:
        write(home, tmp_path, key, "run")
    publish(home)
    with open_published(home) as con:
        plan = "EXPLAIN ANALYZE SELECT sum(score) FROM small.predictions WHERE partition_key IN ('2024-01-02')"
        assert "Total Files Read: 1" in con.execute(plan).fetchall()[0][1]


HOLD = """
import sys, duckdb
con = duckdb.connect(sys.argv[1], read_only=True)
print("reading", flush=True)
for _ in sys.stdin:
    print(con.execute("SELECT DISTINCT run_id FROM small.predictions").fetchall(), flush=True)
"""


def test_a_file_stays_as_long_as_a_copy_names_it_and_a_copy_as_long_as_it_is_read(home, tmp_path):
    write(home, tmp_path, KEYS[0], "run0")
    publish(home)
    command = [sys.executable, "-c", HOLD, str(home.published)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "reading\n"
        within = duckdb.connect(str(home.published), read_only=True)
        for number in range(1, 5):
            write(home, tmp_path, KEYS[0], f"run{number}")
            publish(home)
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "[('run0',)]\n", "a reader goes on with the state that it opened"
            assert within.execute("SELECT DISTINCT run_id FROM small.predictions").fetchall() == [("run0",)]
            assert {run_id for *_, run_id in shown(home.published)} == {f"run{number}"}
            assert len(files_of(home)) == min(number, 2) + 1, (
                "of the state that is read, the published one and the one before"
            )
        reader.stdin.close()
    write(home, tmp_path, KEYS[0], "run5")
    publish(home)
    assert within.execute("SELECT DISTINCT run_id FROM small.predictions").fetchall() == [("run0",)]
    within.close()
    for number in (6, 7):
        write(home, tmp_path, KEYS[0], f"run{number}")
        publish(home)
    assert len(files_of(home)) == 2
    assert len(list(home.root.glob("published-*.duckdb"))) == 2


def test_what_a_killed_commit_left_goes_with_the_next_publication_and_files_of_another_warehouse_stay(home, tmp_path):
    write(home, tmp_path, KEYS[0], "run")
    publish(home)
    kept = {path for table in TABLES for path in home.lake.glob(f"small/{table}/*/*")}
    assert len(kept) == len(TABLES)
    for file in kept:
        for name in (f"{'0' * 32}.parquet", f".{'1' * 32}"):
            (file.parent / name).write_bytes(b"left")
    for table in TABLES:
        (home.lake / "gone" / table / KEYS[0]).mkdir(parents=True)
        (home.lake / "gone" / table / KEYS[0] / f"{'2' * 32}.parquet").write_bytes(b"left")
    publish(home)
    assert set(home.lake.glob("*/*/*/*")) == kept
    assert not (home.lake / "gone").exists()

    other = Home(tmp_path / "other").create()
    with Warehouse(other).open():
        pass
    shutil.copytree(home.lake, other.lake, dirs_exist_ok=True)
    publish(other)
    assert files_of(other) == [KEYS[0]], "they are older than this warehouse, which cannot know them"


@pytest.mark.full
def test_a_moved_home_is_read_by_this_project_at_once_and_by_others_once_it_is_told_or_published(home, tmp_path):
    for key in KEYS[:2]:
        write(home, tmp_path, key, "run")
    publish(home)
    before = shown(home.published)
    moved = Home(home.root.rename(tmp_path / "moved [1] it's"))
    with open_published(moved) as con:
        assert con.sql("FROM small.predictions ORDER BY ALL").fetchall() == before
    with duckdb.connect(str(moved.published), read_only=True) as con:
        with pytest.raises(duckdb.IOException, match="No files found"):
            con.execute("FROM small.predictions")
        con.execute(f"SET VARIABLE batch_platform_home = '{str(moved.root).replace(chr(39), chr(39) * 2)}'")
        assert con.execute("FROM small.predictions ORDER BY ALL").fetchall() == before
    publish(moved)
    assert shown(moved.published) == before
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{str(moved.published).replace(chr(39), chr(39) * 2)}' AS theirs (READ_ONLY)")
        assert con.execute("FROM theirs.small.predictions ORDER BY ALL").fetchall() == before
    assert publish(moved) == publish(moved)
    assert verify(moved).differing == ()


def test_a_lake_on_another_disk_takes_copies(home, tmp_path):
    disks = {Path(folder).stat().st_dev: folder for folder in ("/tmp", "/dev/shm")}
    del disks[home.root.stat().st_dev]
    elsewhere = Path(tempfile.mkdtemp(dir=next(iter(disks.values()))))
    try:
        home.lake.rmdir()
        home.lake.symlink_to(elsewhere)
        write(home, tmp_path, KEYS[0], "run")
        publish(home)
        assert len(shown(home.published)) == 2
        assert [path.suffix for path in elsewhere.rglob("*") if path.is_file()] == [".parquet"] * len(TABLES)
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("table", TABLES)
def test_a_file_that_cannot_be_stored_is_an_error_that_names_the_partition_and_changes_nothing(home, tmp_path, table):
    write(home, tmp_path, KEYS[0], "run")
    before = table_of(home)
    (home.lake / "small" / table / KEYS[1]).write_text("a file in the place of a folder")
    with pytest.raises(
        WarehouseError, match=rf"small, partition {KEYS[1]}: the files of its {table} cannot be stored: .*Hint: "
    ):
        write(home, tmp_path, KEYS[1], "run")
    assert table_of(home) == before


@pytest.mark.parametrize("table", TABLES)
def test_damaged_and_lost_files_are_found_by_verification(home, tmp_path, table):
    for key in KEYS:
        write(home, tmp_path, key, "run")
    publish(home)
    first, second, _ = sorted(home.lake.glob(f"small/{table}/*/*"))
    content = first.read_bytes()
    first.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    second.unlink()
    with pytest.raises(DamagedRowsError) as caught:
        verify(home)
    assert caught.value.message == (
        f"small, partition {KEYS[0]}, small, partition {KEYS[1]}: the file of {table} {first} is damaged (2 files in all)."
    )
    assert caught.value.hint == f"score them again: batch-platform run small --partition {KEYS[0]} --force"


def test_a_partition_that_lacks_a_file_is_an_error_that_says_so_until_it_is_scored_again(home, tmp_path):
    for key in KEYS:
        write(home, tmp_path, key, "run")
    publish(home)
    shutil.rmtree(home.lake / "small")
    with pytest.raises(duckdb.IOException) as caught:
        shown(home.published)
    with pytest.raises(duckdb.IOException, match="No files found"):
        table_of(home)
    explanation = explained(caught.value)
    assert explanation.message.startswith(f"small, partition {KEYS[0]}: a file of its predictions is gone: ")
    assert "batch-platform run small" in (explanation.hint or "")
    write(home, tmp_path, KEYS[1], "again")
    publish(home)
    with open_published(home) as con:
        for table in TABLES:
            gone = rf"small, partition 2024-01-0[13]: a file of its {table} is gone\. Hint: batch-platform run small"
            with pytest.raises(duckdb.Error, match=gone):
                con.execute(f"SELECT count(*) FROM small.{table}").fetchall()
    assert {run_id for *_, run_id in open_table(home, VIEW, partitions=[KEYS[1]]).fetchall()} == {"again"}
    for key in (KEYS[0], KEYS[2]):
        write(home, tmp_path, key, "again")
    publish(home)
    assert {run_id for *_, run_id in shown(home.published)} == {"again"}


@pytest.mark.full
def test_lost_scores_of_a_challenger_that_scores_no_longer_are_removed_when_their_partition_is_scored_again(
    home, tmp_path, caplog
):
    def rows(challenger: str, table: str = "challenger_scores") -> list[tuple[Any, ...]]:
        query = f"SELECT partition_key, run_id FROM small.{table} WHERE challenger = '{challenger}' ORDER BY ALL"
        with open_published(home) as con:
            return con.execute(query).fetchall()

    for key in KEYS[:2]:
        write(home, tmp_path, key, "run", challengers=("linear", "tree", "former"), id=[1])
    publish(home)
    with open_published(home) as con:
        query = "SELECT file FROM small.challenger_score_files WHERE challenger = 'former' AND partition_key = $key"
        ((file,),) = con.execute(query, {"key": KEYS[0]}).fetchall()
    (home.lake / "small" / "challenger_scores" / KEYS[0] / file).unlink()
    write(home, tmp_path, KEYS[0], "again", challengers=("linear",), id=[1])
    publish(home)
    assert rows("linear") == [(KEYS[0], "again"), (KEYS[1], "run")]
    assert rows("tree") == [(KEYS[0], "run"), (KEYS[1], "run")], "what is not lost stays"
    assert rows("former") == rows("former", "challengers") == [(KEYS[1], "run")]
    assert (
        f"small, partition {KEYS[0]}: a file with the scores of challenger 'former' is gone or changed." in caplog.text
    )
    assert verify(home).differing == ()


def test_a_warehouse_restored_from_the_published_copy_has_its_files(home, tmp_path):
    for key in KEYS[:2]:
        write(home, tmp_path, key, "run")
    publish(home)
    before = table_of(home)
    write(home, tmp_path, KEYS[0], "never published")
    home.warehouse.unlink()
    restore_from_published(home, DAY)
    assert table_of(home) == before
    write(home, tmp_path, KEYS[0], "again")
    publish(home)
    assert verify(home).differing == ()


def drop(home: Home, *keys: str) -> None:
    with Warehouse(home).transaction() as con:
        leave_mark(home)
        held = held_rows(con, "small", keys)
        assert held["predictions"] == held["challenger_scores"] == dict.fromkeys(keys, 2)
        assert not {name for table in TABLES_IN_FILES for name in (table.files, table.rows)} & held.keys()
        assert drop_rows(con, "small", keys, "me", Stamp("drop", DAY)) == sorted(keys)


def test_dropped_partitions_leave_tables_copies_and_lake_whoever_reads(home, tmp_path):
    write(home, tmp_path, KEYS[0], "run", files=False)
    for key in KEYS[1:]:
        write(home, tmp_path, key, "run")
    publish(home)
    with closing(duckdb.connect(str(home.published), read_only=True)) as reader:
        reader.execute("FROM small.predictions")
        drop(home, *KEYS[:2])
        publish(home)
        assert set(files_of(home)) == {KEYS[2]}
        write(home, tmp_path, KEYS[2], "again")
        publish(home)
    assert {key for *_, key, _ in shown(home.published)} == {KEYS[2]}
    assert stored_partitions(home, VIEW) == {KEYS[2]}
    drop_pipelines(home, ["small"])
    write(home, tmp_path, KEYS[1], "anew", files=False)
    publish(home)
    assert list(home.lake.iterdir()) == []
    assert verify(home).differing == ()
