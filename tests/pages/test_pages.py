"""What all pages share: templates, words for numbers, plots."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import SCHEMES, WIDTHS, opened
from jinja2 import UndefinedError
from playwright.sync_api import Browser

from pipeline.pages import count, format_duration, format_time, render
from pipeline.pages.plots import Column, columns, sparkline

PAGE = """{% extends "base.html" %}
{% block title %}{{ name }}{% endblock %}
{% block header %}<h1>{{ name }}</h1>{% endblock %}
{% block content %}
<h2>Plots</h2>
<div class="plots">{{ plot }}{{ empty }}</div>
<p>{{ line }} {{ 3 | count("build") }} of {{ 2048 | size }} in {{ 65 | duration }}</p>
{% endblock %}
{% block footer %}made {{ 0 | time }}{% endblock %}
"""
HOSTILE = "<script>alert(1)</script> & \x1b[31m\u202eabc"
DAYS = [
    Column(label="1 May", parts=(("failed", 2), ("built", 5), ("unchanged", 20)), text="2 failed"),
    Column(label="2 May", parts=(), text="could not run"),
    Column(label="3 May", parts=(("failed", 0), ("unchanged", 1)), text=HOSTILE),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(PAGE)
    made = render(
        "page.html",
        folder,
        name=HOSTILE,
        plot=columns("Outcomes", DAYS, top="27"),
        empty=columns("Nothing", [], top="0"),
        line=sparkline("Size: 1, 2", [1.0, None, 2.0, 2.0]),
    )
    (folder / "made.html").write_text(made)
    return folder / "made.html"


def test_a_page_shows_any_text_as_it_is(browser: Browser, page: Path) -> None:
    with opened(browser, page) as seen:
        seen.check()
        shown = "<script>alert(1)</script> & \\x1b[31m\\u202eabc"
        assert seen.page.title() == seen.page.inner_text("h1") == shown
        told = [
            each.text_content() for each in seen.page.query_selector_all(".plot:first-child title")
        ]
        assert told == ["1 May: 2 failed", "2 May: could not run", f"3 May: {shown}"]
        assert seen.page.inner_text("main p") == "3 builds of 2 KiB in 1 min 05 s"


def test_columns_stand_on_each_other_and_on_the_base_line(browser: Browser, page: Path) -> None:
    with opened(browser, page) as seen:
        boxes = [
            [each.get_attribute(name) for name in ("class", "y", "height")]
            for each in seen.page.query_selector_all(".plot rect:not(.hover)")
        ]
    assert boxes == [
        ["failed", "92.6", "7.4"],
        ["built", "74.1", "18.5"],
        ["unchanged", "0.0", "74.1"],
        ["unchanged", "96.3", "3.7"],
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_is_for_everybody(browser: Browser, page: Path, scheme: str) -> None:
    for width in WIDTHS:
        with opened(browser, page, width, "dark" if scheme == "dark" else "light") as seen:
            seen.check()
            assert seen.audit() == []


def test_a_line_needs_two_values_and_shows_no_noise() -> None:
    assert sparkline("x", []) == sparkline("x", [None, 3.0]) == ""
    assert 'd="M2.0 12.9L98.0 11.1"' in sparkline("x", [1000.0, 1005.0])
    assert 'd="M2.0 21.0L98.0 3.0"' in sparkline("x", [1.0, 2.0])
    assert 'd="M2.0 12.0L98.0 12.0"' in sparkline("x", [0.0, 0.0])
    assert 'd="M2.0 21.0M98.0 3.0"' in sparkline("x", [1.0, None, 2.0])


def test_words_for_numbers() -> None:
    told = [format_duration(each) for each in (-1, 0.04, 9.94, 9.96, 59.6, 60, 3599.6, 7500)]
    assert told == [
        *("0.0 s", "0.0 s", "9.9 s", "10 s", "1 min 00 s", "1 min 00 s"),
        *("1 h 00 min", "2 h 05 min"),
    ]
    assert [count(1, "site"), count(0, "site"), count(1200, "entry", "entries")] == [
        *("1 site", "0 sites", "1,200 entries"),
    ]
    assert format_time(86400 + 60) == "1970-01-02 00:01 UTC"


def test_a_value_that_a_template_does_not_get_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ name }}")
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        render("page.html", tmp_path)
