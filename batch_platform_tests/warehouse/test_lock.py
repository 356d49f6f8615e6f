"""The lock on a home. DuckDB locks its file too, so that whole commands would not show that this lock lets two in."""

import os

import pytest

from batch_platform.declaration.errors import WarehouseBusyError
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import Patience, locked, standing_holder

pytestmark = pytest.mark.unit


def test_nobody_else_gets_the_lock_while_it_is_held_and_the_error_names_the_process_that_holds_it(tmp_path):
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
    with locked(Patience(home, timeout=60.0)):  # the thread that waited in vain may hold it for a moment
        pass
