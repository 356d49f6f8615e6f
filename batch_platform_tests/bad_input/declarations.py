"""Names, paths and YAML that must be refused, by the command and by Dagster's own loading."""

import contextlib
import io
import itertools
import resource
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest

from batch_platform.components import describe
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import BatchPlatformError, SourceError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform.warehouse.sql import quoted
from batch_platform_tests.bad_input import Case
from batch_platform_tests.bad_input.fed import (
    AFTER,
    DAY,
    DAYS,
    EVENTS,
    PERIOD,
    Fed,
    assert_names,
    is_refused,
    on_the_day,
)
from batch_platform_tests.harness.command_line import COMMAND, Answer, clean_environment, exit_code
from batch_platform_tests.harness.dagster_project import (
    PACKAGE,
    forget_projects,
    pipeline_folder,
    write_dagster_project,
)
from batch_platform_tests.harness.deployment import Deployment, deploy, range_tags
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_events, small_spec, write_small_project

SECONDS, BYTES = 60, 4 * 1024**3  # far more than a refusal needs, far less than a bomb takes
LONG = "x" * 300
HOSTILE_NAMES = {
    "dots": "../../small",
    "an absolute path": "/etc/passwd",
    "percent signs": "%2e%2e%2fsmall",
    "300 characters": LONG,
    "SQL": "'; DROP TABLE small.predictions; --",
    "a line": "small\n",
    "nothing": "",
}


def project(tmp_path: Path, **overrides: Any) -> Path:
    """A project on disk in which nothing has run."""
    return write_dagster_project(tmp_path / "project", **overrides)


def command(folder: Path, *args: str) -> Answer:
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return Answer(exit_code(patch, folder, *args), out.getvalue(), err.getvalue())


def refused(folder: Path, *args: str, code: int = 2) -> str:
    """Run a command that is refused and leaves nothing behind; returns its one paragraph."""
    before = files(folder.parent)
    answer = command(folder, *args)
    assert answer.code == code, answer
    assert files(folder.parent) == before
    return answer.error


def files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what Python compiles and the home of Dagster."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and ".batch_platform" not in path.parts
    }


