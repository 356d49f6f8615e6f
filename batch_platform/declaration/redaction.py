"""Keeps secrets out of what is shown and recorded: a secret's value gives way to the name of its variable.

Secrets come through environment variables only. What counts as one: the value of each variable whose name says so, and
of each variable that a declaration names. Knows nothing of where the text goes.
"""

import os
import re
from collections.abc import Iterable
from typing import TypeVar

SHORTEST = 6  # a shorter value would take innocent text with it
_SAYS_SO = re.compile(
    r"secret|token|passw|passphrase|credential|private|apikey|dsn|_pwd$|(^|_)(key|auth|pat)($|_)", re.IGNORECASE
)
_NAMED = re.compile(r"\benv(?:\.|\(\s*['\"]|\[\s*['\"])([A-Za-z_][A-Za-z0-9_]*)")
_named: set[str] = set()
Value = TypeVar("Value")


def protect(declared: object) -> None:
    """Keep secret, from now on, each environment variable that the templates of a declaration name."""
    for text in _texts(declared):
        if "{{" in text:
            _named.update(_NAMED.findall(text))


def redact(text: str) -> str:
    """The text with `$NAME` in the place of each secret."""
    for name, value in _secrets():
        text = text.replace(value, f"${name}")
    return text


def redacted(value: Value) -> Value:
    """A value as JSON knows it, with all text in it redacted."""
    return _redacted(value)  # pyright: ignore[reportReturnType] - containers of text stay what they are


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value


def _secrets() -> Iterable[tuple[str, str]]:
    """Names and values, the longest first: one may be a part of another."""
    found = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and (name in _named or _SAYS_SO.search(name))
    ]
    return sorted(found, key=lambda pair: (-len(pair[1]), pair[0]))


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
