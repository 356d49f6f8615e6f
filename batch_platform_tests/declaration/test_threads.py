"""How many cores a process may use, by the control groups of its container."""

from pathlib import Path

import pytest

from batch_platform.declaration.threads import container_cores, cores, threads
from batch_platform.warehouse.sql import connect

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("groups", "files", "share"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/pod/one\n", {"pod/cpu.max": "100000 100000\n", "pod/one/cpu.max": "400000 100000\n"}, 1),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3),
        (
            "4:memory:/\n1:cpu,cpuacct:/box\n0::/\n",
            {"cpu/box/cpu.cfs_quota_us": "50000\n", "cpu/box/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_a_container_has_the_cores_of_its_share_rounded_up(tmp_path: Path, groups, files, share):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert container_cores(tmp_path / "cgroup", tmp_path / "root") == share


def test_duckdb_uses_as_many_threads_as_everything_else(monkeypatch):
    monkeypatch.setattr("batch_platform.declaration.threads.os.sched_getaffinity", lambda _: {0})
    assert cores() == threads() == 1
    with connect() as con:
        assert con.execute("SELECT current_setting('threads')").fetchall() == [(1,)]
