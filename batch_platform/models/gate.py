"""The gate between a trained version and the predictions: held against the champion, on the same rows.

Says whether a version may serve, and on which evidence. A champion that can no longer be loaded, or that was trained on
other columns, must not keep a new model away: then it is said why nothing was compared. Records nothing.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError
from batch_platform.declaration.spec import Promote
from batch_platform.features.labelled import TrainingData
from batch_platform.models.bundle import Bundle
from batch_platform.models.contract import Contract
from batch_platform.models.fitting import Fitted, evaluate, judge
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.comparison import Difference, paired_difference
from batch_platform.monitoring.metrics import Outcomes, as_truth, default_metric, known_to
from batch_platform.warehouse.ledger import Action, Version

_ROW = "__row"


@dataclass(frozen=True)
class ChampionComparison:
    """A version and the champion on the rows that both can be given."""

    champion: str
    metrics: dict[str, float]  # of the version; empty where nothing was compared
    champion_metrics: dict[str, float]
    difference: Difference | None  # of the gate's metric, version minus champion
    not_compared: str = ""  # why


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version."""

    action: Action
    reason: str
    evidence: str  # JSON


def pass_gate(
    gate: Promote,
    fitted: Fitted,
    data: TrainingData,
    champion: Version | None,
    open_version: Callable[[Version], Bundle],
) -> Verdict:
    """Hold a fitted model against what is declared and against the champion.

    Args:
        gate: What is declared.
        fitted: The model.
        data: Its evaluation rows are those of the comparison.
        champion: The version that serves where the model would; None where there is none.
        open_version: Loads the champion.
    """
    metric = gate.metric or default_metric(fitted.task)
    comparison = None if champion is None else _compared(metric, fitted, data, champion, open_version)
    standing = comparison.champion_metrics if comparison and comparison.champion_metrics else None
    refusal = judge(gate, fitted.task, fitted.metrics, standing)
    meets = "meets the gate"
    if comparison is not None and comparison.not_compared:
        meets += f"; the champion {comparison.champion} was not compared: {comparison.not_compared}"
    action: Action = "refused" if refusal else "waiting" if gate.manual else "approved"
    facts = {"metrics": fitted.metrics, "comparison": None if comparison is None else asdict(comparison)}
    return Verdict(action, refusal or meets + ("; waits to be promoted" if gate.manual else ""), json.dumps(facts))


def _compared(
    metric: str, fitted: Fitted, data: TrainingData, champion: Version, open_version: Callable[[Version], Bundle]
) -> ChampionComparison:
    try:
        bundle = open_version(champion)
        rows = _shared(data.evaluate, fitted.contract, bundle.contract)
    except (DataError, IntegrityError, WrongUseError) as error:
        return ChampionComparison(champion.version, {}, {}, None, error.message)
    manifest = bundle.manifest
    if manifest.task != fitted.task:
        return ChampionComparison(champion.version, {}, {}, None, f"it is of another task, {manifest.task}")
    metrics, champion_metrics = (
        evaluate(
            predictor,
            task=fitted.task,
            classes=classes,
            contract=contract,
            rows=contract.split(rows).kept,
            label=data.label,
        )
        for predictor, classes, contract in (
            (fitted.predictor, fitted.classes, fitted.contract),
            (bundle.predictor, manifest.classes, bundle.contract),
        )
    )
    difference = None
    known = rows.filter(known_to(fitted.classes, rows[data.label])) if data.label and fitted.classes else rows
    if data.label is not None and manifest.classes == fitted.classes and known.height:
        with one_thread():
            predictions = [
                np.asarray(predictor.predict(contract.encode(contract.split(known).kept)))
                for predictor, contract in ((fitted.predictor, fitted.contract), (bundle.predictor, bundle.contract))
            ]
        truth = as_truth(known[data.label])
        difference = paired_difference(
            metric, *(Outcomes(fitted.task, predicted, truth, fitted.classes) for predicted in predictions)
        )
    return ChampionComparison(champion.version, metrics, champion_metrics, difference)


def _shared(rows: pl.DataFrame, *contracts: Contract) -> pl.DataFrame:
    """The rows that keep every contract, as they came.

    Raises:
        DataError: A contract names a column that is not there.
    """
    numbered = rows.with_row_index(_ROW)
    for contract in contracts:
        kept = contract.split(numbered).kept.select(_ROW)
        numbered = numbered.join(kept, on=_ROW, how="semi", maintain_order="left")
    return numbered.drop(_ROW)
