"""The trees of a model as one file of its bundle, so that scoring need not load the library that grew them.

The file holds the plain trees, the start and the finish of their sum, and digests of what the library itself answered for the
generated rows of every proof. Some models cannot be stored this way: those with transformers in front of the trees, with a start
that depends on the row, or with a finish that only the library knows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.forest.ensembles import Constant, Ensemble, Link, Parts, Tree

TREES_FILE = "trees.npz"
_BY_NODE = ("feature", "threshold", "left", "right", "missing_left", "left_set", "value")
_STORED = {"feature": np.int32, "left": np.int32, "right": np.int32, "left_set": np.int32}
_FLAGS = ("single", "single_sums", "nan_refused", "unknown_refused")


@dataclass(frozen=True)
class StoredTrees:
    """The content of a file of trees.

    Args:
        parts: The trees, with nothing in front of them.
        digests: Of what the library answered for each matrix of generated rows, in their order.
    """

    parts: Parts
    digests: list[str]


def trees_file(parts: Parts, digests: Sequence[str]) -> bytes:
    """Return the file of a model's trees; empty if they cannot be stored."""
    ensemble = parts.ensemble
    if parts.steps or not isinstance(ensemble.start, Constant) or not isinstance(ensemble.finish, Link):
        return b""
    header = {
        "features": ensemble.features,
        "by_output": ensemble.start.by_output,
        "link": asdict(ensemble.finish),
        "digests": list(digests),
        **{name: getattr(ensemble, name) for name in _FLAGS},
    }
    columns = sorted(ensemble.categories)
    arrays: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "start": ensemble.start.row,
        "infinity_refused": ensemble.infinity_refused,
        "category_column": np.array(columns, np.int32),
        "category_count": np.array([len(ensemble.categories[at]) for at in columns], np.int32),
        "category": np.concatenate([np.empty(0), *(ensemble.categories[at] for at in columns)]),
        "nodes": np.array([len(tree.left) for tree in ensemble.trees], np.int32),
        "sets": np.array([len(tree.left_sets) for tree in ensemble.trees], np.int32),
        "left_sets": np.packbits(np.concatenate([tree.left_sets for tree in ensemble.trees]), axis=1),
        "output": np.array([tree.output for tree in ensemble.trees], np.int32),
    }
    for name in _BY_NODE:
        joined = np.concatenate([getattr(tree, name) for tree in ensemble.trees])
        arrays[name] = joined.astype(_STORED.get(name, joined.dtype))
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_trees(data: bytes) -> StoredTrees:
    """Read a file whose hash was checked."""
    with np.load(BytesIO(data), allow_pickle=False) as file:
        arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    counts = np.cumsum(arrays["category_count"])[:-1]
    columns = arrays["category_column"].tolist()
    categories = dict(zip(columns, np.split(arrays["category"], counts), strict=True)) if columns else {}
    ensemble = Ensemble(
        features=header["features"],
        trees=list(_trees(arrays)),
        start=Constant(arrays["start"], header["by_output"]),
        finish=Link(**header["link"]),
        infinity_refused=arrays["infinity_refused"],
        categories=categories,
        **{name: header[name] for name in _FLAGS},
    )
    return StoredTrees(Parts([], ensemble.features, ensemble), header["digests"])


def _trees(arrays: dict[str, NDArray[Any]]) -> Iterator[Tree]:
    wide: dict[str, NDArray[Any]] = {
        name: arrays[name].astype(np.int64) if name in _STORED else arrays[name] for name in _BY_NODE
    }
    unpacked = np.unpackbits(arrays["left_sets"], axis=1).astype(np.bool_)
    node = first_set = 0
    for nodes, sets, output in zip(*(arrays[name].tolist() for name in ("nodes", "sets", "output")), strict=True):
        by_node = {name: values[node : node + nodes] for name, values in wide.items()}
        yield Tree(**by_node, left_sets=unpacked[first_set : first_set + sets], output=output)
        node, first_set = node + nodes, first_set + sets
