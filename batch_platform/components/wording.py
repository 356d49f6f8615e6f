"""What a pipeline's own files say of themselves: the comment that opens its SQL, the docstrings of its functions.

Read as text; nothing is imported or run for it.
"""

import ast
import importlib.util
import inspect
from itertools import dropwhile, takewhile
from pathlib import Path


def opening_comment(sql: str) -> tuple[str, str]:
    """The first paragraph of the comment that a query begins with, on one line, and the query without it."""
    lines = sql.strip().splitlines()
    words = [line.strip().removeprefix("--").strip() for line in takewhile(_is_comment, lines)]
    paragraph = list(takewhile(bool, words))
    rest = lines[len(paragraph) :]
    return " ".join(paragraph), "\n".join(dropwhile(lambda line: line.strip() in ("", "--"), rest))


def _is_comment(line: str) -> bool:
    return line.strip().startswith("--")


def docstring_of(function: str) -> str | None:
    """The docstring of a function by its import path; None where there is none or it cannot be found."""
    module, _, name = function.rpartition(".")
    try:
        found = importlib.util.find_spec(module)
        tree = (
            ast.parse(Path(found.origin).read_text(encoding="utf-8")) if found and found.origin else ast.Module([], [])
        )
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name and (text := ast.get_docstring(node)):
            return inspect.cleandoc(text)
    return None
