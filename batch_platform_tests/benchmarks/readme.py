"""Write the figures of `scoring` into the README: a table, and a chart of the large case of one kind of model.

python -m batch_platform_tests.benchmarks scoring --json RESULTS.json
python -m batch_platform_tests.benchmarks.readme RESULTS.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Result, medians

README = ROOT / "README.md"
BEGIN, END = "<!-- figures of benchmarks.readme -->", "<!-- end of figures -->"
KINDS = {
    "trees": "histogram trees, 100 of 31 leaves",
    "forest": "random forest, 100 trees of depth 10",
    "categorical": "trees, 3 of 20 columns text",
    "linear": "scaler and logistic regression",
}
PEERS = {
    "script": "hand-written script",
    "sklearn_in_memory": "scikit-learn, data in memory",
    "ray": "Ray Data",
    "spark": "Spark local",
}
CHARTED = "trees"


def figures(results: Sequence[Result]) -> str:
    """The table and the chart."""
    middle = medians(results)
    peers = [peer for peer in PEERS if any(contender == peer for *_, contender in middle)]
    lines = [
        f"| model | rows | ours | {' | '.join(PEERS[peer] for peer in peers)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(peers)}",
    ]
    for kind, name in KINDS.items():
        for rows in sorted({rows for workload, rows, contender in middle if (workload, contender) == (kind, OURS)}):
            ours = middle[kind, rows, OURS]
            cells = [name, f"{rows:,}", f"{ours.seconds:.1f} s, {ours.core_seconds:.1f} core-s, {_gib(ours)} GiB"]
            for peer in peers:
                theirs = middle.get((kind, rows, peer))
                cells.append(f"{theirs.seconds / ours.seconds:.1f} times" if theirs else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_chart(middle, peers)])


def write(results: Sequence[Result], readme: Path = README) -> None:
    """Replace the figures between the two marks."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{figures(results)}\n{END}{after}", encoding="utf-8")


def _gib(result: Result) -> str:
    return f"{result.peak_mib / 1024:.1f}"


def _chart(middle: dict[tuple[str, int, str], Result], peers: Sequence[str]) -> list[str]:
    """A bar for each contender: the time of its largest case of trees as a multiple of ours."""
    rows = max(rows for workload, rows, contender in middle if (workload, contender) == (CHARTED, OURS))
    ours = middle[CHARTED, rows, OURS].seconds
    names = {OURS: "batch_platform", **{peer: PEERS[peer] for peer in peers}}
    bars = [
        (names[contender], middle[CHARTED, rows, contender].seconds / ours)
        for contender in names
        if (CHARTED, rows, contender) in middle
    ]
    return [
        "```mermaid",
        "xychart-beta horizontal",
        f'    title "Time for {rows:,} rows and {KINDS[CHARTED]}, as multiples of ours"',
        f"    x-axis {json.dumps([name for name, _ in bars])}",
        f"    bar {json.dumps([round(times, 1) for _, times in bars])}",
        "```",
    ]


if __name__ == "__main__":
    write([Result(**measured) for measured in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))])
