"""Check the YAML file of a declaration before Dagster parses it.

Dagster's parser silently accepts duplicate keys and aliases that multiply. They are refused here with file, line and key,
in time and memory that grow with the file alone.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from batch_platform.declaration.errors import Failed, WrongUseError

TYPE = "batch_platform.components.BatchInference"  # type of a pipeline
FILE_NAMES = ("defs.yaml", "defs.yml", "component.yaml")  # names that Dagster looks for, in this order
MOST_VALUES = 100_000  # maximum with every alias written out; a long declaration has some hundreds
_VARIABLE = re.compile(r"\{\{\s*env\.([A-Za-z_]\w*)\s*\}\}")
_PLAIN = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ["str", "int", "float", "bool", "null", "timestamp", "seq", "map"]
)


def declared_in(path: Path) -> Path:
    """The YAML file of a folder; the path itself if it is a file or the folder has none."""
    return next((file for file in (path / name for name in FILE_NAMES) if file.is_file()), path)


def check_file(path: Path) -> None:
    """Check every document of a file; raises WrongUseError with the line and the key of what is refused."""
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        msg = f"{path} cannot be read ({reason})."
        raise WrongUseError(msg, hint="save it as a text file in UTF-8.") from error
    except RecursionError as error:
        msg = f"{path}: its blocks are nested too deeply."
        raise WrongUseError(msg, hint="a declaration needs six levels at most.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = ", ".join(filter(None, [error.context, error.problem]))
        msg = f"{where}: {problem}."
        hint = "the file is not valid YAML; check quotes, brackets and indentation."
        raise WrongUseError(
            msg, hint="indent with spaces: YAML takes no tabs." if "'\\t'" in problem else hint
        ) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        msg = f"{path}: {' '.join(str(error).split())}."
        raise WrongUseError(msg, hint="remove the character, or write it as an escape in double quotes.") from error
    for document in documents or [None]:
        if not isinstance(document, yaml.MappingNode):
            msg = f"{path}: the file declares nothing."
            raise WrongUseError(msg, hint="a declaration is a block with the keys `type` and `attributes`.")
        _check(document, "", path, {})


def place_of_name(text: str, name: str) -> slice | None:
    """Find the place at which a text declares the name of a pipeline; None if it does not."""
    for _, declared in _attributes(text):
        if declared.value == name:
            return slice(declared.start_mark.index, declared.end_mark.index)
    return None


def with_place(error: Failed, folder: Path, pipeline: str) -> Failed:
    """An error whose message begins with a declared key, with file and line in front of it; any other error as it is.

    A challenger in the key has its name, as in `challengers.linear.params`.
    """
    path = error.message.partition(": ")[0].split(".")
    file = declared_in(folder)
    if not file.is_file() or len(path) == 1:
        return error
    for attributes, declared in _attributes(file.read_text(encoding="utf-8")):
        if declared.value == pipeline and (line := _line(attributes, path)) is not None:
            placed = type(error)(f"{file}:{line}: attributes.{error.message}", hint=error.hint)
            placed.__cause__ = error.__cause__  # the error itself says the same and would be shown twice
            return placed
    return error


def _attributes(text: str) -> Iterator[tuple[yaml.Node, yaml.ScalarNode]]:
    """The attributes of each pipeline that a text declares, and the name among them."""
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        attributes = _value(document, "attributes")
        name = None if attributes is None else _value(attributes, "name")
        if attributes is not None and isinstance(name, yaml.ScalarNode):
            yield attributes, name


def _line(node: yaml.Node, path: Sequence[str]) -> int | None:
    """The line of a key, or of the innermost block around it that there is; None if not even the outermost one is there."""
    line: int | None = None
    for part in path:
        if isinstance(node, yaml.SequenceNode):
            pairs = [(item, item) for item in node.value if getattr(_value(item, "name"), "value", None) == part]
        else:
            pairs = [pair for pair in _pairs(node) if pair[0].value == part]
        if not pairs:
            break
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line


def _value(node: yaml.Node, key: str) -> yaml.Node | None:
    return next((value for name, value in _pairs(node) if name.value == key), None)


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _check(node: yaml.Node, at: str, path: Path, counts: dict[int, int], around: frozenset[int] = frozenset()) -> int:
    """Check a node and all nodes below it; returns the number of its values with every alias written out.

    `counts` holds the number by the identity of each node that was visited: an alias stands for an earlier node, so each node is
    visited once. `around` are the nodes that the node lies in.
    """
    if id(node) in counts:
        return counts[id(node)]
    if id(node) in around:
        raise _refusal(path, node, at, "an alias occurs inside the block it repeats", "write the values out.")
    _check_node(node, at, path)
    inside = around | {id(node)}
    count = 1 + sum(_check(child, name, path, counts, inside) for child, name in _children(node, at))
    if count > MOST_VALUES:
        problem = f"its aliases expand to more than {MOST_VALUES:,} values"
        raise _refusal(path, node, at, problem, "write the values out; an alias repeats everything below it.")
    counts[id(node)] = count
    return count


def _check_node(node: yaml.Node, at: str, path: Path) -> None:
    if node.tag not in _PLAIN:
        hint = "remove the tag: a declaration consists of texts, numbers, lists and blocks."
        raise _refusal(path, node, at, f"the tag {_short(node.tag)} creates an object", hint)
    if isinstance(node, yaml.ScalarNode) and (unset := _unset_variable(str(node.value))) is not None:
        hint = f"set it where this command and Dagster run, or write {{{{ env('{unset}', 'a default') }}}}."
        raise _refusal(path, node, at, f"the environment variable {unset} is not set", hint)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refusal(path, key, at, "a key is a list or a block", "a key is one word.")
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            problem = f"the key {name!r} occurs twice, first in line {lines[name]}"
            raise _refusal(path, key, f"{at}.{name}".strip("."), problem, "remove one of the two.")
        lines[name] = line


def _unset_variable(text: str) -> str | None:
    """The first environment variable that a template names without a default and that is not set; Dagster would write `None`."""
    return next((name for name in _VARIABLE.findall(text) if name not in os.environ), None)


def _children(node: yaml.Node, at: str) -> Iterator[tuple[yaml.Node, str]]:
    """The child nodes with their paths. Keys are plain values and have no children."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield value, f"{at}.{getattr(key, 'value', '')}".strip(".")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield value, f"{at}.{number}".strip(".")


def _refusal(path: Path, node: yaml.Node, at: str, problem: str, hint: str) -> WrongUseError:
    where = f"{path}:{node.start_mark.line + 1}"
    return WrongUseError(f"{where}: {f'{at}: ' if at else ''}{problem}.", hint=hint)


def _short(tag: str) -> str:
    return "!" + tag.removeprefix("tag:yaml.org,2002:").removeprefix("!")
