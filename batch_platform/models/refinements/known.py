"""The refinements that exist, and those that a pipeline declares."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.refinements.calibration import CALIBRATION
from batch_platform.models.refinements.interval import INTERVAL
from batch_platform.models.refinements.learning import Declared
from batch_platform.models.refinements.prior import PRIOR
from batch_platform.models.refinements.reasons import REASONS
from batch_platform.models.refinements.refinement import Refinement

_KEY = "predictions.refine"
# In the order of application: those that change the output come before those that add columns, and a pipeline's own between them.
REFINEMENTS: dict[str, Refinement] = {
    refinement.name: refinement for refinement in (PRIOR, CALIBRATION, INTERVAL, REASONS)
}


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
