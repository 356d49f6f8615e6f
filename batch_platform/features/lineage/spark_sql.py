"""The names in one statement of Spark's SQL, found in its text; nothing is run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError

_TABLE_FUNCTIONS = frozenset(  # functions in the place of a table that read no table
    {
        "range",
        "stack",
        "json_tuple",
        *(f"{name}{end}" for name in ("explode", "posexplode", "inline") for end in ("", "_outer")),
    }
)
_CALLS_JAVA = frozenset({"reflect", "try_reflect", "java_method"})


@dataclass(frozen=True)
class SparkStatement:
    """A SELECT of Spark's dialect."""

    # Names in lower case, with a catalog or a schema in front, separated by dots; without those that WITH defines.
    tables: frozenset[str]
    parameters: frozenset[str]  # names after a colon; empty for a question mark
    escapes: frozenset[str]  # expressions that call methods of Java or other programs
    words: str  # the text without comments and with equal white space


def spark_statement(text: str) -> SparkStatement:
    """Parse a text that holds one SELECT; raises ValueError, with the reason, if it holds anything else."""
    try:
        words = _words(text)
        trees = [tree for tree in sqlglot.parse(text, read="spark") if tree is not None]
    except (SqlglotError, RecursionError) as error:
        first = re.sub(r"\x1b\[\d+m", "", str(error)).partition("\n")[0]
        msg = f"it cannot be parsed: {first.rstrip('. ')}"
        raise ValueError(msg) from error
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        msg = f"it must be one SELECT; it holds {', '.join(tree.key.upper() for tree in trees) or 'nothing'}"
        raise ValueError(msg)
    (tree,) = trees
    return SparkStatement(
        tables=frozenset(_tables(tree)),
        parameters=frozenset(str(node.args.get("this") or "") for node in tree.find_all(exp.Placeholder)),
        escapes=frozenset(_escapes(tree)),
        words=words,
    )


def _words(text: str) -> str:
    """The tokens of a text, each in a line; a quote that is written as two, and so taken for two strings, stays in its line."""
    words, last = "", None
    for token in sqlglot.tokenize(text, read="spark"):
        in_string = last is not None and token.token_type == last.token_type == TokenType.STRING
        words += ("" if in_string and last and token.start == last.end + 1 else "\n") + text[
            token.start : token.end + 1
        ]
        last = token
    return words.strip("\n")


def _escapes(tree: exp.Expr) -> Iterator[str]:
    if tree.find(exp.QueryTransform):
        yield "transform … using"
    yield from (f"{name}()" for node in tree.find_all(exp.Anonymous) if (name := node.name.lower()) in _CALLS_JAVA)


def _tables(tree: exp.Expr) -> Iterator[str]:
    """The tables that are read, and functions in their place that may read something."""
    defined = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        if table.find_ancestor(exp.Hint):  # such as /*+ BROADCAST(t) */
            continue
        if isinstance(table.this, exp.Func):
            function = (table.this.name if isinstance(table.this, exp.Anonymous) else table.this.sql_name()).lower()
            if function not in _TABLE_FUNCTIONS:
                yield f"{function}()"
            continue
        name = ".".join(part.name for part in table.parts).lower()
        if name not in defined or _is_read_by_its_own_name(table, name):
            yield name


def _is_read_by_its_own_name(table: exp.Table, name: str) -> bool:
    """Tell whether a table stands in the WITH table that hides it: WITH t AS (SELECT … FROM t)."""
    cte = table.find_ancestor(exp.CTE)
    return cte is not None and cte.alias.lower() == name and not (cte.parent and cte.parent.args.get("recursive"))
