"""The keys of a declaration: those that exist, and those that a declaration uses."""

from collections.abc import Iterator
from inspect import isclass
from typing import Any

from batch_platform.declaration.notation import Block

OTHER_OF_TWO = {  # the other of two or three keys of which one is given, and what goes with it
    "features.python",
    "features.spark_sql",
    "sources.sql.table",
    "sources.spark_table",  # goes with features.spark_sql
    "partitions.snapshot",  # goes with neither features.time nor features.driving
    "model.train.held_out",
    "predictions.reasons.of",
    *(f"predictions.decide.{key}" for key in ("threshold", "benefit", "cost", "top")),
    *(f"{of}.{key}" for of in ("model", "challengers") for key in ("build", "import", "flavour", "task", "classes")),
}


def blocks_of(block: type[Block], path: str = "") -> Iterator[tuple[str, type[Block]]]:
    """A block and every block inside it, each with the path of its keys."""
    yield path, block
    for name, field in block.model_fields.items():
        for part in _parts(field.annotation):
            if isclass(part) and issubclass(part, Block):
                yield from blocks_of(part, f"{path}{field.alias or name}.")


def keys_of(block: type[Block]) -> set[str]:
    """The paths of all keys that hold a value."""
    blocks = list(blocks_of(block))
    keys = {f"{path}{field.alias or name}" for path, inner in blocks for name, field in inner.model_fields.items()}
    return keys - {path.removesuffix(".") for path, _ in blocks}


def _parts(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(part for argument in arguments for part in _parts(argument))]


def given_keys(declared: dict[str, Any], path: str = "") -> set[str]:
    """The keys in use, without the names of sources and columns."""
    keys: set[str] = set()
    for key, value in declared.items():
        blocks = (
            [*value.values()]
            if key in ("sources", "columns")
            else value
            if key in ("challengers", "deliver")
            else [value]
        )
        for block in blocks:
            deeper = isinstance(block, dict) and key not in ("params", "types", "conf", "costs")
            keys |= given_keys(block, f"{path}{key}.") if deeper else {f"{path}{key}"}
    return keys
