"""Remarks: what readers of a committed partition should know although scoring it now would change nothing."""

from collections.abc import Mapping

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.planning.request import Question
from batch_platform.planning.retention import why_left
from batch_platform.planning.state import State
from batch_platform.planning.trainings import knows_too_much
from batch_platform.warehouse.ledger import ScoreRun


def remarks_on(question: Question, stale: Mapping[str, str], awaiting: Mapping[str, str]) -> dict[str, str]:
    """Collect the remarks on committed partitions that are not stale, by key; of the wanted ones if the request names some."""
    spec, state = question.spec, question.state
    knowing = {version.version: knows_too_much(spec, version) for version in state.registry.versions}
    learned = {version.version for version in state.registry.versions if version.rows_trained}
    for training in state.registry.model_trainings:
        if training.version in learned and "labels" in state.declared.inputs.changes_since(
            training, state.seen.fingerprints
        ):
            knowing[training.version] = (
                "learned other labels: labels.sql or the declaration of the labels changed since"
            )
    scores = state.scores
    if question.request.only is not None:
        scores = {it.key: scores[it.key] for it in question.partitions if it.key in scores}
    remarks = {**state.seen.gone} | {
        key: _remark_on(spec, state, run, awaiting.get(key), knowing.get(run.model_version))
        for key, run in scores.items()
    }
    for key, reason in why_left(spec, question.expired).items():
        if key in scores:
            remarks[key] = "; ".join(filter(None, [remarks.get(key), reason]))
    return {key: remark for key, remark in remarks.items() if remark and key not in stale}


def _remark_on(spec: PipelineSpec, state: State, run: ScoreRun, awaiting: str | None, known: str | None) -> str:
    """The remarks on a partition: its evaluation may be `awaiting` something, and `known` says what is wrong with the labels of its model."""
    remarks = [state.seen.gone[run.partition_key]] if run.partition_key in state.seen.gone else []
    remarks += [] if awaiting is None else [f"its evaluation waits: {awaiting}"]
    if run.model_version in state.seen.relabelled:
        remarks.append(f"its model {run.model_version} learned from labels that were corrected since")
    if known is not None:
        remarks.append(f"its model {run.model_version} {known}")
    if run.rows_rejected and (budget := spec.features.rejected_budget).is_exceeded(run.rows_rejected, run.rows_in):
        remarks.append(
            f"{run.rows_rejected} of its {run.rows_in} rows are rejected, more than max_rejected ({budget}) allows now; "
            "it was published before"
        )
    return "; ".join(remarks)
