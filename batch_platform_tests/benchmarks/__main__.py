"""This project against its peers, each workload in one run on one machine: what counts are the ratios.

python -m batch_platform_tests.benchmarks WORKLOAD… [--rows N] [--only NAME,…] [--repeat K] [--json FILE]
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from batch_platform_tests.benchmarks import (
    backfill,
    commit,
    contenders,
    features,
    integrity,
    kernels,
    many_partitions,
    memory,
    project,
    publish,
    scoring,
)
from batch_platform_tests.benchmarks.environments import PINNED, Environments, default_folder
from batch_platform_tests.benchmarks.measuring import Result
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.reporting import losses, machine, table, versions

WORKLOADS = {
    "scoring": scoring,
    "backfill": backfill,
    "memory": memory,
    "features": features,
    "integrity": integrity,
    "kernels": kernels,
    "commit": commit,
    "publish": publish,
    "many_partitions": many_partitions,
}
NAMES = {*contenders.CONTENDERS, *project.KINDS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the workloads, print a table after each one and write the files."""
    given = _parser().parse_args(arguments)
    sections: list[str] = []
    results: list[Result] = []
    for name in given.workloads:
        folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=given.folder))
        only = frozenset(given.only)
        options = Options(given.rows, given.repeat, only, Environments(given.environments.absolute()), folder)
        try:
            found = list(_told(WORKLOADS[name].measure(options)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        results += found
        sections.append(_section(WORKLOADS[name].TITLE, found, getattr(WORKLOADS[name], "conclude", _nothing)))
        print(f"\n{sections[-1]}", flush=True)
        peers = [peer for peer in PINNED if any(result.contender == peer for result in results)]
        foot = f"{machine()}; each measured {given.repeat} times, in turn, after a warm-up. {versions(peers)}."
        if given.json:
            given.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        if given.markdown:
            given.markdown.write_text("\n\n".join([*sections, foot]) + "\n")
    print(f"\n{foot}")


def _told(results: Iterator[Result]) -> Iterator[Result]:
    """The results, each said as it comes."""
    for result in results:
        told = f"{result.workload:>20} {result.rows:>12,} rows {result.contender:<18}"
        print(f"{told} {result.seconds:8.2f} s {result.peak_mib:8,.0f} MiB", file=sys.stderr, flush=True)
        yield result


def _section(title: str, results: Sequence[Result], conclude: Callable[[Sequence[Result]], str]) -> str:
    said = [sentence for sentence in (conclude(results), losses(results)) if sentence]
    return "\n\n".join([f"**{title}**", table(results), " ".join(said)]).rstrip()


def _nothing(_: Sequence[Result]) -> str:
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="+", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large case; default: 10 million")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each contender; default: 3")
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,…", help=", ".join(sorted(NAMES)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="one object for each measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables, the machine and the versions")
    parser.add_argument(
        "--folder", type=Path, help="where the data go, some 0.6 KB a row; default: the temporary folder"
    )
    parser.add_argument(
        "--environments", type=Path, default=default_folder(), help="where peers are installed and kept"
    )
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := sorted(set(names) - NAMES):
        msg = f"{', '.join(wrong)}: there are {', '.join(sorted(NAMES))}"
        raise argparse.ArgumentTypeError(msg)
    return names


if __name__ == "__main__":
    main()
