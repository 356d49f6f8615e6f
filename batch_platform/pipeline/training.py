"""Learning for one serving period: the rows of its window, the fit on them or the import, and the fit on all rows."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, TrainingRefusedError
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import (
    FIRST_HALF,
    PARTITION_START,
    History,
    TrainingData,
    feature_columns,
    window_sha256,
)
from batch_platform.features.row_checks import made_from_outcomes, place_in_sql
from batch_platform.models.baseline import measured
from batch_platform.models.bundle import Evaluation, JudgedFit, Manifest, Window, read_reference
from batch_platform.models.clusters import Former, keep_numbers
from batch_platform.models.contract import Positive, infer_contract
from batch_platform.models.declared_model import is_classification, read_import, require_rule
from batch_platform.models.fitting import Fitted, Refining, fit, refit
from batch_platform.models.leaks import suspiciously_good
from batch_platform.models.reference import after_refit, reference_of, with_basis, with_prediction
from batch_platform.models.refinements.known import declared, holds_out
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.monitoring.reference import ReferenceProfile
from batch_platform.pipeline.learned import LearnedModel, sample_of
from batch_platform.planning.state import State

_TRIAL_ROWS = 1_000  # rows on which an imported model is tried
_REFERENCE_ROWS = 20_000  # newest rows, by whose scores those of an imported model are judged


@dataclass(frozen=True)
class Training:
    """The trainings for one serving period."""

    history: History
    state: State
    period: Partition  # a model learns only from what is known at its start
    stamp: Stamp
    former: Former | None = None  # the version whose clusters keep their numbers
    divided: bool = False  # whether the gate judges by the second half of the evaluation window, whatever is declared
    challenges: bool = False  # whether it is for a challenger, which may have no reasons

    @property
    def divides(self) -> bool:
        """True if refinements learn from the first half of the evaluation window, and the gate judges by the second."""
        return self.divided or holds_out(declared(self.history.spec))

    def learn(
        self,
        params: dict[str, Any],
        *,
        data: TrainingData | None = None,
        within: Sequence[Partition] | None = None,
    ) -> LearnedModel:
        """Fit a model with these parameters on the beginning of its window, or import it; write nothing.

        The rows of the training window are read unless they are given as `data`. `within` restricts the window.

        Raises:
            TrainingRefusedError: No model can be trained on the data.
            DataError: Features of the window are not built, or do not fit the model.
            WrongUseError: The model does not exist, or cannot be used as declared.
            IntegrityError: A feature file differs from what was recorded.
        """
        history, spec, period, builds = self.history, self.history.spec, self.period, self.state.features
        window = spec.periods.window(period.start, self.state.dropped)
        if within is not None:
            window = [partition for partition in window if partition in within]
        require_trainable(spec, period, window)
        boundary = window[0].start if spec.partitions.snapshot else spec.periods.evaluation_start(window)
        stratified = spec.model.import_ is None and is_classification(spec.model)
        if spec.model.train.sample == "balanced" and spec.model.import_ is None and not stratified:
            msg = f"{spec.name}, serving period {period.key}: model.train.sample: balanced is for classifiers only."
            raise TrainingRefusedError(msg, hint="leave model.train.sample out.")
        split_by_row = spec.partitions.snapshot or spec.model.import_ is not None
        learned = [partition for partition in window if split_by_row or spec.periods.matures(partition) <= boundary]
        training, whole = self._window(learned), self._window(window)
        with self._located():
            if spec.model.import_ is None:
                data = data or history.training_data(builds, window, boundary, self.stamp, stratified=stratified)
                refinements = declared(spec, challenges=self.challenges)
                data = data.divided() if self.divides else data.undivided()
                positive, former = self._positive(), self._former_reference
                fitted = fit(spec.model, spec.features, data, params, positive, former, refinements, spec.predictions)
                fitted = keep_numbers(fitted, data.fit, self.former)
            else:
                fitted, data = self._imported(window, params)
            require_rule(spec.predictions.decide, fitted.signature.task, fitted.signature.classes)
            fitted = self._with_estimates(self._with_prediction(fitted), data)
            fitted = replace(fitted, leaks=self._suspected_leaks(fitted))
        params = params if fitted.search is None else {**params, **fitted.search.best}
        manifest = Manifest(
            pipeline=spec.name,
            serving_period=period.key,
            serving_start=period.start.isoformat(),
            flavour=fitted.flavour.name,
            task=fitted.signature.task,
            classes=fitted.signature.classes,
            estimator=redact(spec.model.estimator or spec.model.build or spec.model.import_ or ""),
            params=redacted(params),
            search={} if fitted.search is None else redacted(asdict(fitted.search)),
            contract=fitted.signature.contract.to_json(),
            training=replace(training, rows=fitted.rows_fitted, rows_rejected=fitted.rows_rejected),
            evaluation=Evaluation(
                start=_judged_from(data, boundary).isoformat(),
                end=window[-1].end.isoformat(),
                rows=fitted.rows_evaluated,
                metrics=fitted.metrics,
                baseline=None if fitted.trivial is None else fitted.trivial.baseline,
                rows_refined=data.unseen.height if data is not None and holds_out(declared(spec)) else 0,
                rows_not_known=0 if data is None else data.rows_not_known,
            ),
            features_code_version=self.state.declared.features_version,
            created_at=self.stamp.now().isoformat(),
            run_id=self.stamp.run_id,
            imported_from=redact(spec.model.import_ or ""),
            details=redacted(fitted.details),
            sampled=None if data is None or spec.model.import_ else sample_of(spec, data),
            positive=fitted.positive,
            suspected_leaks=fitted.leaks,
            remarks=list(fitted.remarks),
            refinements=fitted.refinements.facts,
        )
        return LearnedModel(fitted, data, manifest, params, whole)

    def refit(self, learned: LearnedModel) -> LearnedModel:
        """Fit a model again on its whole window, evaluation rows included, if that is declared; write nothing.

        Its metrics stay those of the judged fit. An imported model stays as it is. Raises what `learn` raises.
        """
        spec, data = self.history.spec, learned.data
        if not spec.model.refit or spec.model.import_ is not None or data is None or not data.evaluate.height:
            return learned
        whole = data.whole(spec.model.train.max_rows, stratified=is_classification(spec.model))
        with self._located():
            fitted = refit(spec.model, spec.features, whole, learned.params, learned.fitted)
            fitted = keep_numbers(fitted, whole.fit, self.former)
            reference = after_refit(fitted.reference, fitted.scorer, fitted.signature, fitted.held_out)
            fitted = replace(fitted, reference=reference)
        manifest = replace(
            learned.manifest,
            contract=fitted.signature.contract.to_json(),
            training=replace(learned.whole, rows=fitted.rows_fitted, rows_rejected=fitted.rows_rejected),
            sampled=sample_of(spec, whole),
            refit=True,
            judged_fit=JudgedFit(learned.manifest.training, learned.manifest.contract),
            remarks=list(fitted.remarks),
            refinements=fitted.refinements.facts,
        )
        return replace(learned, fitted=fitted, manifest=manifest, judged_fit=learned.fitted)

    @cached_property
    def _former_reference(self) -> ReferenceProfile | None:
        """The reference profile of the version before, whose bins are kept where they still suit."""
        if self.former is None:
            return None
        version = self.former.version
        with suppress(IntegrityError):  # then the bins are made anew
            return read_reference(self.history.home.bundle(version.pipeline, version.version), version.sha256)
        return None

    def _with_prediction(self, fitted: Fitted) -> Fitted:
        """The same model with a profile of what it predicts for rows that it has not learned from."""
        spec, rows = self.history.spec, (fitted.held_out_rows, fitted.held_out)
        predicted = with_prediction(
            fitted.reference,
            fitted.scorer,
            fitted.signature,
            rows,
            spec.monitoring.segments,
            self._former_reference,
            spec.features.key,
        )
        return replace(fitted, reference=predicted)

    def _with_estimates(self, fitted: Fitted, data: TrainingData | None) -> Fitted:
        """The same model with what estimates of its performance are based on, as far as labels are known."""
        labels = self.history.spec.labels
        if data is None or labels is None or labels.weight is not None:  # rows without a label have no weight either
            return fitted
        rows, outcomes = fitted.signature.contract.split(data.evaluate).kept, fitted.judged and fitted.judged.outcomes
        segments = self.history.spec.monitoring.segments
        return replace(fitted, reference=with_basis(fitted.reference, outcomes, rows, segments))

    def _positive(self) -> Positive:
        """The declared positive class, and that of the newest version with two classes."""
        before = reversed(self.state.registry.of_model)
        classes = (version.class_labels for version in before if version.task in ("binary", "outliers"))
        return Positive(self.history.spec.positive, next((found[-1] for found in classes if found), None))

    def _suspected_leaks(self, fitted: Fitted) -> list[SuspectedLeak]:
        """The leaks that the data suggest and those that the SQL shows, each with its place in the SQL and whether it is allowed."""
        names, made = set(fitted.signature.contract.names), made_from_outcomes(self.history.builder)
        leaks = [
            SuspectedLeak((name,), f"is made from the outcome {outcome.source}.{outcome.column}")
            for name, outcome in made.items()
            if name in names
        ]
        shown = {name for leak in leaks for name in leak.columns}
        leaks += [leak for leak in fitted.leaks if not shown & {*leak.columns}]
        allowed = {*self.history.spec.model.allow_suspected_leaks}
        places = [
            "; ".join(filter(None, (place_in_sql(self.history.builder, name) for name in leak.columns)))
            for leak in leaks
        ]
        return [
            SuspectedLeak(
                leak.columns,
                f"{leak.reason} ({place})" if place else leak.reason,
                allowed="*" in allowed or (bool(leak.columns) and allowed >= {*leak.columns}),
            )
            for leak, place in zip(leaks, places, strict=True)
        ]

    @contextmanager
    def _located(self) -> Generator[None]:
        """Say in an error which pipeline and serving period could not be trained."""
        name = self.history.spec.name
        try:
            yield
        except BatchPlatformError as error:
            if error.message.startswith(name):
                raise
            msg = f"{name}, serving period {self.period.key}: {error.message}"
            raise type(error)(msg, hint=error.hint) from error

    def _window(self, partitions: Sequence[Partition]) -> Window:
        """The data of partitions to learn from, without the number of rows; asked before their labels are read."""
        builds, imported = self.state.features, self.history.spec.model.import_ is not None
        self.history.require(builds, *partitions)
        return Window(
            start=partitions[0].start.isoformat(),
            end=partitions[-1].end.isoformat(),
            partitions=len(partitions),
            rows=0,
            rows_rejected=0,
            features_sha256=window_sha256(partitions, lambda partition: builds[partition.key].sha256),
            label_sources="" if imported else self.history.label_fingerprint(partitions, self.stamp),
        )

    def _imported(self, window: Sequence[Partition], params: dict[str, Any]) -> tuple[Fitted, TrainingData | None]:
        """The imported model, checked against the features, and the rows to judge it by; None if no label is known."""
        spec, builds = self.history.spec, self.state.features
        seen = self.history.rows(builds, window)
        if not seen.height:
            msg = "There are no features before it from which the contract of the imported model could be learned."
            raise TrainingRefusedError(msg, hint="import it for a later serving period.")
        imported = read_import(spec.model, self.history.builder.sources.folder, params)
        columns = seen.select(feature_columns(spec.features, seen.schema))
        inferred = infer_contract(columns, spec.features.columns, most_categories=None)
        signature = imported.signature(inferred)
        predictor, contract = imported.flavour.reloaded(imported.source.model, signature), signature.contract
        learned = contract.split(seen).kept
        held_out = learned.tail(_REFERENCE_ROWS)  # it was fitted elsewhere
        matrix = contract.encode(held_out)
        if held_out.height:  # the model must return what it is declared to return
            predictor.predict(matrix[-_TRIAL_ROWS:])
        data = self._held_out(window)
        labels = (
            None if data is None or data.label is None else pl.concat([data.fit[data.label], data.evaluate[data.label]])
        )
        signature = self._positive().of_import(signature, labels)
        data = data.divided() if data is not None and self.divides else data
        known = TrainingData(seen.clear(), seen.clear(), None) if data is None else data
        rows, unseen = contract.split(known.evaluate), contract.split(known.unseen)
        learned_matrix = contract.encode(learned)
        single = imported.flavour.single
        refining = Refining(predictor, signature, known, learned_matrix, unseen.kept, rows.kept, single)
        refinements = refining.learn(declared(spec, challenges=self.challenges))
        judged, metrics, trivial = None, dict[str, float](), None
        if data is not None:
            scorer = refinements.around(predictor)
            judged, metrics, trivial = measured(
                spec.model, scorer, signature, (data.fit, rows.kept), data.label, predictions=spec.predictions
            )
        fitted = Fitted(
            estimator=imported.source.model,
            signature=signature,
            metrics=metrics,
            rows_fitted=0,
            rows_evaluated=rows.kept.height,
            rows_rejected=rows.rejected.height + unseen.rejected.height,
            leaks=suspiciously_good(metrics, rows.kept, data.label, signature.task) if data is not None else [],
            held_out=matrix,
            held_out_rows=held_out,
            flavour=imported.flavour,
            predictor=predictor,
            reference=reference_of(
                contract,
                (learned, learned_matrix),
                self._former_reference,
                key=spec.features.key,
            ),
            details=imported.source.details,
            judged=judged,
            trivial=trivial,
            refinements=refinements,
            remarks=refinements.remarks,
        )
        return fitted, data if metrics else None

    def _held_out(self, window: Sequence[Partition]) -> TrainingData | None:
        """The end of a window with the rows before it, as far as labels are known then; None if no label is known.

        No imported model learns from the rows before the end, but the trivial one that it is held against.
        """
        spec = self.history.spec
        known = [partition for partition in window if spec.periods.matures(partition) <= self.period.start]
        if spec.labels is None or not known:
            return None
        boundary = spec.periods.evaluation_start(known)
        held_out = [partition for partition in known if partition.start >= boundary] or known[-1:]
        return self.history.training_data(self.state.features, known, held_out[0].start, self.stamp)


def _judged_from(data: TrainingData | None, boundary: datetime) -> datetime:
    """The start of the rows that judge a model, given that of its evaluation window."""
    if data is None or not data.unseen.height or FIRST_HALF in data.evaluate.columns:
        return boundary
    return min(data.evaluate[PARTITION_START])


def require_trainable(spec: PipelineSpec, period: Partition, window: Sequence[Partition]) -> None:
    """Raise TrainingRefusedError if the training window of a serving period is too short."""
    if not spec.periods.can_train(window):
        msg = f"{spec.name}, serving period {period.key}: its training window holds {len(window)} partitions."
        known = (
            "" if spec.labels is None else f", with labels known when that begins (labels.delay: {spec.labels.delay})"
        )
        hint = f"besides model.train.evaluate ({spec.model.train.evaluate}), it needs partitions to learn from{known}."
        raise TrainingRefusedError(msg, hint=hint)
