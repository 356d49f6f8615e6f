"""Tables as Markdown, for people who read them in the UI; values of unknown origin are only shown."""

import html
import re
from collections.abc import Container, Iterable, Mapping, Sequence


class Markdown(str):
    """A text that is Markdown, to be shown as such."""

    __slots__ = ()


def listing(columns: tuple[str, str], values: Mapping[str, object]) -> Markdown:
    """A table of names and values of unknown origin, as Markdown."""
    return table(columns, [map(markdown, (name, str(value))) for name, value in values.items()], columns[1:])


def table(columns: Sequence[str], rows: Iterable[Iterable[str]], numeric: Container[str] = ()) -> Markdown:
    """A table as Markdown, of cells that are Markdown; numeric columns are aligned to the right."""
    rule = ["---:" if column in numeric else "---" for column in columns]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)))


def markdown(text: str) -> str:
    """Text of unknown origin as Markdown that only shows it: without tags, links or cells of its own."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return html.escape(_MARKUP.sub(r"\\\g<0>", shown), quote=False)


_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is no markup