def loading(folder: Path) -> str:
    """The whole chain of errors with which Dagster's own loading refuses a project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # As `dg check defs` does: elsewhere a broken pipeline is an asset.
        patch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
        forget_projects()
        with pytest.raises(Exception) as refusal:  # noqa: PT011 - whatever Dagster wraps it in
            dg.Definitions.validate_loadable(dg.load_from_defs_folder(path_within_project=folder / PACKAGE))
    message, error = "", refusal.value
    while error is not None:
        message, error = f"{message} {error}", error.__cause__ or error.__context__
    return message


def redeclared(tmp_path: Path, old: str, new: str) -> tuple[Path, Path]:
    """A project with a replaced part of its `defs.yaml`; returns the project and the file."""
    folder = project(tmp_path)
    file = pipeline_folder(folder) / "defs.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return folder, file


def yaml_refused(tmp_path: Path, *, old: str, new: str, message: list[str], dagster: list[str] | None = None) -> None:
    """A declaration with a replaced part is refused with its file, the line of the replacement, and the key."""
    folder, file = redeclared(tmp_path, old, new)
    error = refused(folder, "check")
    assert f"{file}:" in error
    assert_names(error, *message)
    assert_names(loading(folder), *([str(file), *message] if dagster is None else dagster))


def bomb(levels: int, indent: str) -> str:
    """YAML in which each line refers to the line before nine times."""
    names = [f"b{level}" for level in range(levels)]
    lines = [f"b0: &b0 [{', '.join(['lol'] * 9)}]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]" for below, name in itertools.pairwise(names)]
    return "".join(f"{indent}{line}\n" for line in lines)


def an_anchor_bomb(tmp_path: Path, *, at: str, indent: str, args: tuple[str, ...] = ("check",)) -> None:
    """Refused before Dagster loads it, which would never end, in a process with little time and memory."""
    folder, file = redeclared(tmp_path, at, at + bomb(30, indent))
    done = subprocess.run(
        [COMMAND, *args],
        cwd=folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.code == 2, answer
    assert_names(answer.error, f"{file}:", "b5: its aliases expand to more than 100,000 values")


def an_object(tmp_path: Path, *, tag: str) -> None:
    """No tag creates an object: the code it names does not run."""
    canary = tmp_path / "canary"
    value = f"description: !!python/{tag}".format(canary=canary)
    yaml_refused(
        tmp_path,
        old="description: Whether an order comes back.",
        new=value,
        message=["defs.yaml:4", "attributes.description", "creates an object"],
        dagster=["python/", "line 4"],
    )
    assert not canary.exists()


def a_name(tmp_path: Path, *, place: str, **overrides: Any) -> None:
    """The name of a pipeline or of a source."""
    folder = project(tmp_path, **overrides)
    expected = "is not a valid name: use at most 63 lower-case letters"
    file = pipeline_folder(folder) / "defs.yaml"
    assert_names(refused(folder, "check"), f"{file}:", f"{place}: ", expected)
    assert_names(loading(folder), expected)


def sql_of_that_name(tmp_path: Path, *, name: str) -> None:
    """A path of SQL outside the folder of its pipeline is refused."""
    (tmp_path / "small").write_text(FEATURES_SQL)
    folder = project(tmp_path, features={"sql": name})
    if name in ("../../small", "/etc/passwd", ""):
        message = "is neither a SELECT nor the name of a file in this folder"
        assert_names(refused(folder, "check"), "defs.yaml:", "attributes.features", message)
    else:
        assert_names(refused(folder, "check", code=1), "small: ", "cannot be read")


def sql_behind_a_link(tmp_path: Path, *, block: str) -> None:
    folder = project(tmp_path)
    file = pipeline_folder(folder) / f"{block}.sql"
    (tmp_path / "elsewhere.sql").write_text(file.read_text())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere.sql")
    assert_names(refused(folder, "check", code=1), "small: ", str(file), "a link that leads out of its folder", "Hint:")


def a_source_path(tmp_path: Path, *, path: str) -> None:
    """A source may be anywhere, but must exist."""
    fed = Fed.scored(tmp_path)
    fed.declare(sources={"events": {"parquet": path}})
    fed.stays("'events' of 'small'", "sources.events", error=SourceError)


def a_partition_key(tmp_path: Path, *, key: str) -> None:
    folder = project(tmp_path)
    for option in ("--partition", "--from", "--to"):
        answer = command(folder, "run", "small", option, key)
        assert (answer.code, "is not the key of a partition" in answer.error) == (2, True), answer
    assert not (folder / ".batch_platform" / "lake" / "small").exists()


def a_partition_key_in_a_tag(tmp_path: Path, *, key: str) -> None:
    """Dagster passes the tags of a run on unchanged."""
    with pytest.MonkeyPatch.context() as patch:
        deployment = deploy(tmp_path, patch)
        for tags in ({"dagster/partition": key}, range_tags(key, DAY), range_tags(DAYS[0], key)):
            assert not finished(deployment, tags)
        home = deployment.pipeline.home
        assert not [path for path in home.lake.rglob("*") if path.is_file()]
        assert not [
            path
            for path in tmp_path.rglob("*.parquet")
            if home.root not in path.parents and path.name != "events.parquet"
        ]


def finished(deployment: Deployment, tags: dict[str, str]) -> bool:
    try:
        return deployment.run("features", tags=tags).success
    except (dg.DagsterError, BatchPlatformError, ValueError):  # Dagster's own errors for what is not a date
        return False


def a_version(tmp_path: Path, *, name: str) -> None:
    folder = project(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    for args in (("models", "small", "show", name), ("run", "small", "--partition", DAY, "--model", name)):
        answer = command(folder, *args)
        assert answer.code in (1, 2), answer
        assert_names(answer.error, "small", "has no version" if args[0] == "models" else "", "Hint:")


def the_label_declared(tmp_path: Path, *, overrides: dict[str, Any], message: str) -> None:
    folder = project(tmp_path, **overrides)
    assert_names(
        refused(folder, "check"), "defs.yaml:", "attributes: ", message, "it is not known when a row is scored"
    )


def a_feature_that_decides(tmp_path: Path, *, column: str, flagged: bool, model: dict[str, Any] | None = None) -> None:
    """Flagged where the model is shown; the version is still trained, and serves where it is allowed."""
    regression = model is not None
    events = EVENTS.with_columns(returned=pl.col("items") * 2.0) if regression else EVENTS
    sql = FEATURES_SQL.replace(" known", f" known, {column} AS leak")
    declared = {**(model or {}), "allow_suspected_leaks": ["*"]}
    fed = Fed.scored(tmp_path, events=events, features_sql=sql, model=declared)
    trained = fed.trained(**({"random_state": 7} if not regression else {"max_iter": 200}))
    known = [name for leak in trained.leaks for name in leak.columns if name == "leak"]
    assert known == (["leak"] if flagged else [])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(HOME_VARIABLE, str(fed.pipeline.home.root))
        shown = describe.trained(Wiring(fed.pipeline.spec, fed.pipeline.folder), trained)
    assert not flagged or "leak is suspected" in shown["model_card"].value
    assert trained.decision.action == "approved", trained.decision.reason
    assert flagged == ("a leak is suspected (allowed): leak " in trained.decision.reason)
    assert PERIOD in trained.version.version


REGRESSION = {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor"}
ATTRIBUTES = "attributes:\n"


def an_empty_option(folder: Path) -> None:
    """`--partition "$DAY"` with an unset variable must not mean all partitions."""
    shop = project(folder)
    for words in (
        ["run", "small", "--partition", ""],
        ["run", "small", "--from", "", "--to", DAY],
        ["run", "small", "--to="],
        ["replay", "small", "--partition="],
        ["train", "small", "--period", ""],
        ["export", "small", "--to", "scores.parquet", "--from", ""],
        ["--project", "", "status"],
    ):
        error = refused(shop, *words)
        assert "has an empty value. Hint: leave the option out" in error, words
    assert not (shop / ".batch_platform").exists()


def sql_that_reads_more_than_its_partition(folder: Path) -> None:
    """Neither the file of tomorrow, which the same connection may read, nor another table of the same database."""
    events = small_events()
    write_small_project(folder / "project", events=events.head(0))
    for day in ("2024-01-01", "2024-01-02"):
        events.filter(on_the_day(events, day)).write_parquet(folder / "project" / f"{day}.parquet")
    with duckdb.connect(str(folder / "project" / "shop.duckdb")) as con:
        con.execute("CREATE TABLE prices AS SELECT 1 AS price; CREATE TABLE secrets AS SELECT 2 AS price")
    sources = {"events": {"parquet": "{partition_key}.parquet"}, "prices": {"duckdb": "shop.duckdb", "table": "prices"}}
    spec = small_spec(sources=sources)
    pipeline = Pipeline(spec, folder / "project", Home(folder / "home").create())
    day = spec.partitions.calendar.named("2024-01-01")
    tomorrow, database = folder / "project" / "2024-01-02.parquet", quoted(str(folder / "project" / "shop.duckdb"))
    for reads, named in {
        f"FROM '{tomorrow}'": str(tomorrow),
        f"FROM events UNION ALL BY NAME FROM Read_Parquet('{tomorrow}')": "read_parquet()",
        "FROM events, (SELECT max(file) FROM glob('*'))": "glob()",
        "SELECT *, (SELECT content FROM read_text('x')) FROM events": "read_text()",
        f"WITH t AS (FROM {database}.main.secrets) FROM events, t": "shop.duckdb.main.secrets",
        f"FROM events WHERE id IN (SELECT price FROM {database}.prices)": "shop.duckdb.prices",
        "FROM query('FROM events')": "query()",
        f'WITH a AS (WITH "{tomorrow}" AS (SELECT 1) FROM "{tomorrow}") FROM a, \'{tomorrow}\'': str(tomorrow),
    }.items():
        (folder / "project" / "features.sql").write_text(reads)
        with pytest.raises(SourceError, match="it can read only the sources events, prices") as refused:
            list(replace(pipeline).build_features([day], Stamp("reads-more", AFTER)))
        assert named in refused.value.message
    select = "SELECT e.* EXCLUDE (returned), price, n FROM events e, prices, range(1) r(n), unnest([1]) u(m)"
    (folder / "project" / "features.sql").write_text(f"WITH few AS ({select}) FROM few")
    (built,) = replace(pipeline).build_features([day], Stamp("reads-its-own", AFTER))
    assert built.build.rows == 40


Yaml = tuple[str, str, str, list[str], list[str] | None]
YAML: tuple[Yaml, ...] = (  # what is replaced, by what, and what the command and Dagster name; None: the same
    (
        "B15 nothing as the path of a source",
        *("parquet: events.parquet", "parquet: ''", ["attributes.sources.events", "parquet is empty"], None),
    ),
    (
        "B16 an unknown key",
        *("  features:\n", "  featurs:\n", ["attributes", "unknown key 'featurs'", "did you mean 'features'"], None),
    ),
    (
        "B16 an unknown key deep inside",
        *("      every: month\n", "      evry: month\n"),
        *(["attributes.model.train", "unknown key 'evry'", "did you mean 'every'"], None),
    ),
    (
        "B16 a key twice",
        *(
            ATTRIBUTES,
            f"{ATTRIBUTES}  name: other\n",
            ["defs.yaml:4", "attributes.name", "twice, first in line 3"],
            None,
        ),
    ),
    (
        "B16 a key twice deep inside",
        *("    delay: 1 day\n", "    delay: 1 day\n    delay: 0 days\n"),
        *(["attributes.labels.delay", "occurs twice"], None),
    ),
    (
        "B16 no as a name",
        *("name: small", "name: no", ["defs.yaml:3", "attributes.name", "must be a text"]),
        ["defs.yaml:3", "attributes.name"],
    ),
    (
        "B16 no in a list",
        *("    - shop\n", "    - no\n", ["attributes.predictions.keep.0", "must be a text"]),
        ["defs.yaml", "attributes.predictions.keep.0"],
    ),
    (
        "B16 no as a choice",
        *("every: day", "every: off", ["attributes.partitions.every", "'hour', 'day', 'week' or 'month'"], None),
    ),
    (
        "B16 no as the name of a source",
        *("    events:\n", "    no:\n", ["attributes.sources", "must be a text"], ["defs.yaml", "attributes.sources"]),
    ),
    (
        "B16 an alias inside of its anchor",
        *("    params:\n", "    params: &all\n      again: *all\n"),
        *(["attributes.model.params", "an alias occurs inside"], []),
    ),
    (
        "B16 a tag of one's own",
        *("name: small", "name: !secret small", ["defs.yaml:3", "attributes.name", "the tag !secret"], ["!secret"]),
    ),
    ("B16 no YAML", "name: small", "name: [small", ["not valid YAML"], ["line"]),
    ("B16 a control character", "name: small", "name: sm\x07all", [], []),
)

CASES: dict[str, Case] = {
    **{
        f"B15 {what} as the name of a pipeline": partial(a_name, place="attributes.name", name=name)
        for what, name in HOSTILE_NAMES.items()
    },
    **{
        f"B15 {what} as the name of a source": partial(
            a_name, place="attributes.sources", sources={name: {"parquet": "events.parquet"}}
        )
        for what, name in HOSTILE_NAMES.items()
    },
    **{
        f"B15 {what} as the name of features.sql": partial(sql_of_that_name, name=name)
        for what, name in HOSTILE_NAMES.items()
    },
    **{f"B15 {block}.sql behind a link": partial(sql_behind_a_link, block=block) for block in ("features", "labels")},
    **{
        f"B15 {what} as the path of a source": partial(a_source_path, path=path)
        for what, path in {**HOSTILE_NAMES, "a glob": "../nowhere/*.parquet", "many folders": "x/" * 3000 + "y"}.items()
    },
    **{
        f"B15 {what} as the key of a partition": partial(a_partition_key, key=key)
        for what, key in HOSTILE_NAMES.items()
        if key
    },
    **{
        f"B15 {what} as a tag of Dagster's": partial(a_partition_key_in_a_tag, key=HOSTILE_NAMES[what])
        for what in ("dots", "SQL")
    },
    **{f"B15 {what} as a version": partial(a_version, name=name) for what, name in HOSTILE_NAMES.items() if name},
    **{
        name: partial(yaml_refused, old=old, new=new, message=message, dagster=dagster)
        for name, old, new, message, dagster in YAML
    },
    "B16 an anchor bomb": partial(an_anchor_bomb, at=ATTRIBUTES, indent="  "),
    "B16 an anchor bomb before a run": partial(an_anchor_bomb, at=ATTRIBUTES, indent="  ", args=("run", "small")),
    "B16 an anchor bomb in a block that holds anything": partial(an_anchor_bomb, at="    params:\n", indent="      "),
    "B16 an anchor bomb beside the attributes": partial(an_anchor_bomb, at="", indent=""),
    **{
        f"B16 !!python/{tag.partition(' ')[0]}": partial(an_object, tag=tag)
        for tag in (
            "object/apply:os.system ['touch {canary}']",
            "object/new:os.system ['touch {canary}']",
            "name:os.system",
            "module:os",
            "object:pathlib.Path {{}}",
            "tuple [a, b]",
        )
    },
    **{
        f"B17 the label as {what}": partial(
            the_label_declared, overrides=overrides, message="the label 'returned' cannot be"
        )
        for what, overrides in {
            "a column of the features": {"features": {"columns": {"returned": {"type": "boolean"}}}},
            "a kept column": {"predictions": {"keep": ["returned"]}},
            "a key": {"features": {"key": ["id", "returned"]}},
            "the time": {"features": {"time": "returned"}},
        }.items()
    },
    "B21 an option with an empty value": an_empty_option,
    "B27 SQL that reads more than its partition": sql_that_reads_more_than_its_partition,
    "B17 an outcome as a kept column": partial(
        the_label_declared,
        overrides={"labels": {"outcomes": ["refunded_at"]}, "predictions": {"keep": ["refunded_at"]}},
        message="known only with the label, 'refunded_at' cannot be",
    ),
    **{
        f"B17 {what}": partial(
            is_refused,
            scored={"labels": {"outcomes": ["refunded_at"]}},
            feed={"features_sql": FEATURES_SQL.replace(" known", f" known, {column}")},
            named=[f"small, partition {DAY}", f"{named} is among the features"],
        )
        for what, column, named in (
            ("the label in the SQL", "returned", "the label 'returned'"),
            ("the label in capitals", "returned AS RETURNED", "the label 'returned'"),
            ("an outcome in the SQL", "ts AS refunded_at", "the outcome 'refunded_at'"),
        )
    },
    "B17 a number that decides": partial(
        a_feature_that_decides, column="coalesce(returned, false)::INT * 3", flagged=True
    ),
    "B17 a category that decides": partial(
        a_feature_that_decides, column="CASE WHEN returned THEN 'r' || items ELSE 'k' END", flagged=True
    ),
    "B17 a column with a value only after the outcome": partial(
        a_feature_that_decides, column="CASE WHEN returned THEN items END", flagged=True
    ),
    "B17 the label of a regression": partial(
        a_feature_that_decides, column="items * -3", flagged=True, model=REGRESSION
    ),
    "B17 a feature that only helps": partial(a_feature_that_decides, column="amount > 80", flagged=False),
    "B17 a name of each row": partial(a_feature_that_decides, column="'row ' || id", flagged=False),
}
