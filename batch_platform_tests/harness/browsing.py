"""A real Chromium on Dagster's pages: opened without a network and without a window, driven by roles and words."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Error, Locator, Page, Request, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")  # as commands
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # a route would stall every request while a test sleeps
)
PATIENCE_MS = 120_000
CLICKS, TURNING_MS = 3, 20_000


@dataclass(frozen=True)
class Dagster:
    """The pages of one deployment, in one tab.

    Args:
        page: The tab.
        url: Address of the webserver.
        errors: Errors that the pages wrote to the console.
    """

    page: Page
    url: str
    errors: list[str] = field(default_factory=list[str])

    def open(self, path: str) -> Page:
        """Go to a page by its address."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def words(self, text: str, *, exact: bool = True) -> Locator:
        """The visible elements with exactly this text; a shortened name is on the page twice, once hidden."""
        return self.page.get_by_text(text, exact=exact).filter(visible=True)

    def sees(self, text: str, *, exact: bool = True) -> None:
        """Wait until the page shows this text."""
        expect(self.words(text, exact=exact).first).to_be_visible()

    def button(self, name: str) -> Locator:
        """The first button with such a name."""
        return self.page.get_by_role("button", name=name).filter(visible=True).first

    def link(self, name: str) -> Locator:
        """The first visible link with this text."""
        return self.page.get_by_role("link").filter(has_text=name, visible=True).first

    def tab(self, name: str) -> None:
        """Choose a tab of the page."""
        self.page.get_by_role("tab", name=name, exact=True).filter(visible=True).first.click()

    def switch(self) -> None:
        """Toggle the first switch of the page, whose checkbox lies under a drawing, and wait until it has toggled."""
        box = self.page.get_by_role("checkbox").or_(self.page.get_by_role("switch")).first
        expect(box).to_be_enabled()
        wanted = not box.is_checked()
        for _ in range(CLICKS):  # the page may be redrawn under the first click
            box.dispatch_event("click")
            with suppress(AssertionError):
                expect(box).to_be_checked(checked=wanted, timeout=TURNING_MS)
                return
        expect(box).to_be_checked(checked=wanted)

    def choose_partition_of_launchpad(self, key: str) -> None:
        """In the launchpad: choose one partition, and wait until its configuration has replaced what the editor held."""
        for _ in range(CLICKS):  # the page may be redrawn under the first click, which closes the list
            self.page.get_by_placeholder("Partition").click()
            with suppress(Error):
                self.words(key).first.click(timeout=TURNING_MS)
                break
        else:
            self.words(key).first.click()
        self._holds('"key":"dagster/partition"', f'"value":"{key}"')

    def writes(self, editor: Locator, text: str) -> None:
        """In the launchpad: replace the run's configuration, and wait until it is what will be launched and is valid."""
        editor.evaluate("(editor, text) => editor.CodeMirror.setValue(text)", text)
        self._holds(json.dumps(text)[1:-1])
        self.sees("No errors")

    def _holds(self, *parts: str) -> None:
        """Wait until one session that the launchpad keeps in the browser holds all of these parts."""
        holds = "parts => Object.values(localStorage).some(kept => parts.every(part => kept.includes(part)))"
        self.page.wait_for_function(holds, arg=list(parts))

    def choose_partitions(self, keys: str) -> None:
        """In the dialog that launches runs: enter the partitions."""
        field = self.page.get_by_role("dialog").get_by_placeholder("ex: ")
        field.fill(keys)
        field.press("Tab")


def installed_browser() -> Path | None:
    """The browser to test with: an installed Chromium or Chrome, else the one that Playwright brought, else None."""
    for command in BROWSERS:
        if executable := shutil.which(command):
            return Path(executable)
    with sync_playwright() as playwright:
        brought = Path(playwright.chromium.executable_path)
    return brought if brought.is_file() else None


def require_browser() -> Path:
    """The browser to test with; without one the test is skipped with the reason, and fails where CI is `true`."""
    if browser := installed_browser():
        return browser
    reason = "there is no Chromium, Chrome or browser of Playwright's; python -m batch_platform_tests installs one"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def browser(url: str, width: int = 1700, height: int = 1000, scale: float = 1) -> Iterator[Dagster]:
    """Open a tab on a deployment, past the greeting of a first visit; only the deployment can be reached."""
    expect.set_options(timeout=PATIENCE_MS)
    executable = require_browser()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            context = chromium.new_context(viewport={"width": width, "height": height}, device_scale_factor=scale)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            dagster = Dagster(page, url)
            page.on("console", lambda message: _note(dagster, message))
            page.on("requestfailed", lambda request: _note_failure(dagster, request))
            dagster.open("/assets")
            yield dagster
        finally:
            chromium.close()


def _note(dagster: Dagster, message: ConsoleMessage) -> None:
    if message.type == "error" and dagster.url in message.location.get("url", ""):
        dagster.errors.append(message.text)


def _note_failure(dagster: Dagster, request: Request) -> None:
    if request.url.startswith(dagster.url) and request.failure != "net::ERR_ABORTED":  # left for another page
        dagster.errors.append(f"{request.url}: {request.failure}")
