"""Receivers of alerts: addresses that Apprise knows how to send a message to, and messages that wait until all have them."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from time import monotonic
from typing import Literal

from batch_platform.declaration.errors import WrongUseError, listed
from batch_platform.declaration.importing import needed
from batch_platform.declaration.redaction import redact

EXTRA = "notify"
SECONDS_TO_SEND = 25  # after which one look sends no further message; Dagster gives a look a minute
MOST_WAITING = 200  # messages; beyond them the oldest are dropped

Severity = Literal["warning", "failure"]


@dataclass(frozen=True)
class Message:
    """A message with the receivers that do not have it yet."""

    title: str
    text: str
    severity: Severity
    waiting: tuple[str, ...]  # identities of the receivers that do not have it yet


@dataclass(frozen=True)
class SendResult:
    """Result of an attempt to deliver messages."""

    waiting: tuple[Message, ...]  # messages that a receiver does not have yet
    sent: int  # number of messages, counted for each receiver
    failures: tuple[str, ...]  # reasons of receivers that did not take a message


def identity(url: str) -> str:
    """Return a name for a receiver that does not reveal its address, which holds secrets."""
    return sha256(url.encode()).hexdigest()[:16]


def deliver(urls: Sequence[str], messages: Sequence[Message]) -> SendResult:
    """Send each message to the receivers that wait for it, the oldest first, and to all receivers at once.

    A receiver that does not take a message within the time-outs of Apprise gets no other one before it: the rest waits for the
    next call. A receiver that is no longer declared is not waited for.

    Raises:
        WrongUseError: Apprise is not installed.
    """
    messages = messages[-MOST_WAITING:]
    if messages:
        _load()
    due = {url: [message for message in messages if identity(url) in message.waiting] for url in dict.fromkeys(urls)}
    send = partial(_send_all, until=monotonic() + SECONDS_TO_SEND)
    with ThreadPoolExecutor(max(1, len(due))) as pool:
        attempts = dict(zip(due, pool.map(send, due, due.values()), strict=True))
    missing = {identity(url): due[url][sent:] for url, (sent, _) in attempts.items()}
    left = [
        replace(message, waiting=tuple(name for name in message.waiting if message in missing.get(name, ())))
        for message in messages
    ]
    failures = tuple(
        f"receiver {at} ({url.partition(':')[0]}): {failure}"
        for at, (url, (_, failure)) in enumerate(attempts.items(), start=1)
        if failure is not None
    )
    sent = sum(sent for sent, _ in attempts.values())
    return SendResult(tuple(message for message in left if message.waiting), sent, failures)


def require_known(urls: Sequence[str]) -> None:
    """Raise WrongUseError for addresses that Apprise cannot read, and without Apprise; nothing is sent."""
    if not urls:
        return
    _load()
    import apprise

    if wrong := [str(at) for at, url in enumerate(urls, start=1) if apprise.Apprise.instantiate(url) is None]:
        msg = f"monitoring.notify: Apprise cannot read address {listed(wrong)} of the list."
        raise WrongUseError(msg, hint="its documentation shows how the address of each service is written.")


def _send_all(url: str, messages: Sequence[Message], *, until: float) -> tuple[int, str | None]:
    """Send messages to one receiver until one is not taken; returns how many were, and why not all."""
    for sent, message in enumerate(messages):
        failure = "no time was left" if monotonic() >= until else _send(message, url)
        if failure is not None:
            return sent, failure
    return len(messages), None


@cache
def _load() -> None:
    """Import Apprise and the modules of all its services, which warn of their own doing; raises WrongUseError without it."""
    with needed("apprise", extra=EXTRA), warnings.catch_warnings(action="ignore"):
        import apprise

        apprise.Apprise.instantiate("json://localhost")


def _send(message: Message, url: str) -> str | None:
    """Send a message; returns why it was not taken, or None if it was."""
    import apprise

    receiver, kind = apprise.Apprise(), apprise.NotifyType(message.severity)
    try:
        if not receiver.add(url):
            return "Apprise does not know this kind of address"
        result = receiver.notify(body=message.text, title=message.title, notify_type=kind, body_format="text")
    except Exception as error:  # noqa: BLE001 - the services of Apprise raise anything; the error is shown and the message sent again
        return redact(f"{type(error).__name__}: {error}")
    if result:
        return None
    reasons = [entry.message for entry in result.logs() if entry.level in ("WARNING", "ERROR")]
    return redact(" ".join(" ".join(reasons).split())) or "it did not take the message"
