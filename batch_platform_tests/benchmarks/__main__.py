"""Compare this project with its peers. Each workload is measured in one run on one machine; only the ratios matter.

python -m batch_platform_tests.benchmarks WORKLOAD… [--rows N] [--only NAME,…] [--repeat K] [--json FILE]
python -m batch_platform_tests.benchmarks history [--at COMMIT]… [--keep]

`history` ends with 1 if a line became slower.
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
    commit,
    contenders,
    growth,
    history,
    kernels,
    monitoring,
    project,
    refinements,
    scoring,
    spark,
    tables,
)
from batch_platform_tests.benchmarks.environments import PINNED, Environments, Options, default_folder
from batch_platform_tests.benchmarks.measuring import Result
from batch_platform_tests.benchmarks.reporting import losses, machine, table, versions

WORKLOADS = {
    "scoring": scoring,
    "monitoring": monitoring,
    "kernels": kernels,
    "commit": commit,
    "growth": growth,
    "refinements": refinements,
    "spark": spark,
    "tables": tables,
    "history": history,
}
NAMES = {
    *contenders.CONTENDERS,
    *kernels.NAMES,
    *project.KINDS,
    *tables.TABLES,
    *history.LINES,
    *monitoring.PEERS,
    *scoring.SIZES,
    *refinements.CASES,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the workloads, print a table after each one and write the files."""
    options = _parser().parse_args(arguments)
    sections: list[str] = []
    results: list[Result] = []
    became_slower = False
    for name in options.workloads:
        folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=options.folder))
        environments = Environments(options.environments.absolute())
        workload = Options(
            options.rows, options.repeat, frozenset(options.only), environments, folder, options.partitions, options.at
        )
        try:
            measured = list(_printed(WORKLOADS[name].measure(workload)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        results += measured
        sections.append(_section(WORKLOADS[name].TITLE, measured, getattr(WORKLOADS[name], "conclude", _nothing)))
        print(f"\n{sections[-1]}", flush=True)
        peers = [peer for peer in PINNED if any(result.contender == peer for result in results)]
        foot = f"{machine()}; each measured {options.repeat} times, in turn, after a warm-up. {versions(peers)}."
        if options.json:
            options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        if options.markdown:
            options.markdown.write_text("\n\n".join([*sections, foot]) + "\n")
        if name == "history":
            became_slower = bool(history.slower(measured))
            if options.keep:
                history.keep(measured)
    print(f"\n{foot}")
    if became_slower:
        sys.exit(1)


def _printed(results: Iterator[Result]) -> Iterator[Result]:
    """Print each result as soon as it is measured."""
    for result in results:
        label = f"{result.workload:>20} {result.rows:>12,} rows {result.contender:<18}"
        print(
            f"{label} {result.seconds:8.2f} s {result.core_seconds:8.2f} core-s {result.peak_mib:8,.0f} MiB",
            file=sys.stderr,
            flush=True,
        )
        yield result


def _section(title: str, results: Sequence[Result], conclude: Callable[[Sequence[Result]], str]) -> str:
    sentences = [sentence for sentence in (conclude(results), losses(results)) if sentence]
    return "\n\n".join([f"**{title}**", table(results), *sentences])


def _nothing(_: Sequence[Result]) -> str:
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="+", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the large case; default: 10 million")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each contender; default: 3")
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,…", help=", ".join(sorted(NAMES)))
    parser.add_argument(
        "--partitions",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[1000, 4000, 16_000],
        metavar="N,…",
        help="numbers of partitions of growth; default: 1000,4000,16000",
    )
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="COMMIT",
        help="commit that history measures, oldest first, or . for the working tree; default: the newest one kept, and .",
    )
    parser.add_argument("--keep", action="store_true", help="append what history measured to history.jsonl")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object per measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, the machine and the versions")
    parser.add_argument(
        "--folder", type=Path, help="folder for the data, about 0.6 KB per row; default: the temporary folder"
    )
    parser.add_argument(
        "--environments", type=Path, default=default_folder(), help="folder in which peers are installed and kept"
    )
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := sorted(set(names) - NAMES):
        msg = f"unknown: {', '.join(wrong)}; choose from {', '.join(sorted(NAMES))}"
        raise argparse.ArgumentTypeError(msg)
    return names


if __name__ == "__main__":
    main()
