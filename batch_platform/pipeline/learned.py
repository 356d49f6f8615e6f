"""A model that was learned or imported for a serving period, until its bundle is written."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from batch_platform.declaration.errors import IntegrityError, PublishingError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.history import TrainingData
from batch_platform.features.training_data import SEED
from batch_platform.models.bundle import LEARNED_FILE, Manifest, Sampled, Window, read_manifest, write_bundle
from batch_platform.models.contract import Contract
from batch_platform.models.declared_model import is_classification
from batch_platform.models.fitting import Fitted
from batch_platform.models.judged import SCORES_FILE
from batch_platform.models.registry import Promotion, Version
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import as_record


@dataclass(frozen=True)
class LearnedModel:
    """A fitted or imported model and its manifest, not written to disk yet."""

    fitted: Fitted
    data: TrainingData | None  # divided if its refinements hold rows out; None if no label is known to judge it by
    manifest: Manifest  # without what is known only once the files are written
    params: dict[str, Any]
    whole: Window  # the training window with the evaluation rows, from which nothing is learned yet
    judged_fit: Fitted | None = None  # the fit that was judged, if another one serves

    def changes_since(self, former: Version, spec: PipelineSpec, home: Home) -> list[str]:
        """Say which features changed since a former version; nothing if its bundle is gone or damaged. See `Contract.changes_since`."""
        try:
            manifest = read_manifest(home.bundle(former.pipeline, former.version), former.sha256)
        except IntegrityError:
            return []
        contract = Contract.from_json(manifest.contract)
        return self.fitted.signature.contract.changes_since(contract.under(spec.features.columns))

    def write(self, staging: Path, models: Path, *, allow_pickle: bool) -> Version:
        """Write its bundle, wholly or not at all; see `write_bundle`.

        Raises:
            TrainingRefusedError: The model holds a type that would not be trusted on loading.
        """
        proof, flavour = self.fitted.proof, self.fitted.flavour
        as_saved = flavour.pickled if allow_pickle else lambda model: model
        fit, judged_fit = self.fitted, self.judged_fit
        proven = replace(self.manifest, compiled=proof.compiled)
        judged, labelled = self.fitted.judged, self.data is not None and self.data.label is not None
        read_later = {SCORES_FILE: judged.to_parquet()} if judged is not None and labelled else {}
        if judged_fit is not None and labelled and self.data is not None and self.data.labelled is not None:
            read_later[LEARNED_FILE] = np.unique(self.data.labelled.to_numpy()).astype("<u8").tobytes()
        version, sha256, manifest = write_bundle(
            proven,
            as_saved(fit.estimator),
            staging,
            models,
            fit.reference,
            proof.trees,
            read_later,
            fit.refinements.applied,
            judged_fit and (as_saved(judged_fit.estimator), judged_fit.refinements.applied),
        )
        # Scores are found by the names of their columns: with one order of classes, any two versions are measured together.
        trained_classes = manifest.task == "multiclass" and not manifest.imported_from
        classes = sorted(manifest.classes) if trained_classes else manifest.classes
        return as_record(
            Version,
            manifest,
            version=version,
            serving_start=datetime.fromisoformat(manifest.serving_start),
            sha256=sha256,
            params=json.dumps(manifest.params, sort_keys=True),
            trained_from=datetime.fromisoformat(manifest.training.start),
            trained_until=datetime.fromisoformat(manifest.training.end),
            rows_trained=manifest.training.rows,
            rows_evaluated=manifest.evaluation.rows,
            metrics=json.dumps(manifest.evaluation.metrics, sort_keys=True),
            created_at=datetime.fromisoformat(manifest.created_at),
            classes=json.dumps(classes),
            label_sources=manifest.training.label_sources,
        )


def sample_of(spec: PipelineSpec, data: TrainingData) -> Sampled | None:
    """Describe how the rows to learn from were sampled; None if all of them were used."""
    before, after = data.rows_before_cap, data.fit.height
    if before == after:
        return None
    return Sampled(
        max_rows=spec.model.train.max_rows,
        rows_before=before,
        rows_after=after,
        stratified=is_classification(spec.model) and not data.balanced,
        seed=SEED,
    )


def publish_version(spec: PipelineSpec, home: Home, version: Version, decision: Promotion) -> None:
    """Register a version in MLflow too, as declared; raises a PublishingError if MLflow does not accept it."""
    from batch_platform.models.publishing import publish_bundle

    try:
        publish_bundle(
            home.bundle(spec.name, version.version),
            version.sha256,
            decision=decision.action,
            reason=decision.reason,
            allow_pickle=spec.model.allow_pickle,
        )
    except Exception as error:  # errors of MLflow, the network and the disk share no class
        msg = f"{spec.name}: {version.version} is registered here ({decision.action}), but not in MLflow: {error}"
        raise PublishingError(msg.rstrip(".") + ".", hint="materialize the model again once MLflow answers.") from error
