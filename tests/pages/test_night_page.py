"""The pages of nights in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import SCHEMES, WIDTHS, opened
from night_values import (
    ARABIC,
    LONG,
    SITES,
    make_built,
    make_full_night,
    make_history,
    make_night,
    make_outcome,
)
from playwright.sync_api import Browser

from pipeline.nightly import reports
from pipeline.nightly.night import Night, State
from pipeline.nightly.page import make_verdict

SHOWN = "<script>alert('x')</script> & \\x1b[31m red \\u202eabc\\u202c \\ud800 \\ufffe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of nights after a full one, one in which all was well, and one that could not
    run."""
    folder = tmp_path_factory.mktemp("page") / "build/nightly"
    reports.write(make_full_night(9), make_history(9), folder)
    fine = [make_outcome("web", site) for site, _ in SITES]
    reports.write(make_night(10, *fine), reports.history(folder), folder)
    away = make_night(11, could_not_run=f"the store is away: {ARABIC}")
    reports.write(away, reports.history(folder), folder)
    return folder


def page_of(folder: Path, number: int) -> Path:
    return folder / make_night(number).name / "index.html"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_pages_are_for_everybody(browser: Browser, folder: Path, scheme: str) -> None:
    for page in (*(page_of(folder, number) for number in (9, 10, 11)), folder / "index.html"):
        for width in WIDTHS:
            with opened(browser, page, width, "dark" if scheme == "dark" else "light") as seen:
                seen.check()
                seen.page.evaluate(
                    "document.querySelectorAll('details').forEach(each => each.open = true)"
                )
                seen.check()
                assert seen.audit() == []


def test_what_failed_comes_first_with_its_reason(browser: Browser, folder: Path) -> None:
    with opened(browser, page_of(folder, 9)) as seen:
        page = seen.page
        assert page.title() == "4 of 21 appliances failed, 2 were skipped - night of 2026-01-10"
        headings = page.locator("main h2").all_inner_texts()
        assert headings == [
            "✗ 4 of 21 appliances failed, 2 were skipped",
            "What failed, and why",
            "What was skipped",
            "Warnings",
            "What is new, and why",
            "All appliances",
            "Space and old builds",
            "The last nights",
        ]
        assert page.locator(".tally li").all_inner_texts() == [
            *("5 failed", "2 skipped", "3 built", "1 reused", "14 unchanged"),
        ]
        assert page.locator(".verdict > ul").first.inner_text().split("\n")[2] == (
            "web at frankfurt, hotel: boot frankfurt bios: the guest did not report within 240 s; "
            "its console ends with: Kernel panic - not syncing: VFS: Unable to mount root fs"
        )
        box = page.locator(".verdict").bounding_box()
        assert box is not None and box["y"] + box["height"] < 900  # seen without scrolling
        web = page.locator(".failure", has_text="web at")
        assert web.locator("dl div").all_inner_texts() == [
            "stage\nboot frankfurt bios",
            "error\nBootError, status 40",
            "tried\n2 times",
            "after\n5 min 12 s",
            "last well\n2026-01-09 03:00 UTC",
            "the site keeps\n0123456789ab",
            "log\n/var/lib/phantom-image/build/web/logs/boot-hotel.log",
        ]
        assert page.locator(".verdict a").first.get_attribute("href") == "#failed-1"


def test_names_and_messages_do_no_harm(browser: Browser, folder: Path) -> None:
    with opened(browser, page_of(folder, 9)) as seen:
        failure = seen.page.locator(".failure").first
        assert failure.locator("h3").inner_text() == f"{SHOWN} at hotel"
        assert failure.locator(".message").inner_text() == SHOWN
        assert seen.page.locator("main script").count() == 0
        base = seen.page.locator(".failure", has_text="base at")
        assert base.locator("summary").inner_text() == "The whole message, 10,514 characters"
        assert base.locator("pre").text_content() == LONG
        arabic = seen.page.locator(".failure", has_text=ARABIC).locator(".message")
        assert arabic.evaluate("each => getComputedStyle(each).direction") == "rtl"


def test_the_table_has_all_and_lines_of_their_last_builds(browser: Browser, folder: Path) -> None:
    with opened(browser, page_of(folder, 9)) as seen:
        table = seen.page.locator("table.all")
        rows = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
        assert len(rows) == 25
        assert [row[2].strip() for row in rows] == [
            *["failed"] * 5,
            *["skipped"] * 2,
            *["built"] * 3,
            "reused",
            *["unchanged"] * 14,
        ]
        mail = table.locator("tr", has_text="mail").first
        assert [each.get_attribute("aria-label") for each in mail.locator("svg").all()] == [
            "time of the last 4 builds: 3 min 00 s to 3 min 52 s",
            "size of the last 4 builds: 606 MiB to 627 MiB",
        ]


def test_a_log_below_the_folder_of_builds_is_linked(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "build/nightly"
    log = tmp_path / "build/web/logs/root.log"
    failed = make_outcome("web", state=State.FAILED, message="no", log=str(log), stage="root")
    paths = reports.write(make_night(0, failed), (), folder)
    log.parent.mkdir(parents=True)
    log.write_text("the log's text\n")
    with opened(browser, paths.page) as seen:
        assert make_verdict(make_night(0, failed)) == "1 of 1 appliance failed"
        seen.page.locator(".failure a").click()
        assert seen.page.inner_text("body").strip() == "the log's text"


def test_the_index_leads_to_each_night(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "index.html") as seen:
        rows = seen.page.locator("tbody tr").all_inner_texts()
        assert rows == [
            f"2026-01-12 02:30 UTC\tThe night could not run\tcould not run: the store is away: "
            f"{ARABIC}",
            "2026-01-11 02:30 UTC\tAll is well\t2 unchanged (1 appliance at 2 sites) in "
            "36 min 40 s",
            "2026-01-10 02:30 UTC\t4 of 21 appliances failed, 2 were skipped\t5 failed, 2 skipped, "
            "3 built, 1 reused, 14 unchanged (21 appliances at 2 sites) in 30 min 00 s",
        ]
        seen.page.click("text=2026-01-11 02:30 UTC")
        assert seen.page.inner_text("#verdict") == "✓ All is well"
        seen.page.click("text=the night before")
        assert seen.page.inner_text("h1") == "Night of 10 January 2026"
        seen.page.click("text=all nights")
        seen.page.click("text=the last night")
        assert seen.page.inner_text(".verdict") == (
            f"✗ The night could not run\n\nthe store is away: {ARABIC}"
        )


@pytest.mark.parametrize(
    ("night", "verdict"),
    [
        (make_night(), "There was nothing to do"),
        (make_night(0, make_outcome("a"), make_built("b", "hotel", 1)), "All is well"),
        (
            make_night(
                0,
                make_outcome("a", state=State.FAILED),
                make_outcome("a", "frankfurt", state=State.SKIPPED),
                make_outcome("b", state=State.SKIPPED),
            ),
            "1 of 2 appliances failed, 1 was skipped",
        ),
        (make_night(0, make_outcome("a", state=State.SKIPPED)), "Of 1 appliance, 1 was skipped"),
    ],
)
def test_a_verdict_counts_appliances(night: Night, verdict: str) -> None:
    assert make_verdict(night) == verdict
