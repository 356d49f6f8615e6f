"""Challengers as they are declared: each takes the place of the model, with keys of its own in messages."""

import re
from pathlib import Path

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.model import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.declared_model import check_model
from batch_platform.models.registry import Registry

_MODEL_KEY = re.compile(
    r"\bmodel\.(estimator|build|import|params|search|calibrate|flavour|task|classes|allow_pickle)\b"
)


def with_own_keys(text: str, challenger: Challenger) -> str:
    """Replace the keys of the model in a message by those of a challenger."""
    return _MODEL_KEY.sub(rf"challengers.{challenger.name}.\1", text)


def as_model(spec: PipelineSpec, challenger: Challenger) -> PipelineSpec:
    """The pipeline with a challenger in place of its model, trained at the same times on the same windows."""
    declared = {
        name: getattr(challenger, name) for name in type(challenger).model_fields if name not in ("name", "version")
    }
    return spec.model_copy(update={"model": spec.model.model_copy(update={**declared, "publish": None})})


def check_challengers(spec: PipelineSpec, folder: Path, registry: Registry) -> None:
    """Check, without data and without a server, that the challengers could be trained or imported, or are stored versions.

    Where no version is stored, such as on a machine that only checks, none is missed.

    Raises:
        WrongUseError: A challenger could not; the message names it.
        DataError: The file of an import is not of its flavour.
    """
    for challenger in spec.challengers:
        try:
            if challenger.version is None:
                check_model(as_model(spec, challenger).model, folder, spec.predictions)
            elif registry.versions:
                registry.present(challenger.version)
        except BatchPlatformError as error:
            hint = None if error.hint is None else with_own_keys(error.hint, challenger)
            key = f"challengers.{challenger.name}.version: " if challenger.version else ""
            raise type(error)(key + with_own_keys(error.message, challenger), hint=hint) from error
