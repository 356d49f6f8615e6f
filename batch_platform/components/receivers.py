"""Receivers of alerts: addresses that Apprise knows how to send a message to, and messages that wait until all have them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from threading import Thread
from time import monotonic

from batch_platform.components.incidents import Severity
from batch_platform.declaration.extras import needed
from batch_platform.declaration.redaction import redact

EXTRA = "notify"
SECONDS_TO_SEND = 25  # the limit for each receiver in one look; Dagster gives a look a minute
MOST_WAITING = 200  # messages; beyond them the oldest are dropped


@dataclass(frozen=True)
class Message:
    """A message with the receivers that do not have it yet."""

    title: str
    text: str
    severity: Severity | None  # None where an incident is over
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


class Receivers:
    """The receivers of a pipeline. Each is sent to in a thread of its own, so that none waits for another."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Know the addresses, of which each is sent to once."""
        self._receivers = {identity(url): _Receiver(at, url) for at, url in enumerate(urls, start=1)}

    def deliver(self, messages: Sequence[Message]) -> SendResult:
        """Send each message to the receivers that wait for it, the oldest first.

        A receiver that does not take a message gets no other one before it: the rest waits for the next call. So does what a
        slow receiver has not taken when its time is over. A receiver that is no longer declared is not waited for.

        Raises:
            WrongUseError: Apprise is not installed.
        """
        messages = messages[-MOST_WAITING:]
        if messages:
            _load()
        deadline = monotonic() + SECONDS_TO_SEND
        for name, receiver in self._receivers.items():
            receiver.begin([message for message in messages if name in message.waiting], deadline)
        failures = [failure for receiver in self._receivers.values() if (failure := receiver.failure(deadline))]
        left, sent = list[Message](), 0
        for message in messages:
            declared = [name for name in message.waiting if name in self._receivers]
            waiting = tuple(name for name in declared if not self._receivers[name].has(message))
            sent += len(declared) - len(waiting)
            if waiting:
                left.append(replace(message, waiting=waiting))
        return SendResult(tuple(left), sent, tuple(failures))


class _Receiver:
    """A receiver, and the thread that sends to it: at most one, also where the receiver never answers."""

    def __init__(self, at: int, url: str) -> None:
        self._url, self._shown = url, f"receiver {at} ({url.partition(':')[0]})"
        self._thread: Thread | None = None
        self._taken = set[tuple[str, str]]()  # titles and texts of messages that may still be waited for
        self._failure: str | None = None

    def begin(self, messages: Sequence[Message], deadline: float) -> None:
        """Begin to send messages, unless the receiver still owes an answer to an earlier one."""
        if self._thread is not None and self._thread.is_alive():
            self._failure = "still no answer to an earlier message"
            return
        self._taken &= {(message.title, message.text) for message in messages}
        self._thread, self._failure = None, None
        if rest := [message for message in messages if not self.has(message)]:
            self._thread = Thread(target=self._send_all, args=(rest, deadline), daemon=True)
            self._thread.start()

    def has(self, message: Message) -> bool:
        """Return whether it has taken a message, perhaps after the time to answer was over."""
        return (message.title, message.text) in self._taken

    def failure(self, deadline: float) -> str | None:
        """Say why it did not take a message, once it has answered or the time is over; None if it has taken all."""
        if self._thread is not None and self._failure is None:
            self._thread.join(max(0.0, deadline - monotonic()))
            if self._thread.is_alive():
                self._failure = f"no answer within {SECONDS_TO_SEND:.0f} seconds"
        return self._failure and f"{self._shown}: {self._failure}"

    def _send_all(self, messages: Sequence[Message], deadline: float) -> None:
        for message in messages:
            self._failure = "no time was left" if monotonic() >= deadline else _send(message, self._url)
            if self._failure is not None:
                return
            self._taken.add((message.title, message.text))


@cache
def _load() -> None:
    """Import Apprise and the modules of all its services, which warn of their own doing; raises WrongUseError without it."""
    with needed("apprise", extra=EXTRA), warnings.catch_warnings(action="ignore"):
        import apprise

        apprise.Apprise.instantiate("json://localhost")


def _send(message: Message, url: str) -> str | None:
    """Send a message; returns why it was not taken, or None if it was."""
    import apprise

    receiver, kind = apprise.Apprise(), apprise.NotifyType(message.severity or "success")
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
