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


def test_the_home_is_what_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    assert Home.from_environment(Path("/elsewhere")).root == tmp_path / "home"


def test_a_tilde_in_the_environment_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(HOME_VARIABLE, "~/platform")
    assert Home.from_environment().root == tmp_path / "platform"


@pytest.mark.parametrize("named", [None, ""])
def test_without_a_name_the_home_lies_in_the_folder(tmp_path, monkeypatch, named):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(HOME_VARIABLE, named)
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment().root == tmp_path / ".batch_platform"
    assert Home.from_environment(tmp_path / "project").root == tmp_path / "project" / ".batch_platform"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a%41b", "a\\b", "a\udcffb"])
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


def test_rights_that_somebody_gave_a_home_stay(tmp_path):
    root = tmp_path / "home"
    root.mkdir()
    root.chmod(0o2770)
    publish(Home(root).create())
    assert stat.S_IMODE(root.stat().st_mode) == 0o2770


def test_everything_lies_below_the_root(tmp_path):
    home = Home(tmp_path / "home").create()
    assert home.create() == home
    paths = [
        home.warehouse,
        home.warehouse_lock,
        home.published,
        home.lake,
        home.models,
        home.staging,
        home.dagster,
        home.features("small"),
        home.feature_file("small", "2024-01-01", SHA256),
        home.bundle("small", "2024-01-01-3f9c1a2b"),
    ]
    assert all(path.is_relative_to(home.root) for path in paths)
    assert len({*paths}) == len(paths)


@pytest.mark.parametrize("made_before", ["", "home", "home/dagster"])
def test_git_ignores_a_new_home(tmp_path, made_before):
    (tmp_path / made_before).mkdir(parents=True, exist_ok=True)
    home = Home(tmp_path / "home")
    publish(home)
    assert home.gitignore.read_text() == "*\n"


def test_a_folder_that_holds_something_gets_no_gitignore_and_keeps_its_own(tmp_path):
    (tmp_path / "README.md").touch()
    home = Home(tmp_path).create()
    assert not home.gitignore.exists()
    home.gitignore.write_text("*.csv\n")
    assert home.create().gitignore.read_text() == "*.csv\n"


def test_the_error_of_a_home_that_cannot_be_created_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BatchPlatformError, match=rf"cannot be written to \(.*Hint: set {HOME_VARIABLE}"):
        Home(tmp_path / "file" / "home").create()


@pytest.mark.parametrize("name", ["lake", "models", "staging", "dagster"])
def test_a_folder_of_the_home_that_cannot_be_used_is_named(tmp_path, name):
    home = Home(tmp_path / "home").create()
    folder = home.root / name
    folder.rmdir()
    folder.touch()
    with pytest.raises(BatchPlatformError, match=rf"The folder {folder} cannot be written to \(File exists\)"):
        home.create()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["warehouse.duckdb", "warehouse.lock", "published.duckdb", "published.json"])
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


def test_the_folder_into_which_duckdb_spilled_when_it_was_killed_is_no_hindrance(tmp_path):
    home = Home(tmp_path / "home")
    publish(home)
    (spilled := home.warehouse.with_name("warehouse.duckdb.tmp")).mkdir()
    home.published.unlink()
    publish(home)
    assert (home.published.exists(), spilled.is_dir()) == (True, True)


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


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc", "a/b", "%2e%2e", "a\0b", "x" * 300, "-rf", "ä"])
def test_no_name_leads_out_of_the_home(tmp_path, name):
    home = Home(tmp_path / "home").create()
    for path in (
        lambda: home.bundle("small", name),
        lambda: home.bundle(name, "v"),
        lambda: home.feature_file("small", name, SHA256),
    ):
        with pytest.raises(WrongUseError, match="cannot be the name of a file"):
            path()


@pytest.mark.parametrize("key", ["2013-01-01", "2013-11-03-01:00", "2013-11-03-01:00-0500", "2013-11-03-01:00+0530"])
def test_every_partition_key_can_be_the_name_of_a_file(tmp_path, key):
    assert Home(tmp_path).feature_file("small", key, SHA256).name == f"{key}.0123456789ab.parquet"


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
