from pathlib import Path

import pytest

from batch_platform.errors import BatchPlatformError
from batch_platform.home import HOME_VARIABLE, Home


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
        home.features("small", "2024-01-01"),
        home.bundle("small", "2024-01-01-3f9c1a2b"),
    ]
    assert all(path.is_relative_to(home.root) for path in paths)
    assert len({*paths}) == len(paths)


def test_a_home_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BatchPlatformError, match=rf"cannot be written to \(.*Hint: set {HOME_VARIABLE}"):
        Home(tmp_path / "file" / "home").create()
