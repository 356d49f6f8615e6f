"""The lock on a home: DuckDB locks its file too, and would hide it from tests of whole commands if this lock let two processes in."""

import os

import pytest

from batch_platform.declaration.errors import WarehouseBusyError
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import Patience, locked, standing_holder

pytestmark = pytest.mark.unit


def test_a_second_one_is_kept_out_until_the_first_is_done_and_told_which_process_that_is(tmp_path):
    home = Home(tmp_path / "home").create()
    with locked(Patience(home, timeout=0.0)):
        holder = standing_holder(home)
        assert holder is not None
        assert holder.process == str(os.getpid())
        with (
            pytest.raises(WarehouseBusyError, match=f"held by process {os.getpid()}; waited 0 s"),
            locked(Patience(home, timeout=0.0)),
        ):
            pytest.fail("two hold the lock")
    with locked(Patience(home, timeout=60.0)):  # whoever waited in vain may hold it for a moment
        pass
    assert standing_holder(home) is None
