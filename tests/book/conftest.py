"""The built book and a browser to look at it with."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.book.browser import FLAGS, find_browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """One page, opened from disk, with everything that it complained about or asked of another host."""

    def __init__(self, context, path, scripts):
        self.page = context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")
        if scripts:
            self.page.evaluate("document.fonts.ready.then(() => true)")

    @property
    def elsewhere(self):
        return [url for url in self.requests if not url.startswith(("file:", "data:"))]


@pytest.fixture
def visit(browser):
    contexts = []

    def open_page(path, *, scheme="light", width=1280, scripts=True):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(color_scheme=scheme, viewport=viewport, java_script_enabled=scripts, has_touch=width < 600)
        contexts.append(context)
        return Visit(context, path, scripts)

    yield open_page
    for context in contexts:
        context.close()
