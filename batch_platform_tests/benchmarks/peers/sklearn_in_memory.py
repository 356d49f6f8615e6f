"""predict_proba alone, on a matrix in memory: the lower bound for everybody who does not compile the trees.

    python sklearn_in_memory.py MODEL OUTPUT_FOLDER FILE…

Prints the seconds and core-seconds that predict_proba took. Reading, encoding and storing do not count. Rows are scored in pieces that fit
into memory.
"""

import json
import sys
import time
from pathlib import Path

import polars as pl
from served import day_of, load

PIECE_ROWS = 2_000_000


def main(model: str, output: str, *files: str) -> None:
    """Score each day's file into a Parquet file of the output folder."""
    served, seconds, core_seconds = load(model), 0.0, 0.0
    Path(output).mkdir()
    for file in files:
        pieces = []
        for begin in range(0, pl.scan_parquet(file).select(pl.len()).collect().item(), PIECE_ROWS):
            rows = pl.scan_parquet(file).select(served.columns).slice(begin, PIECE_ROWS).collect()
            matrix = served.matrix(rows)
            began, used = time.perf_counter(), time.process_time()
            score = served.estimator.predict_proba(matrix)[:, 1]
            seconds += time.perf_counter() - began
            core_seconds += time.process_time() - used
            pieces.append(served.with_score(rows, score).with_columns(day=pl.lit(day_of(file))))
        pl.concat(pieces).write_parquet(Path(output, f"{day_of(file)}.parquet"))
    print(json.dumps({"seconds": seconds, "core_seconds": core_seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
