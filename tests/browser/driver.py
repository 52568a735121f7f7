"""A real Chromium with an empty profile, or a skip that says what is missing."""

import contextlib
import shutil

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium():
    """Yield playwright's Browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make test-browser"
    )
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def watched_page(browser, **options):
    """Yield a page; fails on any error of a script, on what the content policy blocked, and on any
    request that leaves the machine.
    """
    page = browser.new_page(viewport=WIDE, **options)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            problems.append(request.url)
            if request.url.startswith("http") and "//127.0.0.1:" not in request.url
            else None
        ),
    )
    yield page
    page.close()
    assert not problems
