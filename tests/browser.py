"""A real Chromium for the tests that need one, or the reason why there is none."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def find_chromium() -> str | None:
    """The browser named by CHROMIUM, or the first on the path."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def start_browser(playwright):
    """A headless browser; skips the test where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: `make browser`, or name one with CHROMIUM=PATH")
    # In a container root has no user namespace to build the sandbox with; pages are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=path, args=arguments)


def watched(browser, **options):
    """A page of its own that fails the test on any error in its console and any request that leaves it."""
    context = browser.new_context(**({"viewport": DESKTOP} | options))
    page, wrong = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return page, wrong
