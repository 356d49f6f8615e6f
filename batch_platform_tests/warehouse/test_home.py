import os
import stat
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.cli.instance import prepare_instance
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform.warehouse.published import publish

SHA256 = "0123456789abcdef" * 4


@pytest.mark.parametrize("named", [None, ""])
def test_without_a_name_the_home_lies_in_the_folder(tmp_path, monkeypatch, named):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(HOME_VARIABLE, named)
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment().root == tmp_path / ".batch_platform"
    assert Home.from_environment(tmp_path / "project").root == tmp_path / "project" / ".batch_platform"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a\\b", "a\udcffb"])
def test_a_path_that_a_database_would_misread_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(
        WrongUseError, match=r"cannot be a home: DuckDB or SQLite would misread .* Hint: set BATCH_PLATFORM_HOME"
    ):
        Home(tmp_path / name / "home")
    assert list(tmp_path.iterdir()) == []


def test_dagster_and_duckdb_keep_their_files_in_a_home_with_other_odd_letters(tmp_path):
    home = Home(tmp_path / "50% #;':@é\n" / "home")
    with dg.DagsterInstance.from_config(str(prepare_instance(home))) as instance:
        assert instance.get_runs_count() == 0
    publish(home)
    assert home.published.exists()
    assert list(tmp_path.iterdir()) == [home.root.parent]


def test_nobody_but_owner_and_group_may_enter_a_new_home_whatever_the_umask(tmp_path):
    former = os.umask(0)
    try:
        home = Home(tmp_path / "home").create()
        publish(home)
    finally:
        os.umask(former)
    assert home.published.exists()
    folders = [home.root, *(path for path in home.root.iterdir() if path.is_dir())]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o750}


def test_git_ignores_a_new_home_and_a_folder_that_holds_something_keeps_its_own_rules(tmp_path):
    (tmp_path / "home" / "dagster").mkdir(parents=True)
    home = Home(tmp_path / "home").create()
    assert home.gitignore.read_text() == "*\n"
    home.gitignore.unlink()
    assert not home.create().gitignore.exists()
    home.gitignore.write_text("*.csv\n")
    assert home.create().gitignore.read_text() == "*.csv\n"


def test_a_folder_of_the_home_that_cannot_be_used_is_named(tmp_path):
    home = Home(tmp_path / "home").create()
    folder = home.lake
    folder.rmdir()
    folder.touch()
    with pytest.raises(BatchPlatformError, match=rf"The folder {folder} cannot be written to \(File exists\)"):
        home.create()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("warehouse.duckdb", os.mkfifo),
        ("warehouse.lock", Path.mkdir),
        ("published.duckdb", Path.mkdir),
        ("published.json", os.mkfifo),
    ],
)
def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_named_and_nothing_is_changed(tmp_path, name, make):
    home = Home(tmp_path / "home")
    publish(home)
    odd = home.root / name
    odd.unlink(missing_ok=True)
    make(odd)
    before = {path: path.lstat().st_mtime_ns for path in home.root.rglob("*")}
    with pytest.raises(
        BatchPlatformError, match=rf"{odd} is not a file, as it should be.*Hint: move it out of {home.root}"
    ):
        publish(home)
    assert {path: path.lstat().st_mtime_ns for path in home.root.rglob("*")} == before


@pytest.mark.parametrize(
    "name", ["warehouse.lock", "warehouse.duckdb", "warehouse.duckdb.tmp", "dagster/dagster.yaml", "dagster/.prepared"]
)
def test_a_link_to_nothing_is_named_and_its_target_never_made(tmp_path, name):
    home = Home(tmp_path / "home").create()
    (home.root / name).symlink_to(tmp_path / "target")
    with pytest.raises(BatchPlatformError, match=rf"{name} is a link, and what it leads to.*Hint: remove the link"):
        publish(home)
    with pytest.raises(BatchPlatformError, match="is a link"):
        prepare_instance(home)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["..", "", "a/b", "%2e%2e", "a\0b", "x" * 300, "-rf", "ä"])
def test_no_name_leads_out_of_the_home(tmp_path, name):
    home = Home(tmp_path / "home").create()
    for path in (
        lambda: home.bundle("small", name),
        lambda: home.bundle(name, "v"),
        lambda: home.feature_file("small", name, SHA256),
    ):
        with pytest.raises(WrongUseError, match="cannot be the name of a file"):
            path()


def test_a_link_below_the_lake_or_the_models_may_not_leave_them_but_a_whole_folder_may_be_elsewhere(tmp_path):
    home, outside = Home(tmp_path / "home").create(), tmp_path / "home" / "lake-of-others"
    (outside / "features").mkdir(parents=True)
    (home.lake / "small").symlink_to(outside)
    (home.models / "small").mkdir()
    (home.models / "small" / "v").symlink_to(outside)
    for path in (lambda: home.feature_file("small", "2013-01-01", SHA256), lambda: home.bundle("small", "v")):
        with pytest.raises(WrongUseError, match="leads out of"):
            path()
    moved = Home(tmp_path / "moved")
    moved.root.mkdir()
    moved.lake.symlink_to(outside)
    assert moved.create().features("small").parent.parent == moved.lake
