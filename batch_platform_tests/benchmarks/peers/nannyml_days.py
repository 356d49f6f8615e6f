"""Judge the partitions of a table by NannyML: drift of each column, missing values, and the reconstruction of all columns.

python nannyml_days.py FOLDER, which holds reference.parquet, judged.parquet and facts.json; writes alarms.json there: by
partition, the columns with an alert by NannyML's own thresholds. Stands alone: it runs in NannyML's environment.
"""

import json
import os
import sys
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # read at the import

import nannyml
import pandas as pd

STARTS_AT = "start_of_partition"
folder = Path(sys.argv[1])
facts = json.loads((folder / "facts.json").read_text())
features, key = facts["features"], facts["key"]
reference, judged = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "judged"))
for rows in (reference, judged):
    rows[STARTS_AT] = pd.to_datetime(rows[key])
of = {
    "column_names": features,
    "timestamp_column_name": STARTS_AT,
    "chunk_period": {"day": "D", "week": "W-SUN"}[facts["every"]],
}
alarms = {str(partition): [] for partition in judged[key].unique()}
for kind in (
    nannyml.UnivariateDriftCalculator,
    nannyml.MissingValuesCalculator,
    nannyml.DataReconstructionDriftCalculator,
):
    calculator = kind(**of)
    calculator.fit(reference[[*features, STARTS_AT]])
    frame = calculator.calculate(judged[[*features, STARTS_AT]]).filter(period="analysis").to_df()
    for values in frame.to_numpy():
        by_column = dict(zip(frame.columns, values, strict=True))  # columns are tuples; the last part says what it is
        start = next(value for column, value in by_column.items() if column[-1] == "start_date")
        alerts = [str(column[0]) for column, value in by_column.items() if column[-1] == "alert" and value is True]
        alarms[f"{start:%Y-%m-%d}"] += alerts
(folder / "alarms.json").write_text(json.dumps(alarms))
