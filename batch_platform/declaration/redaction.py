"""Keep secrets out of everything shown and recorded: the value of a secret is replaced by the name of its variable.

Secrets come only from environment variables: those whose name suggests a secret, those that a declaration names, whatever their
length, and the passwords in URLs. A value is recognised in every usual encoding, so redact before a text is cut: a part of an
encoded value is not recognised.
"""

import logging
import os
import re
import sys
from base64 import b64encode
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from html import escape
from io import TextIOBase
from traceback import format_exception
from typing import Any, TextIO
from urllib.parse import unquote

SHORTEST = 4  # a shorter value would also replace innocent text: if declared, it is replaced where it stands alone
_SAYS_SO = re.compile(
    r"secret|token|passw|passphrase|credential|private|apikey|dsn|_pwd$|(^|_)(key|auth|pat)($|_)", re.IGNORECASE
)
_NAMED = re.compile(r"\benv(?:\.|\(\s*['\"]|\[\s*['\"])([A-Za-z_][A-Za-z0-9_]*)")
_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@\s:]*:([^/@\s]+)@")
_SPACE = r"(?i:\s|\\+(?:[abfnrtv]|x[0-9a-f]{2}|u[0-9a-f]{4})|%(?:25)*[0-9a-f]{2}|\+)+"
_BACKSLASH = r"(?i:\\(?:x5c|u005c)?|%(?:25)*5c)"
_ELLIPSIS = re.compile(r"\.\.\.|…")
_LEAST_OF_CUT = 6  # characters by which a value that was cut off is recognised
_named: set[str] = set()


def protect(declared: object) -> None:
    """Treat each environment variable named in the templates of a declaration as secret from now on."""
    for text in _texts(declared):
        if "{{" in text:
            _named.update(_NAMED.findall(text))


def redact(text: str) -> str:
    """Replace each secret in a text by `$NAME`, however it is encoded."""
    if not (secrets := tuple(_secrets())):
        return text
    names = [name for name, _ in secrets]
    text = _pattern_of(secrets).sub(lambda match: f"${names[int((match.lastgroup or '')[1:])]}", text)
    for name, value in secrets:
        text = _without_beginning(text, name, value)
    return text


def redacted(block: dict[str, Any]) -> dict[str, Any]:
    """Redact all text in a block of JSON values."""
    return {key: _redacted(value) for key, value in block.items()}


@contextmanager
def redacted_output() -> Generator[None]:
    """Redact what Python code prints and logs, for the length of the block."""
    make_record = logging.getLogRecordFactory()

    def make_redacted(*args: Any, **options: Any) -> logging.LogRecord:  # noqa: ANN401 - passed on as they are
        record = make_record(*args, **options)
        text = record.getMessage()
        if (clean := redact(text)) != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1]:
            record.exc_text = redact("".join(format_exception(record.exc_info[1])).rstrip("\n"))
        return record

    with ExitStack() as stack:
        logging.setLogRecordFactory(make_redacted)
        stack.callback(logging.setLogRecordFactory, make_record)
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            redacting = _Redacting(stream)
            stack.callback(redacting.flush)
            stack.enter_context(redirect(redacting))
        yield


class _Redacting(TextIOBase):
    """A text stream that passes on whole lines, redacted; a secret may be written in several parts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._waiting = stream, ""

    def write(self, text: str) -> int:
        self._waiting = redact(self._waiting + text)  # before it is cut: a secret may have several lines
        if end := max(self._waiting.rfind("\n"), self._waiting.rfind("\r")) + 1:
            lines, self._waiting = self._waiting[:end], self._waiting[end:]
            self._stream.write(lines)
        return len(text)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, ""
        if waiting:
            self._stream.write(waiting)
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - the stream's own
        return self._stream.encoding

    @property
    def buffer(self) -> Any:  # noqa: ANN401 - whoever writes bytes writes them as they are
        return self._stream.buffer


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
    secrets = set[tuple[str, str]]()
    for name, whole in os.environ.items():
        value = whole.strip()
        if value and (name in _named or (len(value) >= SHORTEST and _SAYS_SO.search(name))):
            secrets.add((name, value))
        if password := _URL_PASSWORD.match(value):
            secrets |= {(name, password[1]), (name, unquote(password[1]).strip() or password[1])}
    return sorted(secrets, key=lambda pair: (-len(pair[1]), pair))


@cache
def _pattern_of(secrets: Sequence[tuple[str, str]]) -> re.Pattern[str]:
    """A pattern with a group for each secret, in order."""
    return re.compile("|".join(f"(?P<s{at}>{_any_form(value)})" for at, (_, value) in enumerate(secrets)))


def _any_form(value: str) -> str:
    """A pattern of a value as it is, escaped (also several times), with other white space, percent-encoded, as hex or base64."""
    words = (re.split(r"(\\+)", word) for word in value.split())
    escaped = _SPACE.join("".join(_escaped(part) for part in word) for word in words)
    if len(value) < SHORTEST:
        return rf"(?<!\w){escaped}(?!\w)"
    encoded = value.encode(errors="surrogateescape")
    return "|".join([escaped, f"(?i:{encoded.hex()})", *_base64_forms(encoded)])


def _escaped(part: str) -> str:
    """A pattern of a part of a word: a run of backslashes, or other characters."""
    return f"{_BACKSLASH}{{{len(part)},}}" if part.startswith("\\") else "".join(map(_character, part))


def _character(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character  # no encoding changes it
    code, encoded = ord(character), character.encode(errors="surrogateescape")
    itself = re.escape(character)
    forms = [
        "".join(rf"%(?:25)*{byte:02x}" for byte in encoded),
        "".join(rf"\\+x{byte:02x}" for byte in encoded),
        rf"\\+x{code:02x}",
        rf"\\+U{code:08x}",
        "".join(rf"\\+u{unit.hex()}" for unit in _utf16(character)),
        re.escape(escape(character)),
        *([r"\\+[abn]"] if code < 0x20 else []),  # noqa: PLR2004 - control characters with a letter of their own
    ]
    quoted = rf"(?:\\*{itself}){{1,2}}" if character in "'\"/" else itself
    return f"(?:{quoted}|(?i:{'|'.join(forms)}))"


def _utf16(character: str) -> list[bytes]:
    encoded = character.encode("utf-16-be", errors="surrogatepass")
    return [encoded[at : at + 2] for at in range(0, len(encoded), 2)]


def _base64_forms(encoded: bytes) -> Iterator[str]:
    """Patterns of what bytes look like within longer bytes in base64: they may start at each of three places of a group."""
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(encoded)) * 8 // 6  # characters that depend on nothing else
        text = b64encode(b"\0" * before + encoded).decode()[first:last]
        yield text.replace("+", "[-+]").replace("/", "[/_]")


def _without_beginning(text: str, name: str, value: str) -> str:
    """Replace beginnings of a value that somebody else has cut off, and said so by an ellipsis."""
    for cut in reversed([match.start() for match in _ELLIPSIS.finditer(text)]):
        before = text[:cut]
        for length in range(min(len(value) - 1, len(before)), _LEAST_OF_CUT - 1, -1):
            if before.endswith(value[:length]):
                text = f"{before[:-length]}${name}{text[cut:]}"
                break
    return text


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
