"""A headless Chromium for tests of pages: the system's own, since packages of browsers are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def found_chromium() -> str | None:
    """Return the browser's path, or None where there is none."""
    return os.environ.get("TREPHINE_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def chromium() -> str:
    """Return the browser's path; its absence is a failure where it is required."""
    found = found_chromium()
    if found is None:
        message = (
            "there is no Chromium: install it (Debian: apt-get install chromium) or set TREPHINE_CHROMIUM"
        )
        if os.environ.get("TREPHINE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser without network; inside a container it has no sandbox of its own."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        )
        try:
            yield running
        finally:
            running.close()


def problems(page: Page) -> list[str]:
    """Return a list that fills with the errors, warnings, dialogs and requests of a page."""
    seen: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            seen.append(message.text)

    def asked(dialog: Dialog) -> None:
        seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def loads(request: Request) -> None:
        if not request.url.startswith("file:"):
            seen.append(request.url)

    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("console", said)
    page.on("dialog", asked)
    page.on("request", loads)
    return seen
