"""The refinements that exist, those that a pipeline declares, and how these are learned: one on top of the other."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import BatchPlatformError, TrainingRefusedError, WrongUseError
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.history import TrainingData
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Signature
from batch_platform.models.judged import outcomes_of
from batch_platform.models.refinements.calibration import CALIBRATION, PRIOR
from batch_platform.models.refinements.interval import INTERVAL
from batch_platform.models.refinements.reasons import REASONS
from batch_platform.models.refinements.refinement import (
    Applied,
    Check,
    Learned,
    NotAppliedError,
    Refinement,
    Unseen,
    empty_output,
    refined,
)
from batch_platform.monitoring.metrics import as_truth
from batch_platform.monitoring.outcomes import Outcomes

_KEY = "predictions.refine"
# In the order of application: those that change the output come before those that add columns, and a pipeline's own between them.
REFINEMENTS: dict[str, Refinement] = {
    refinement.name: refinement for refinement in (PRIOR, CALIBRATION, INTERVAL, REASONS)
}


@dataclass(frozen=True)
class Declared:
    """A refinement that a pipeline declares."""

    refinement: Refinement
    settings: Any
    required: bool = True  # whether a model is refused for which it cannot be learned


def declared(spec: PipelineSpec, *, challenges: bool = False) -> tuple[Declared, ...]:
    """The refinements that a pipeline declares, in the order of application; raises WrongUseError for one that does not exist.

    A model that `challenges` another is trained without reasons if its flavour has none.
    """
    settings = {name: refinement.declared(spec) for name, refinement in REFINEMENTS.items()}
    optional = {REASONS.name} if challenges else set[str]()
    known = [Declared(REFINEMENTS[name], it, name not in optional) for name, it in settings.items() if it is not None]
    own = [Declared(_own(path), None) for path in spec.predictions.refine]
    refining, adding = ([each for each in known if (each.refinement.refine is None) == adds] for adds in (False, True))
    return (*refining, *own, *adding)


def holds_out(declared: Sequence[Declared]) -> bool:
    """Return whether one of them learns from rows that the model has not seen."""
    return any(each.refinement.holds_out for each in declared)


def fingerprint(spec: PipelineSpec) -> str:
    """A hash that changes when a model would be trained with other refinements; empty if none of them asks for a training."""
    content = [
        [each.refinement.name, each.refinement.source, repr(each.settings)]
        for each in declared(spec)
        if each.refinement.retrains
    ]
    return sha256(json.dumps(content).encode()).hexdigest()[:12] if content else ""


def refinement_named(name: str) -> Refinement:
    """A refinement of a bundle; raises WrongUseError if it does not exist here."""
    if "." in name:
        return _own(name)
    if name not in REFINEMENTS:
        msg = f"A bundle has the refinement {name!r}, which this version does not know."
        raise WrongUseError(msg, hint="upgrade batch-platform.")
    return REFINEMENTS[name]


def _own(path: str) -> Refinement:
    refinement: object = import_function(path, _KEY, Refinement)
    if not isinstance(refinement, Refinement):
        msg = f"{_KEY}: {path} is not a Refinement."
        raise WrongUseError(msg, hint="name a record of batch_platform.models.refinements.refinement.Refinement.")
    file = getattr(sys.modules[path.rpartition(".")[0]], "__file__", None)
    return replace(refinement, name=path, source=sha256(Path(file).read_bytes() if file else b"").hexdigest())


@dataclass(frozen=True)
class Refinements:
    """The refinements of a version, and what is known of those that it declares."""

    declared: tuple[Declared, ...] = ()
    applied: tuple[Applied, ...] = ()
    # Facts for the manifest, by name of the refinement.
    facts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    remarks: tuple[str, ...] = ()  # the reason for each that is not applied, and what to know of those that are

    def around(self, model: Predictor) -> Predictor:
        """The model as it will score."""
        return refined(model, self.applied)

    def of(self, name: str) -> dict[str, Any]:
        """The learned values of a refinement; empty if it is not applied."""
        return next((each.learned for each in self.applied if each.refinement.name == name), {})


@dataclass(frozen=True)
class Refining:
    """The learning of refinements for a fitted model, from rows that it has not seen."""

    model: Predictor
    signature: Signature
    data: TrainingData  # the rows that the model learned from
    learned_from: NDArray[np.float64]  # those of them that keep the contract, encoded
    unseen: pl.DataFrame  # the rows held out for refinements that keep the contract
    judged: pl.DataFrame  # the rows that the gate judges that keep the contract
    single: bool  # whether the model's own library returns numbers of 32 bits

    def learn(self, declared: Sequence[Declared], judged: Refinements | None = None, share: float = 1.0) -> Refinements:
        """Learn declared refinements, each on top of those before it.

        If the model was fitted again, `judged` are the refinements of the fit that was judged, which learned from a `share` of the
        rows: what they learned from rows held out stays, if it suits such a share. Raises TrainingRefusedError if no model can be trained as declared.
        """
        first = judged or Refinements()
        stays = {each.refinement.name: each for each in first.applied}
        applied, facts, remarks = list[Applied](), {**first.facts}, list(first.remarks)
        for each in declared:
            name = each.refinement.name
            if judged is not None and each.refinement.holds_out:
                if objection := each.refinement.unsuited(each.settings, share) if name in stays else "":
                    facts, remarks = facts | {name: {"applied": False}}, [*remarks, objection]
                applied += [] if objection else filter(None, [stays.get(name)])
                continue
            learned = self._attempted(each, refined(self.model, applied))
            if isinstance(learned, str):
                remarks.append(learned)
                continue
            if learned is None:
                continue
            candidate = Applied(each.refinement, learned)
            check = self._checked(candidate, applied)
            facts |= {name: check.facts} if check.facts else {}
            if check.objection:
                remarks.append(check.objection)
            else:
                applied.append(candidate)
                remarks += filter(None, [each.refinement.remark(learned)])
        return Refinements(tuple(declared), tuple(applied), facts, tuple(dict.fromkeys(remarks)))

    def _attempted(self, declared: Declared, predictor: Predictor) -> Learned | str | None:
        """Fit a refinement on top of a predictor; returns the reason where the model is trained without it."""
        try:
            return declared.refinement.fit(declared.settings, self._unseen(declared, predictor))
        except NotAppliedError as error:
            return str(error)
        except Exception as error:
            if isinstance(error, TrainingRefusedError) and not declared.required:
                return error.message.removesuffix(".")
            if isinstance(error, BatchPlatformError) or not declared.refinement.source:
                raise
            msg = f"predictions.refine: {declared.refinement.name} raised {type(error).__name__}: {error}"
            raise TrainingRefusedError(msg.rstrip(".") + ".", hint="correct its function `fit`.") from error

    def _unseen(self, declared: Declared, predictor: Predictor) -> Unseen:
        rows = self.unseen if declared.refinement.holds_out else self.unseen.clear()
        matrix, label = self.signature.contract.encode(rows), self.data.label
        with one_thread():
            raw = predictor.predict(matrix) if rows.height else empty_output(self.signature)
        truth = None if label is None else as_truth(rows[label])
        return Unseen(
            rows, matrix, raw, truth, self.signature, predictor, self.data, self.learned_from, single=self.single
        )

    def _checked(self, candidate: Applied, applied: Sequence[Applied]) -> Check:
        check, refine, name = candidate.refinement.check, candidate.refinement.refine, candidate.refinement.name
        tried = check is not None or (refine is not None and candidate.refinement.source)
        if not tried or not self.judged.height:
            return Check()
        before = after = self._outcomes(applied)
        if refine is not None:
            after = self._outcomes([*applied, candidate])
        if after.predicted.shape != before.predicted.shape:
            msg = f"predictions.refine: {name} returned {[*after.predicted.shape]} in place of {[*before.predicted.shape]}."
            hint = "it returns what takes the place of the predictor's output, of the same shape."
            raise TrainingRefusedError(msg, hint=hint)
        return Check() if check is None else check(candidate.learned, before, after)

    def _outcomes(self, applied: Sequence[Applied]) -> Outcomes:
        return outcomes_of(refined(self.model, applied), self.signature, self.judged, self.data.label)
