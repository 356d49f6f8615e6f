"""The guide says what is so: its links resolve, its code runs, its keys and commands exist, and its headings answer questions."""

import ast
import inspect
import re
import shlex
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import click
import polars as pl
import pytest
import yaml

from batch_platform.cli.app import app
from batch_platform.cli.guide import PAGES
from batch_platform.declaration.extensions import SOURCES
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.deliver import deliver
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness import flavour_cases
from batch_platform_tests.harness.checkout import GUIDE, README, ROOT, blocks
from batch_platform_tests.harness.declared_keys import given_keys, keys_of
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.small_pipeline import carry_out, feature_file, small_events, small_pipeline
from batch_platform_tests.make_reference import FOLDER, pages

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)
MINUTES, WORDS_A_MINUTE = 10, 220
LANGUAGES = {"bash", "console", "mermaid", "python", "sql", "toml", "yaml", "yaml fragment"}
SHELL = {"cd", "chmod", "cp", "echo", "export", "printf", "sudo", "touch", "unset"}
# Commands of the guide that are not ours.
OTHERS = {"dagster", "dbt", "docker", "kubectl", "pip", "python", "python3", *SHELL}
QUESTIONS = {  # what a reader who knows Dagster asks, and the page and heading that answers
    "What is a serving period?": ("concepts", "Vocabulary"),
    "What can I point `new` at?": ("your_data", "What can be read"),
    "What is the default of `model.train.evaluate`?": ("keys", "`model.train`"),
    "Which assets does a pipeline become?": ("declaring", "What it becomes"),
    "How do I keep the future out of my features?": ("features", "No feature may know the future"),
    "How do I name a file for each day?": ("sources", "Paths"),
    "Where can predictions be delivered?": ("acting", "Deliveries"),
    "Can I bring an ONNX or an MLflow model?": ("models", "Models of every kind"),
    "What was the AUC of a quarter?": ("monitoring", "Months, quarters and segments"),
    "The labels come in a month. How good are today's predictions?": ("drift", "Performance without labels"),
    "Which job fills a month?": ("scheduling", "Bring a range up to date"),
    "The warehouse file is gone. What do I do?": ("home", "Backup, loss and damage"),
    "Which files do I need to run it in containers?": ("production", "Deployment"),
    "What may somebody's SQL read?": ("security", "The author of SQL"),
    "Which columns does `score_runs` have?": ("tables", "Tables"),
    "How do I add a kind of source?": ("extending", "A source kind"),
    "What must every machine of a Spark cluster have?": ("scaling_out", "What the cluster needs"),
    "Can I score on a server of Spark Connect?": ("clusters", "Spark Connect"),
    "What if the disk is full?": ("faults", "Faults"),
    "How large a partition was tried?": ("performance", "How large a table may be"),
    "Why has a row this score?": ("refinements", "Reasons for a score"),
    "Where does the code that picks a champion live?": ("architecture", "Where things are"),
}


