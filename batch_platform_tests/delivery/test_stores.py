"""Deliveries to stores of objects: what is asked of the store, and stores that refuse or die."""

import re

import pytest

from batch_platform.declaration.errors import DeliveryError
from batch_platform_tests.delivery.receivers import KEY, deliver, delivered, target_of
from batch_platform_tests.delivery.rows import NEW, OLD, holds, shown
from batch_platform_tests.harness.object_store import BUCKET, SECRET, silent_store


def test_an_object_is_sent_at_once_under_its_final_name_and_nothing_else_is_written(store, tmp_path):
    deliver(target_of(tmp_path, "parquet in a store"), OLD)
    store.requests()
    deliver(target_of(tmp_path, "parquet in a store"), NEW)
    name = f"{BUCKET}/out/late/partition_key={KEY}/small.parquet"
    written = [path for method, path, _ in store.requests() if method not in ("GET", "HEAD")]
    assert [path.replace("%3D", "=") for path in written] == [f"/{name}"]
    assert store.files.find(BUCKET) == [name]
    assert not [path for path in (tmp_path / "home/staging").iterdir() if path.is_dir()]


@pytest.mark.parametrize("receiver", ["parquet in a store", pytest.param("delta in a store", marks=pytest.mark.full)])
def test_a_store_that_refuses_or_died_is_named_without_its_secret_and_gets_the_rows_by_the_next_run(
    receiver, own_store, tmp_path
):
    target = target_of(tmp_path, receiver)
    deliver(target, OLD)
    own_store.refuse()
    with pytest.raises(DeliveryError, match=r"not delivered to 'late': .*(Forbidden|Access Key).* Hint: ") as refused:
        deliver(target, NEW)
    own_store.kill()
    with pytest.raises(DeliveryError, match=r"not delivered to 'late': .* Hint: ") as dead:
        deliver(target, NEW)
    for error in (refused.value, dead.value):
        assert SECRET not in f"{error} {error.__cause__!r}"
    own_store.start()  # with an empty bucket
    deliver(target, NEW)
    assert shown(delivered(tmp_path, receiver)) == holds(NEW)


@pytest.mark.parametrize(
    ("receiver", "problem"),
    [("parquet in a store", "cannot be written (the store did not answer in time)"), ("delta in a store", "timed out")],
)
def test_f55_a_store_that_accepts_and_never_answers_fails_the_delivery_in_time(
    receiver, problem, tmp_path, monkeypatch
):
    with (
        silent_store(monkeypatch, 0.5),
        pytest.raises(DeliveryError, match=rf"not delivered to 'late': .*{re.escape(problem)}.* Hint: ") as failed,
    ):
        deliver(target_of(tmp_path, receiver), NEW)
    assert SECRET not in f"{failed.value} {failed.value.__cause__!r}"
