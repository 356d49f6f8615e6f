"""Judge the partitions of a table by Evidently's preset for drift, each beside the rows before them.

python evidently_days.py FOLDER, which holds reference.parquet, judged.parquet and facts.json; writes alarms.json there: by
partition, the columns with drift. Stands alone: it runs in Evidently's environment.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset

folder = Path(sys.argv[1])
facts = json.loads((folder / "facts.json").read_text())
reference, judged = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "judged"))
alarms = {}
for key, rows in judged.groupby(facts["key"]):
    result = Report([DataDriftPreset()]).run(rows[facts["features"]], reference[facts["features"]]).dict()
    drifted = []
    for metric in result["metrics"]:
        config = metric.get("config", {})
        if "column" in config and isinstance(metric["value"], int | float):
            is_p_value = "p_value" in config.get("method", "") or "p_value" in metric["metric_name"]
            threshold = config.get("threshold") or (0.05 if is_p_value else 0.1)
            if (metric["value"] < threshold) if is_p_value else (metric["value"] >= threshold):
                drifted.append(config["column"])
    alarms[str(key)] = drifted
(folder / "alarms.json").write_text(json.dumps(alarms))
