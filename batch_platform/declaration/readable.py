"""What can still be read of a declaration that is wrong: enough to stand for the pipeline until it is mended.

Definitions of a user's may name its jobs and map their partitions to its own, so the names and partitions are taken from
whichever blocks are right.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.inputs import Partitions
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES

_DECIDING = ("partitions", "labels", "model")  # blocks that decide which partitions are served
_LIKE = 0.8  # how alike a misspelt key must be
_PARTS: dict[str, tuple[str, ...]] = {  # keys that are tried alone where their block is wrong
    "partitions": tuple(Partitions.model_fields),
    "labels": ("delay",),
    "train": ("every", "start", "window", "evaluate"),
    "predictions": ("deliver",),
    "monitoring": ("drift",),
    "report": ("every",),
}


@dataclass(frozen=True)
class Readable:
    """A declaration as far as it can be read."""

    spec: PipelineSpec  # with other blocks in the place of those that are wrong
    has_partitions: bool  # whether its partitions are those that were declared


def read_what_is_right(folder: Path, key: int | str, name: str) -> Readable:
    """Read every block of a declaration that is right, given by its name and its position in the YAML file of a folder."""
    blocks: dict[str, Any] = {
        "name": name,
        "partitions": {"every": "day", "start": "2000-01-01"},
        "sources": {"source": {"parquet": "source.parquet"}},
        "features": {"sql": "features.sql", "key": ["id"], "time": "time"},
        "model": {"estimator": "sklearn.dummy.DummyClassifier"},
    }
    spec = PipelineSpec.model_validate(blocks)
    declared = readable_attributes(folder, key)
    known = {"partitions", "model"} <= declared.keys() and not any(declared.get(it, {}) is None for it in _DECIDING)
    for path, value in _parts(declared):
        candidate = _with(blocks, path, value)
        try:
            spec = PipelineSpec.model_validate(candidate)
        except (ValidationError, BatchPlatformError):
            known = known and not (path[0] in _DECIDING and path[-1] not in _PARTS)
            continue
        blocks = candidate
    return Readable(spec, known)


def _parts(declared: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The parts to try, each with its path: a block as a whole, then its keys."""
    model = declared.get("model")
    if isinstance(declared.get("labels"), Mapping):  # its column and SQL do not matter
        yield ("labels",), {"sql": "labels.sql", "column": "label"}
    if isinstance(model, Mapping) and "import" in model:
        yield ("model",), {"import": model["import"]}
    train = model.get("train") if isinstance(model, Mapping) else None
    for (*outer, block), value in (
        (("partitions",), declared.get("partitions")),
        (("labels",), declared.get("labels")),
        (("model", "train"), train),
        (("predictions",), declared.get("predictions")),
        (("monitoring",), declared.get("monitoring")),
        (("report",), declared.get("report")),
    ):
        if isinstance(value, Mapping):
            yield (*outer, block), value
            for key, part in _nearest(value, _PARTS[block]).items():
                yield (*outer, block, key), part


def _with(blocks: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Blocks with another value at a path."""
    first, *rest = path
    return {**blocks, first: _with(blocks.get(first) or {}, tuple(rest), value) if rest else value}


def _nearest(block: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The values of some keys of a block, also of a key that is misspelt."""
    names = {key: key if key in block else next(iter(get_close_matches(key, block, 1, _LIKE)), None) for key in keys}
    return {key: block[name] for key, name in names.items() if name is not None}


def readable_attributes(folder: Path, key: int | str) -> Mapping[str, Any]:
    """The attributes of a pipeline, with None for each block that is no YAML."""
    file = next((file for file in (folder / name for name in FILE_NAMES) if file.is_file()), None)
    if file is None or not isinstance(key, int):
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    documents = re.split(r"^---.*$", text, flags=re.MULTILINE)
    parts = [part for part in documents if part.strip()]
    return _blocks(parts[key]) if key < len(parts) else {}


def _blocks(text: str) -> Mapping[str, Any]:
    """The blocks below `attributes` of a document, each parsed alone where they cannot be parsed together; None where that fails."""
    whole = _parsed(text)
    if isinstance(attributes := whole.get("attributes"), Mapping):
        return dict(attributes)
    _, _, below = text.partition("attributes:")
    first = re.search(r"^( +)\w+:", below, flags=re.MULTILINE)
    if first is None:
        return {}
    starts = [match.start() for match in re.finditer(rf"^{first[1]}\w+:", below, flags=re.MULTILINE)]
    ends = [*starts[1:], len(below)]
    blocks = dict[str, Any]()
    for start, end in zip(starts, ends, strict=True):
        blocks |= _parsed(below[start:end]) or {below[start:end].partition(":")[0].strip(): None}
    return blocks


def _parsed(text: str) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
