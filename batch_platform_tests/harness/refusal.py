"""The message of a declaration that is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from batch_platform.declaration.spec import PipelineSpec


def refusal(declared: dict[str, Any]) -> str:
    """The path and the message of the one thing that is wrong."""
    with pytest.raises(ValidationError) as refused:
        PipelineSpec.model_validate(declared)
    (error,) = refused.value.errors()
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
