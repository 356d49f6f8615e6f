"""Keep secrets out of everything shown and recorded: the value of a secret is replaced by the name of its variable.

Secrets come only from environment variables: those that a declaration names, whatever they hold, the passwords in URLs, and those
whose name suggests a secret and whose value can be one (`_can_be_secret`); what a declaration itself holds can be protected beside them.
A value is recognised in a few forms (`_forms`), and not once it is cut, so redact before a text is cut.

Redact texts, each by itself and before it becomes part of JSON. Never redact data: rows that a query gives, or the tables of a report.
"""

import json
import logging
import os
import re
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from traceback import format_exception
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote

LOG_VARIABLE = "BATCH_PLATFORM_LOG"
SHORTEST = 4  # a shorter value would also replace innocent text: if declared, it is replaced where it stands alone
SAYS_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|private|apikey|dsn|_pwd$|(^|_)(key|auth|pat)($|_)", re.IGNORECASE
)
SHORTEST_UNDECLARED = 8  # of a value that no declaration names
_NO_SECRET = re.compile(r"[A-Za-z]?[a-z]{1,14}|[A-Z]{1,15}|[-+\d.,:/ TZ]{1,25}")  # a word; a number, date or time
_NAMED = re.compile(r"\benv(?:\.|\(\s*['\"]|\[\s*['\"])([A-Za-z_][A-Za-z0-9_]*)")
_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@\s:]*:([^/@\s]+)@")
_named: set[str] = set()
_values: set[tuple[str, str]] = set()  # names and values


def logs_json() -> bool:
    """Return whether everything but reports is written as lines of JSON."""
    return os.environ.get(LOG_VARIABLE) == "json"


def protect(declared: object) -> None:
    """Treat each environment variable named in the templates of a declaration as secret from now on."""
    for text in _texts(declared):
        if "{{" in text:
            _named.update(_NAMED.findall(text))


def protect_value(name: str, value: str) -> None:
    """Treat a value as secret from now on, to be shown as `$NAME`."""
    _values.add((name, value))


def redact(text: str) -> str:
    """Replace each secret in a text by `$NAME`."""
    names = {form: name for name, value in reversed(_secrets()) for form in _forms(value)}
    if not names:
        return text
    longest_first = tuple(sorted(names, key=lambda form: (-len(form), form)))
    return _pattern_of(longest_first).sub(lambda match: f"${names[match[0]]}", text)


def redacted(block: dict[str, Any]) -> dict[str, Any]:
    """Redact all text in a block of JSON values."""
    return {key: _redacted(value) for key, value in block.items()}


@contextmanager
def redacted_output() -> Generator[None]:
    """Redact what Python code prints and logs, for the length of the block.

    Dagster makes several records of each message: what was logged just now is not looked at again.
    """
    make_record, last = logging.getLogRecordFactory(), ("", "")

    def make_redacted(*args: Any, **options: Any) -> logging.LogRecord:  # noqa: ANN401 - passed on as they are
        nonlocal last
        record = make_record(*args, **options)
        text, (same, clean) = record.getMessage(), last
        if text != same:
            clean = redact(text)
            last = text, clean
        if clean != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1]:
            record.exc_text = redact("".join(format_exception(record.exc_info[1])).rstrip("\n"))
        return record

    with ExitStack() as stack:
        logging.setLogRecordFactory(make_redacted)
        stack.callback(logging.setLogRecordFactory, make_record)
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            redacting: Any = _Redacting(stream)
            stack.callback(redacting.flush)
            stack.enter_context(redirect(redacting))
        yield


class _Redacting:
    """A text stream that passes on whole lines, redacted; a secret may be written in several parts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._waiting = stream, ""

    def write(self, text: str) -> int:
        self._waiting = redact(self._waiting + text)  # a secret may have several lines, so redact before cutting
        if end := max(self._waiting.rfind("\n"), self._waiting.rfind("\r")) + 1:
            lines, self._waiting = self._waiting[:end], self._waiting[end:]
            self._stream.write(lines)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, ""
        if waiting:
            self._stream.write(waiting)
        self._stream.flush()

    def close(self) -> None:
        """Leave the stream of the process open: libraries that hold this one close it when the process ends."""
        self.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - such as the encoding and the number of the file
        return getattr(self._stream, name)


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value


def _can_be_secret(value: str) -> bool:
    """Tell values that nobody could guess from words, booleans, numbers and dates, such as those of ENABLE_AUTH and MAX_TOKENS."""
    return len(value) >= SHORTEST_UNDECLARED and _NO_SECRET.fullmatch(value) is None


def _secrets() -> list[tuple[str, str]]:
    """Names and values."""
    secrets = set(_values)
    for name, whole in os.environ.items():
        value = whole.strip()
        if value and (name in _named or (SAYS_SECRET.search(name) and _can_be_secret(value))):
            secrets.add((name, value))
        if password := _URL_PASSWORD.match(value):
            secrets |= {(name, password[1]), (name, unquote(password[1]).strip() or password[1])}
    return sorted(secrets)


@cache
def _pattern_of(forms: tuple[str, ...]) -> re.Pattern[str]:
    alone = (rf"(?<!\w){re.escape(form)}(?!\w)" if len(form) < SHORTEST else re.escape(form) for form in forms)
    return re.compile("|".join(alone))


@cache
def _forms(value: str) -> set[str]:
    """A value as it is, on one line, as in `repr` and JSON, quoted for a URL, and in base64."""
    if len(value) < SHORTEST:
        return {value}
    encoded = os.fsencode(value)
    in_json = (json.dumps(value, ensure_ascii=ensure_ascii)[1:-1] for ensure_ascii in (True, False))
    quoted = (quote(encoded), quote(encoded, safe=""), quote_plus(encoded))
    in_base64 = (encode(encoded).decode().rstrip("=") for encode in (b64encode, urlsafe_b64encode))
    return {value, " ".join(value.split()), repr(value)[1:-1], *in_json, *quoted, *in_base64}


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
