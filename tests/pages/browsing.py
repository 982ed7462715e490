"""Pages in a headless Chromium, as people see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

WIDTHS = (360, 820, 1440)
"""CSS pixels: a phone, a tablet, a desk."""
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@dataclass(kw_only=True)
class Opened:
    """A page, and what happened while it loaded."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Of the console, and errors of scripts."""
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Nobody complained, nothing was fetched but files, and nothing is wider than the page."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(wide) <= 0

    def audit(self) -> list[str]:
        """What axe-core finds on the page, one line each."""
        found = Axe().run(self.page).response["violations"]
        return [_describe(violation) for violation in found]


def _describe(violation: dict[str, Any]) -> str:
    targets = ", ".join(" ".join(node["target"]) for node in violation["nodes"][:5])
    return f"{violation['id']} ({violation['impact']}): {violation['help']}: {targets}"


@contextmanager
def opened(
    browser: Browser, file: Path, width: int = 1440, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """A page of a file, in a context of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=False
    )
    try:
        result = Opened(page=context.new_page())
        result.page.on("console", lambda said: result.complaints.append(said.text))
        result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.goto(file.as_uri())
        yield result
    finally:
        context.close()
