"""Read a Parquet table from a store with the protocol of S3 on this machine, against DuckDB reading the same local files.

There are two stores. One sends the bytes of the files and does nothing else, so that what is measured is this side of the wire. The
other is moto, which holds objects in memory and copies a whole one for each range that is asked for.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from batch_platform_tests.benchmarks.contenders import PEERS
from batch_platform_tests.benchmarks.data import days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians, run
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.harness.object_store import BUCKET, ObjectStore, object_store

TITLE = "Reading objects"
LOCAL = "duckdb, local files"
WORKLOAD, FILES = "objects", 20
MOTO = "moto, " + OURS
GOAL = 1.3  # times the seconds of DuckDB on local files
FILE_SERVER = """
import socket, sys
from pathlib import Path
from aiohttp import web
root = Path(sys.argv[1])
async def listed(request):
    prefix, entry = request.query["prefix"], "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>{}</ETag></Contents>"
    files = [file for file in sorted(root.glob("lake/**/*")) if file.is_file()]
    keys = {str(file.relative_to(root / "lake")): file.stat().st_size for file in files}
    found = "".join(entry.format(key, size, size) for key, size in keys.items() if key.startswith(prefix))
    text = f'<ListBucketResult><Name>lake</Name><IsTruncated>false</IsTruncated>{found}</ListBucketResult>'
    return web.Response(text=text, content_type="application/xml")
app = web.Application()
app.router.add_get("/lake", listed)
app.router.add_static("/", root)
bound = socket.create_server(("127.0.0.1", 0))
print(bound.getsockname()[1], flush=True)
web.run_app(app, sock=bound, print=None)
"""


def measure(options: Options) -> Iterator[Result]:
    """Read the same rows in each way in turn."""
    table = options.folder / BUCKET / "table"
    days = days_of(spread(options.rows, FILES), datetime.now(UTC).date())
    write_days(table, days, 0)
    for file in table.glob("*.parquet"):
        if file.stem not in days.keys:
            file.unlink()
    with _file_server(options.folder) as port, object_store() as moto:
        for file in table.glob("*.parquet"):
            moto.files.put_file(str(file), f"{BUCKET}/table/{file.name}")
        ways = {
            LOCAL: partial(_read, LOCAL, "duckdb", f"{table}/*.parquet", None, options),
            OURS: partial(_read, OURS, "source", f"s3://{BUCKET}/table/*.parquet", ObjectStore(port), options),
            MOTO: partial(_read, MOTO, "source", f"s3://{BUCKET}/table/*.parquet", moto, options),
        }
        for read in ways.values():
            read()
        yield from in_turn(ways, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say how many times the seconds of DuckDB on local files each store takes."""
    middle = {contender: median for (_, _, contender), median in medians(results).items()}
    ratios = [
        f"{contender} {median.seconds / middle[LOCAL].seconds:.2f} (core-seconds {median.core_seconds / middle[LOCAL].core_seconds:.2f})"
        for contender, median in middle.items()
        if contender != LOCAL
    ]
    return f"Seconds beside local files, without those of the server; goal {GOAL}: {', '.join(ratios)}."


def _read(contender: str, how: str, glob: str, store: ObjectStore | None, options: Options) -> Result:
    command = [sys.executable, str(PEERS / "parquet_reads.py"), how, glob]
    cost = run(command, options.folder, **(store.environment if store else {}))
    if int(cost.output) != options.rows:
        sys.exit(f"{contender} read {cost.output} rows instead of {options.rows}.")
    return cost.result(WORKLOAD, contender, options.rows)


@contextmanager
def _file_server(root: Path) -> Iterator[int]:
    """Serve the files below a folder until the block ends; yields the port."""
    server = subprocess.Popen([sys.executable, "-c", FILE_SERVER, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()
