"""Judge the partitions of a table by NannyML's univariate drift and its reconstruction error.

python nannyml_days.py FOLDER, which holds reference.parquet, judged.parquet and facts.json; writes alarms.json there: by
partition, the columns with an alert. Stands alone: it runs in NannyML's environment.
"""

import json
import sys
from pathlib import Path

import nannyml
import pandas as pd

folder = Path(sys.argv[1])
facts = json.loads((folder / "facts.json").read_text())
reference, judged = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "judged"))
for rows in (reference, judged):
    rows["at"] = pd.to_datetime(rows[facts["key"]])
parts = {"column_names": facts["features"], "timestamp_column_name": "at", "chunk_period": facts["period"]}
alarms: dict[str, list[str]] = {str(key): [] for key in judged[facts["key"]].unique()}
keys = {str(pd.Timestamp(key).to_period(facts["period"])): key for key in alarms}
for calculator in (nannyml.UnivariateDriftCalculator(**parts), nannyml.DataReconstructionDriftCalculator(**parts)):
    table = calculator.fit(reference).calculate(judged).filter(period="analysis").to_df()
    chunks = table["chunk"]["chunk"]["key"] if ("chunk", "chunk", "key") in table.columns else table["chunk"]["key"]
    alerts = table[[column for column in table.columns if column[-1] == "alert"]]
    for chunk, row in zip(chunks, alerts.itertuples(index=False), strict=True):
        named = [column[0] for column, alert in zip(alerts.columns, row, strict=True) if alert]
        if str(chunk) in keys:
            alarms[keys[str(chunk)]] += named
(folder / "alarms.json").write_text(json.dumps(alarms))