def headings(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [heading.strip() for heading in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """The anchors of headings, as they are made for Markdown on the web."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(text)}


def test_every_page_is_listed_with_its_title():
    assert set(PAGES) == set(GUIDE)
    listed = re.findall(r"^\| \[(.+)\]\(batch_platform/guide/(\w+)\.md\) \| (.+) \|$", README, flags=re.MULTILINE)
    assert listed == [(headings(GUIDE[name])[0], name, answers) for name, answers in PAGES.items()]


def test_the_command_shows_pages_and_lists_them(cli, fresh):
    assert cli(fresh, "guide", "concepts").out.strip() == GUIDE["concepts"].strip()
    pages = cli(fresh, "guide").out
    assert all(name in pages for name in PAGES)
    assert max(len(line.rstrip()) for line in pages.splitlines()) <= 100
    refused = cli(fresh, "guide", "concept")
    assert refused.code == 2
    assert "There is no page 'concept'" in refused.err
    assert "'concepts'" in refused.err
    assert cli(fresh, "guide", "slack").error == "There is no page 'slack'. Hint: read monitoring."


def test_a_page_takes_at_most_ten_minutes():
    assert GUIDE
    for name, text in GUIDE.items():
        without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        words = [word for word in without_code.split() if word.strip("|-")]
        assert len(words) <= MINUTES * WORDS_A_MINUTE, name


def test_the_references_of_keys_are_up_to_date():
    made = pages()
    written = {page: page.read_text(encoding="utf-8") for page in made}
    assert written == made != {}, "run python -m batch_platform_tests.make_reference"


def test_links_and_pictures_lead_somewhere():
    texts = {ROOT / "README.md": README} | {FOLDER / f"{name}.md": text for name, text in GUIDE.items()}
    count = 0
    for file, text in texts.items():
        for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)):
            if path.startswith("https://"):
                continue
            target = (file.parent / path).resolve() if path else file
            assert target.is_file(), f"{file.name}: {path}"
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{file.name}: {path}#{anchor}"
            count += 1
    assert count > 20


def test_questions_are_answered_by_headings():
    assert [(name, heading) for name, heading in QUESTIONS.values() if heading not in headings(GUIDE[name])] == []


def test_every_block_of_code_is_of_a_kind_that_is_checked():
    opened = {
        language for text in (README, *GUIDE.values()) for language in re.findall(r"^```(.*)$", text, re.MULTILINE)[::2]
    }
    assert opened == LANGUAGES


def test_yaml_fragments_hold_keys_that_exist():
    fragments = [yaml.safe_load(block) for block in blocks("yaml fragment")]
    assert fragments
    assert [key for fragment in fragments for key in given_keys(fragment) - keys_of(PipelineSpec)] == []


def test_commands_exist_with_their_options():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line]
    checked = 0
    for line in lines:
        words = shlex.split(line.rpartition(" && ")[2], comments=True)
        program = words[0].removeprefix(".venv/bin/")
        if program in OTHERS:
            continue
        assert program == "batch-platform", line
        command: click.Command = app
        arguments = words[1:]
        while isinstance(command, click.Group):
            subcommand = command.get_command(click.Context(command), arguments[0])
            if subcommand is None:  # the name of the pipeline comes before what is done with its models
                break
            command, arguments = subcommand, arguments[1:]
        named = {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, click.Group):
            within = [command.commands[word] for word in arguments if word in command.commands]
            named |= {option for inner in within for parameter in inner.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= named, line
        checked += 1
    assert checked > 10


@pytest.mark.usefixtures("shop_extensions")
def test_the_distribution_of_the_guide_adds_one_of_each_kind_of_extension(tmp_path, caplog):
    pipeline = small_pipeline(
        tmp_path,
        events=small_events().filter(pl.col("ts") < NOW),
        sources={"shops": {"sqlite": "shops.sqlite"}},
        features_sql="SELECT e.id, e.ts, e.amount, e.shop, s.size FROM events AS e LEFT JOIN shops AS s USING (shop)"
        " WHERE ts >= $partition_start AND ts < $partition_end",
        model={"estimator": None, "params": None, "import": "rule.ini"},
        predictions={"refine": ["shop.bands.banded"], "deliver": [{"sqlite": "late.sqlite"}]},
        engine="logged",
    )
    folder = pipeline.builder.sources.folder
    (folder / "rule.ini").write_text("amount > 80")
    with closing(sqlite3.connect(folder / "shops.sqlite")) as con, con:
        con.execute("CREATE TABLE rows (shop TEXT, size INTEGER)")
        con.execute("INSERT INTO rows VALUES ('Zürich', 3), (' ', 5)")
    with caplog.at_level("INFO", logger="shop"):
        carry_out(pipeline, NOW)
    day = pipeline.spec.partitions.calendar.named("2024-02-01")
    list(deliver(pipeline, pipeline.spec.predictions.deliver[0], [day], Stamp("delivery", NOW)))
    with closing(sqlite3.connect(folder / "late.sqlite")) as con:
        ((received,),) = con.execute("SELECT count(*) FROM rows WHERE partition_key = '2024-02-01'")
    with open_published(pipeline.home) as con:
        scores = con.sql("SELECT DISTINCT score FROM small.predictions ORDER BY ALL").fetchall()
        banded = con.sql("SELECT DISTINCT score, band FROM small.predictions ORDER BY ALL").fetchall()
        runs = con.sql("SELECT DISTINCT engine FROM batch_platform.score_runs").fetchall()
        costs = con.sql("SELECT value FROM small.performance WHERE metric = 'cost'").fetchall()
        ranges = con.sql("SELECT DISTINCT low, high FROM small.score_range").fetchall()
        cells = con.sql("SELECT DISTINCT cells FROM small.empty_cells").fetchall()
    assert scores == [(0.25,), (0.75,)]
    assert [score for score, _ in banded] == [0.25, 0.75]
    assert all(band in range(1, 5) for _, band in banded)
    assert runs == [("logged",)]
    assert costs
    assert all(0 < cost < 8 for (cost,) in costs)
    assert ranges == [(0.25, 0.75)]
    assert cells == [(40,)]
    assert received == 40
    assert "2024-02-01: 40 rows" in caplog.text
    built = pl.read_parquet(feature_file(pipeline, "2024-02-01"))
    assert set(built["size"].drop_nulls()) == {3, 5}


@pytest.mark.usefixtures("shop_extensions")
def test_an_extension_is_registered_as_the_guide_does():
    (block,) = [block for block in blocks("python", GUIDE["extending"]) if "SOURCES.register" in block]
    exec(compile(block, "example", "exec"), {})
    assert type(SOURCES["sqlite"]).__module__ == "shop.sources"


def test_the_network_of_the_guide_is_the_one_that_every_flavour_is_tested_with():
    (block,) = [block for block in blocks("python", GUIDE["models"]) if "def network" in block]
    (shown,), (tested,) = (ast.parse(source).body for source in (block, inspect.getsource(flavour_cases.network)))
    tested.body = tested.body[1:]  # without its docstring
    assert ast.dump(shown) == ast.dump(tested)
