"""Keep secrets out of everything shown and recorded: the value of a secret is replaced by the name of its variable.

Secrets come only from environment variables: those whose name suggests a secret, and those that a declaration names.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

SHORTEST = 6  # a shorter value would also replace innocent text
_SAYS_SO = re.compile(
    r"secret|token|passw|passphrase|credential|private|apikey|dsn|_pwd$|(^|_)(key|auth|pat)($|_)", re.IGNORECASE
)
_NAMED = re.compile(r"\benv(?:\.|\(\s*['\"]|\[\s*['\"])([A-Za-z_][A-Za-z0-9_]*)")
_named: set[str] = set()


def protect(declared: object) -> None:
    """Treat each environment variable named in the templates of a declaration as secret from now on."""
    for text in _texts(declared):
        if "{{" in text:
            _named.update(_NAMED.findall(text))


def redact(text: str) -> str:
    """Replace each secret in a text by `$NAME`."""
    for name, value in _secrets():
        text = text.replace(value, f"${name}")
    return text


def redacted(block: dict[str, Any]) -> dict[str, Any]:
    """Redact all text in a block of JSON values."""
    return {key: _redacted(value) for key, value in block.items()}


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value


def _secrets() -> Iterable[tuple[str, str]]:
    """Names and values, longest value first, since one secret may be part of another."""
    secrets = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and (name in _named or _SAYS_SO.search(name))
    ]
    return sorted(secrets, key=lambda pair: (-len(pair[1]), pair[0]))


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
