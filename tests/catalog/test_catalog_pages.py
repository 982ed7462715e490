"""The catalog's pages in a browser, as people see and use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from catalog_kit import HOSTILE, Demo
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

WIDTHS = (375, 768, 1280)
PAGES = (
    "index.html",
    "browse.html",
    *(f"appliances/{name}/index.html" for name in ("web", "old", "bad", "unsent", "hostile")),
)
SERIOUS = ("serious", "critical")


@contextmanager
def opened(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """A page that must not complain, and asks no other server."""
    context = browser.new_context(**settings)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
    page.on("requestfailed", lambda request: told.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(url.rpartition("/")[0].partition("/appliances")[0])
            else told.append(f"asked: {request.url}")
        ),
    )
    page.goto(url)
    yield page
    context.close()
    assert told == []


def shown(page: Page) -> list[str]:
    """The appliances that the index shows."""
    found: list[str] = page.locator("#list tbody th a").all_inner_texts()
    return found


# ---- the index


def test_search_is_instant_and_has_an_address(browser: Browser, served: str) -> None:
    with opened(browser, f"{served}index.html") as page:
        assert shown(page) == ["batch", "hostile", "old", "unsent", "web", "bad"]
        page.keyboard.press("/")
        page.keyboard.type("WEB")
        page.wait_for_selector("#found:has-text('1 of 6 appliances')")
        assert shown(page) == ["web"]
        assert page.url == f"{served}index.html?q=WEB"
        page.get_by_role("searchbox").fill("debian web")  # of a label, and the name
        page.wait_for_selector("#found:has-text('1 of 6')")
        page.get_by_role("searchbox").fill("trixie")
        page.wait_for_function("document.querySelector('#list tbody a').textContent === 'batch'")
        page.get_by_role("searchbox").fill("")
        assert shown(page) == ["batch", "hostile", "old", "unsent", "web", "bad"]
        assert page.url == f"{served}index.html"
        page.get_by_role("link", name="web", exact=True).click()
        page.wait_for_url("**/appliances/web/index.html")
        page.go_back()
    with opened(browser, f"{served}index.html?q=batch") as page:
        page.wait_for_selector("#found:has-text('1 of 6')")
        assert shown(page) == ["batch"]


def test_filters(browser: Browser, served: str) -> None:
    with opened(browser, f"{served}index.html") as page:
        for label, value, expected in (
            ("Cloud", "ec2", ["web"]),
            ("Site", "sierra", ["batch", "web"]),
            ("Label", "purpose=batch", ["batch"]),
            ("State", "withdrawn", ["bad"]),
            ("State", "deprecated", ["old"]),
        ):
            page.get_by_label(label).select_option(value)
            page.wait_for_selector(f"#found:has-text('{len(expected)} of 6')")
            assert shown(page) == expected
            page.get_by_label(label).select_option("")
        page.get_by_label("Site").select_option("sierra")
        page.get_by_role("searchbox").fill("bat")
        page.wait_for_selector("#found:has-text('1 of 6')")
        page.get_by_role("searchbox").fill("nothing has this")
        page.wait_for_selector("#found:has-text('0 of 6 appliances')")
        assert shown(page) == []


def test_rows_that_search_draws_are_as_the_page_has_them(browser: Browser, served: str) -> None:
    with opened(browser, f"{served}index.html") as page:
        rows = "[...document.querySelectorAll('#list tbody tr')].map(row => row.innerText)"
        before = page.evaluate(rows)
        page.get_by_role("searchbox").fill("e")  # all have one: `bookworm` has none, `hotel` has
        page.wait_for_selector("#found:not([hidden])")
        drawn = page.evaluate(rows)
        assert drawn
        assert set(drawn) <= set(before)


# ---- an appliance


def test_commands_are_copied(browser: Browser, served: str) -> None:
    allowed = ["clipboard-read", "clipboard-write"]
    with opened(browser, f"{served}appliances/web/index.html", permissions=allowed) as page:
        button = page.get_by_role("button", name="Copy Phantom: phantom-image")
        button.click()
        page.wait_for_function("document.querySelector('.code button').textContent === 'Copied'")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == (
            "phantom-image launch-config manifest.json \\\n    --phantom YOUR-PHANTOM\n"
        )
        page.get_by_role("button", name="Copy ami-").first.click()
        page.wait_for_selector(".copy button:has-text('Copied')")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator(".copy code:has-text('ami-')").first.inner_text()


def test_a_page_tells_what_people_need(browser: Browser, served: str, demo: Demo) -> None:
    build = demo.json("appliances/web/appliance.json")["builds"][0]
    with opened(browser, f"{served}appliances/web/index.html") as page:
        text = page.evaluate("document.querySelector('main').textContent")
        for publication in build["publications"]:
            assert publication["image_id"] in text
        for expected in (
            f"--image-id {build['publications'][0]['image_id']} \\",
            "ec2.run_instances(",
            'LaunchConfigurationName="web@hotel"',
            "bin/cloud-client.sh --run",
            "#!/bin/sh\nset -eu\necho hello >/run/greeting\n",
            "6.1.0-56-amd64",
            "1 package changed, 1 added, 1 removed.",
            "version 1.0 became 1.1",
            "170 packages",
            build["sha256"],
            "phantom-image verify manifest.json",
            "-n phantom-image -s manifest.json.sig <manifest.json",
        ):
            assert expected in text, expected
        assert page.locator("figure.plot").count() == 2
        for name in ("manifest.json", "sbom.cdx.json", "provenance.intoto.json", "user-data"):
            link = page.get_by_role("link", name=name, exact=True).first
            answer = page.request.get(f"{served}appliances/web/{link.get_attribute('href')}")
            assert answer.ok, name


def test_a_page_tells_of_a_cluster_check(browser: Browser, served: str) -> None:
    with opened(browser, f"{served}appliances/batch/index.html") as page:
        text = page.evaluate("document.querySelector('main').textContent")
        assert "passed 2 guests of the image worked together on one network after 1 min" in text
        assert ", beside 2 that Phantom started." in text
        assert page.get_by_role("cell", name="2 jobs ran").count() == 1
        assert "ssh-keygen" not in text  # it has no signature


def test_pages_say_what_is_not_to_be_started(browser: Browser, served: str) -> None:
    with opened(browser, f"{served}appliances/bad/index.html") as page:
        assert page.locator(".banner").inner_text() == (
            "Withdrawn: do not start it. Reason: it leaks"
        )
        assert page.get_by_role("heading", name="Start it").count() == 0
    with opened(browser, f"{served}appliances/old/index.html") as page:
        assert page.locator(".banner").inner_text() == (
            "Deprecated: it still starts, but please move on. Use web in its place. "
            "Reason: superseded <b>now</b>"
        )
        page.locator(".banner a").click()
        page.wait_for_url("**/appliances/web/index.html")


# ---- for everybody


@pytest.mark.parametrize("page_name", PAGES)
def test_pages_work_without_scripts(browser: Browser, served: str, page_name: str) -> None:
    with opened(browser, served + page_name, java_script_enabled=False) as page:
        assert page.locator("h1").is_visible()
        assert page.locator("button").count() == 0  # none that would do nothing
        if page_name == "index.html":
            assert shown(page)[-2:] == ["web", "bad"]
            assert not page.get_by_role("searchbox").is_visible()
            page.get_by_role("link", name="by state, cloud, site and label").click()
            section = page.locator("section", has=page.get_by_role("heading", name="Site"))
            group = section.locator("details", has_text="sierra")
            assert group.locator("li").all_inner_texts() == ["batch", "web"]
            group.get_by_role("link", name="web").click()
            assert page.locator("h1").inner_text().startswith("web 1.1")
            assert page.locator("pre").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page_name", PAGES)
def test_an_audit_for_accessibility_finds_nothing_serious(
    browser: Browser, served: str, page_name: str, scheme: Any
) -> None:
    for width in (WIDTHS[0], WIDTHS[-1]):
        size = {"width": width, "height": 800}
        # The page's policy keeps other scripts out, and the audit is one.
        settings: dict[str, Any] = {"color_scheme": scheme, "viewport": size, "bypass_csp": True}
        with opened(browser, served + page_name, **settings) as page:
            found = Axe().run(page).response["violations"]
            assert [
                (each["id"], [node["target"] for node in each["nodes"]])
                for each in found
                if each["impact"] in SERIOUS
            ] == []


@pytest.mark.parametrize("page_name", PAGES)
def test_pages_fit_every_width(browser: Browser, served: str, page_name: str) -> None:
    for width in WIDTHS:
        with opened(browser, served + page_name, viewport={"width": width, "height": 800}) as page:
            assert page.evaluate("document.documentElement.scrollWidth") == width


def test_texts_that_mean_harm_are_texts(browser: Browser, served: str, demo: Demo) -> None:
    for name in ("index.html", "appliances/hostile/index.html", "index.html?q=hostile"):
        with opened(browser, served + name) as page:
            page.wait_for_load_state()
            assert page.title() != "taken over"
            scripts = page.evaluate("[...document.scripts].map(each => each.getAttribute('src'))")
            assert all(scripts)
            assert page.evaluate("document.querySelectorAll('main img').length") == 0
            shown = page.evaluate("document.querySelector('main').textContent")
            assert "<script>" in shown and "{{ 7 * 7 }}" in shown
            assert not any(each in shown for each in "\x00\x1b\u202e")
    assert HOSTILE not in demo.read("index.html")
    assert len(demo.read("index.html")) < 30_000


def test_pages_work_from_a_folder(browser: Browser, demo: Demo) -> None:
    url = (demo.output / "index.html").as_uri()
    with opened(browser, url) as page:
        page.get_by_role("searchbox").fill("web")
        page.wait_for_selector("#found:has-text('1 of 6')")
        page.get_by_role("link", name="web", exact=True).click()
        assert page.locator("h1").inner_text().startswith("web 1.1")
        assert page.evaluate("getComputedStyle(document.querySelector('.banner, .facts')).display")
