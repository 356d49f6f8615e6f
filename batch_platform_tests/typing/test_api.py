import importlib
import subprocess
import sys

import pytest

import batch_platform


@pytest.mark.parametrize("name", batch_platform.__all__)
def test_every_public_name_exists_and_is_that_of_its_room(name):
    public = getattr(batch_platform, name)
    assert public.__name__ == name
    assert getattr(importlib.import_module(public.__module__), name) is public


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="'batch_platform' has no attribute 'Warehouse'"):
        _ = batch_platform.Warehouse


def test_the_public_names_are_imported_by_a_star():
    code = f"from batch_platform import *; print(all(name in globals() for name in {batch_platform.__all__!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
