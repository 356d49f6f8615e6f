"""`export`: the file holds what is published, is complete or absent, and waits for no run."""

import csv
import json
from datetime import UTC, datetime

import duckdb
import polars as pl
import pytest

from batch_platform.operations.export import export, write_query
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.command_line import REJECTED_DAY, published
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, carry_out, small_pipeline

RANGE = ("--from", "2024-02-18", "--to", "2024-02-20")
EXPECTED = """
    SELECT id, shop, items, prediction, score, partition_key, model_version FROM small.predictions
    WHERE partition_key BETWEEN '2024-02-18' AND '2024-02-20' ORDER BY partition_key, id, shop
"""


def test_a_range_is_exported_in_order_while_a_run_holds_the_warehouse(cli, project):
    with Warehouse(Home(project / ".batch_platform")).open():
        answer = cli(project, "export", "small", "--to", "scores.parquet", *RANGE)
    assert (answer.code, answer.err) == (0, "")
    rows = 3 * 40 - 1
    file = project / "scores.parquet"
    assert answer.out == f"{rows} rows (3 partitions, 2024-02-18 to 2024-02-20) written to {file}\n"
    frame = pl.read_parquet(file)
    wanted = ["id", "shop", "items", "prediction", "score", "partition_key", "model_version"]
    assert frame.select(wanted).rows() == published(project, EXPECTED)
    assert frame.columns[:2] == ["id", "shop"]


def test_reasons_are_json_in_csv_and_lists_in_parquet(tmp_path):
    pipeline = small_pipeline(tmp_path, predictions={"reasons": {"count": 2, "above": 0.5}})
    carry_out(pipeline, datetime(2024, 2, 5, tzinfo=UTC))
    for suffix in ("csv", "parquet"):
        export(pipeline, tmp_path / f"scores.{suffix}")
    table, frame = pl.read_parquet(tmp_path / "scores.parquet"), pl.read_csv(tmp_path / "scores.csv")
    assert isinstance(table["reasons"].dtype, pl.List)
    assert frame["id"].equals(table["id"])
    read = [None if text is None else json.loads(text) for text in frame["reasons"]]
    assert read == table["reasons"].to_list()
    assert 0 < frame["reasons"].null_count() < frame.height


def test_for_a_spreadsheet_only_texts_that_begin_as_a_formula_get_an_apostrophe(tmp_path):
    texts = ["=1+1", "+1", "-1", "@sum", "\t=1", "a=1", "", "'=1"]
    with duckdb.connect() as con:
        con.register("written", pl.DataFrame({"text": texts, "number": [-1.5] * len(texts)}))
        for name, for_spreadsheet in (("as_it_is", False), ("inert", True)):
            write_query(con, "FROM written", tmp_path / f"{name}.csv", for_spreadsheet=for_spreadsheet)
    as_it_is, inert = (
        [*csv.reader((tmp_path / f"{name}.csv").read_text().splitlines())][1:] for name in ("as_it_is", "inert")
    )
    assert as_it_is == [[text, "-1.5"] for text in texts]
    assert inert == [*([f"'{text}", "-1.5"] for text in texts[:5]), *as_it_is[5:]]


def test_a_feature_that_is_named_like_a_column_of_the_predictions_is_exported_under_another_name(tmp_path):
    sql = FEATURES_SQL.replace("amount,", "amount, items AS score, items + 1 AS score_feature, shop AS score_card,")
    pipeline = small_pipeline(tmp_path, features_sql=sql, predictions={"keep": ["shop", "score_card"]})
    carry_out(pipeline, datetime(2024, 2, 2, 1, tzinfo=UTC))
    export(pipeline, tmp_path / "scores.parquet", features=True)
    frame = pl.read_parquet(tmp_path / "scores.parquet")
    assert frame["score"].dtype == pl.Float64
    assert frame["score_feature_"].equals(frame["items"])
    assert frame["score_feature"].equals(frame["items"] + 1)
    assert [name for name in frame.columns if name.startswith("score_card")] == ["score_card"], "kept, so it is there"


def test_changed_features_are_refused_and_leave_no_file(cli, project):
    (folder,) = (project / ".batch_platform" / "lake").glob("*/features")
    (file,) = folder.glob(f"{REJECTED_DAY}*.parquet")
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    answer = cli(project, "export", "small", "--to", "scores.parquet", "--features", *RANGE)
    assert answer.error.startswith(f"small, partition {REJECTED_DAY}: the bytes of ")
    assert not [path for path in project.iterdir() if "scores" in path.name]
    assert cli(project, "export", "small", "--to", "scores.parquet", *RANGE).code == 0, "the scores are still there"


def test_an_existing_file_is_replaced_only_on_demand(cli, project):
    file = project / "scores.csv"
    file.write_text("mine", encoding="utf-8")
    refused = cli(project, "export", "small", "--to", "scores.csv", "--partition", "2024-02-18")
    assert (refused.code, file.read_text(encoding="utf-8")) == (2, "mine")
    assert refused.error == f"{file} exists already. Hint: --overwrite replaces it, or choose another name."
    answer = cli(project, "export", "small", "--to", "scores.csv", "--partition", "2024-02-18", "--overwrite")
    assert answer.out == f"40 rows (2024-02-18) written to {file}\n"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--to names one file, which ends with .parquet, .csv or .json, and at most one partition."),
        (("--to", "nowhere/a.csv"), "is not a folder that can be written to."),
        (("--to", "a.csv", "--partition", "2024-01-05"), "there are no published predictions of 2024-01-05"),
    ],
)
def test_a_wrong_destination_is_refused_with_what_is_right(cli, project, arguments, message):
    answer = cli(project, "export", "small", *arguments)
    assert answer.code == (1 if "--partition" in arguments else 2)
    assert message in answer.error
