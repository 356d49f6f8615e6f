"""Receivers of alerts: addresses that Apprise knows how to send a message to, and messages that wait until all have them."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from io import StringIO
from threading import Thread
from time import monotonic

from batch_platform.declaration.extras import needed
from batch_platform.declaration.redaction import redact
from batch_platform.pipeline.incidents import Severity

EXTRA = "notify"
SECONDS_TO_SEND = 25  # in one look: Dagster gives it a minute
MOST_WAITING = 200  # messages; beyond them the oldest are dropped


@dataclass(frozen=True)
class Message:
    """A message, and the receivers that do not have it yet."""

    title: str
    text: str
    severity: Severity | None  # None: it says that something is over
    waiting: tuple[str, ...]  # the receivers, as `identity` names them


@dataclass(frozen=True)
class Outcome:
    """What became of some messages."""

    waiting: tuple[Message, ...]  # that a receiver does not have yet
    sent: int  # messages, once for each receiver
    failures: tuple[str, ...]  # why a receiver did not take one


def identity(url: str) -> str:
    """A name for a receiver that does not tell its address, which holds secrets."""
    return sha256(url.encode()).hexdigest()[:16]


def deliver(messages: Sequence[Message], urls: Sequence[str]) -> Outcome:
    """Send each message to the receivers that wait for it, the oldest first.

    A receiver that does not take a message gets no other one before it: the rest waits for the next call. So does what a slow
    receiver has not taken when the time is over. A receiver that is no longer declared is not waited for.

    Raises:
        WrongUseError: Apprise is not installed.
    """
    if messages:
        _load()
    deadline, sent, failures = monotonic() + SECONDS_TO_SEND, 0, list[str]()
    by_identity = {identity(url): (at, url) for at, url in enumerate(urls, start=1)}
    refusing, left = set[str](), list[Message]()
    for message in messages[-MOST_WAITING:]:
        waiting: list[str] = []
        for receiver in message.waiting:
            if receiver not in by_identity:
                continue
            at, url = by_identity[receiver]
            failure = None if receiver in refusing else _sent_within(message, url, deadline - monotonic())
            if receiver in refusing or failure is not None:
                waiting.append(receiver)
                refusing.add(receiver)
            else:
                sent += 1
            if failure is not None:
                failures.append(f"receiver {at} ({url.partition(':')[0]}): {failure}")
        if waiting:
            left.append(replace(message, waiting=tuple(waiting)))
    return Outcome(tuple(left), sent, tuple(failures))


@cache
def _load() -> None:
    """Import Apprise and the modules of all its services, which warn of their own doing; raises WrongUseError without it."""
    with needed("apprise", extra=EXTRA), warnings.catch_warnings(action="ignore"):
        import apprise

        apprise.Apprise.instantiate("json://localhost")


def _sent_within(message: Message, url: str, seconds: float) -> str | None:
    """Send a message within some time; returns why it was not taken, or None if it was.

    A receiver may take it after the time is over: then it gets it twice.
    """
    if seconds <= 0:
        return "no time was left"
    answers: list[str | None] = []
    thread = Thread(target=lambda: answers.append(_send(message, url)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:.0f} seconds"


def _send(message: Message, url: str) -> str | None:
    """Send a message; returns why it was not taken, or None if it was."""
    import apprise

    receiver, kind = apprise.Apprise(), apprise.NotifyType(message.severity or "success")
    log: StringIO
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:  # pyright: ignore[reportAssignmentType] - its annotation names the type of a file
        try:
            if not receiver.add(url):
                return "Apprise does not know this kind of address"
            if receiver.notify(body=message.text, title=message.title, notify_type=kind, body_format="text"):
                return None
        except Exception as error:  # noqa: BLE001 - of any of a hundred services: it is shown, and the message is sent again
            return redact(f"{type(error).__name__}: {error}")
        return redact(" ".join(log.getvalue().split())) or "it did not take the message"
