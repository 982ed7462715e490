"""What a catalog of 1,000 appliances with 50 builds each costs.

.venv/bin/python3 -m benchmarks.catalog            # prints the figures
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.catalog_builds import FRANKFURT, HOTEL, SIERRA, make_build, write_build
from benchmarks.measure import Figure, phantom

APPLIANCES, BUILDS = 1000, 50
KIB = 1 << 10


def measure_catalog() -> Iterator[Figure]:
    """The figures that the project promises for catalogs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_builds(folder / "build")
        words = ("catalog", "--output", "out")
        size = f"{APPLIANCES:,} appliances x {BUILDS} builds"
        whole = phantom(folder, *words)
        yield Figure(name=f"catalog of {size}", value=whole.seconds, unit=" s", at_most=60)
        write_build(folder / "build", "appliance-7", BUILDS, date="2027-01-01T00:00:00Z")
        new = phantom(folder, *words)
        yield Figure(name="one new build in it", value=new.seconds, unit=" s", at_most=1)
        index = (folder / "out/index.html").stat().st_size / KIB
        yield Figure(name="its index page", value=index, unit=" kB", at_most=300)
        yield Figure(
            name="its index page until a search has its answer",
            value=_search(folder / "out/index.html"),
            unit=" s",
            at_most=1,
        )


def _write_builds(folder: Path) -> None:
    """All manifests; those of one appliance differ in what names build and date."""
    pattern = make_build("NAME", 0, date="DATE", places=(HOTEL, SIERRA, FRANKFURT))
    build = pattern["appliance"]["build"]
    text = json.dumps(pattern, indent=2)
    for number in range(APPLIANCES):
        name = f"appliance-{number}"
        for version in range(BUILDS):
            digits = f"{number:06}{version:06}"
            path = folder / name / digits / "manifest.json"
            path.parent.mkdir(parents=True)
            date = f"2026-{1 + version // 25:02}-{1 + version % 25:02}T{number % 24:02}:00:00Z"
            own = text.replace("NAME", name).replace(build, digits).replace("DATE", date)
            path.write_text(own)


def _search(page: Path) -> float:
    """Seconds from the start of loading until what was searched for is shown."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        shown = browser.new_page()
        shown.goto(f"{page.as_uri()}?q=appliance-777")
        shown.wait_for_selector("#found:has-text('1 of')")
        ended: float = shown.evaluate("performance.now()")
        browser.close()
    return ended / 1000


if __name__ == "__main__":
    for figure in measure_catalog():
        print(figure)
