"""The rules of the gate, each on an image that breaks it and on one that nearly does."""

from __future__ import annotations

import os
import random
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest
from rule_cases import CASES, GOOD, Case, Changes, Link, Made, debugfs, make_image

from pipeline import checks
from pipeline.checks.rule import Finding, Rule
from pipeline.disk.contents import Ext4Contents
from pipeline.disk.ext4_reader import Reader
from pipeline.errors import FileSystemError
from pipeline.waiver import Waiver

BUILD_HOST = "grindstone.example.org"


def check(image: Path) -> list[Finding]:
    with Reader(image) as reader:
        return checks.check_image(Ext4Contents(reader), BUILD_HOST)


def told(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """What counts on a day on which the good image's release is supported."""
    counted, _ = checks.judge(findings, (), date(2026, 1, 1))
    return sorted((each.rule, each.path, each.detail) for each in counted)


def test_every_rule_has_a_case() -> None:
    assert [*CASES] == [*checks.RULES]


@pytest.mark.parametrize("rule", CASES)
def test_it_is_found_where_it_is(tmp_path: Path, rule: str) -> None:
    case = CASES[rule]
    bad = {"srv": Made(None, 0o755)} if rule == "device" else case.bad
    image = make_image(tmp_path, bad, device=rule == "device")
    found = told(check(image))
    assert [each[1:] for each in found if each[0] == rule] == case.found
    assert {each[0] for each in found} <= {rule, *ALSO.get(rule, ())}


# What breaks one rule may well break another.
ALSO = {"sshd-root-password": ("sshd-passwords",)}


@pytest.mark.parametrize("rule", CASES)
def test_it_is_not_found_where_it_is_not(tmp_path: Path, rule: str) -> None:
    assert told(check(make_image(tmp_path, CASES[rule].good))) == []


def test_what_one_rule_finds_has_an_end(tmp_path: Path) -> None:
    files: Changes = {f"etc/open{number:03}": Made("x", 0o666) for number in range(70)}
    found = told(check(make_image(tmp_path, files)))
    assert len(found) == 51
    assert found[-1] == ("world-writable", "/etc/open050", "and 20 more of this kind")


def test_a_release_ends_on_a_day(tmp_path: Path) -> None:
    found = check(make_image(tmp_path, {}))
    before, after = date(2030, 6, 30), date(2030, 7, 1)
    assert checks.judge(found, (), before)[0] == []
    assert [each.rule for each in checks.judge(found, (), after)[0]] == ["release-ended"]


def test_waivers_cover_what_they_name(tmp_path: Path) -> None:
    case: Case = CASES["private-key"]
    found = check(make_image(tmp_path, case.bad))
    waiver = Waiver(rule="private-key", path="/opt/app/*", reason="a test's")
    counted, waived = checks.judge(found, (waiver,), date(2026, 1, 1))
    assert [each.path for each, _ in waived] == ["/opt/app/tests/test.key"]
    assert len(counted) == len(case.found) - 1
    whole = Waiver(rule="private-key", reason="all of them")
    counted, waived = checks.judge(found, (waiver, whole), date(2026, 1, 1))
    assert counted == [] and [by.reason for _, by in waived].count("a test's") == 1
    other = Waiver(rule="ssh-host-key", reason="none of them")
    assert checks.judge(found, (other,), date(2026, 1, 1))[1] == []


def test_errors_come_first(tmp_path: Path) -> None:
    files = {**CASES["log"].bad, **CASES["mail"].bad, **CASES["sshd-passwords"].bad}
    counted, _ = checks.judge(check(make_image(tmp_path, files)), (), date(2026, 1, 1))
    assert [each.rule for each in counted] == ["mail", "sshd-passwords", "log"]


def test_programs_in_merged_folders_belong_to_their_packages(tmp_path: Path) -> None:
    """dpkg knows a file by the path in its package, /bin/tool, where /bin is a link."""
    lists = "/.\n/bin\n/bin/tool\n"
    sums = "39ab32c5aeb56c9f5ae17f073ce31023  bin/tool\n"
    files: Changes = {
        "bin": Link("usr/bin"),
        "usr/bin/tool": Made("tool", 0o4755),
        "var/lib/dpkg/info/tool.list": lists,
        "var/lib/dpkg/info/tool.md5sums": sums,
    }
    assert told(check(make_image(tmp_path, files))) == []


def test_the_root_of_another_package_manager(tmp_path: Path) -> None:
    """Where nobody knows which files are packages', those of /usr count as theirs."""
    nothing = {path: None for path in GOOD if path.startswith("var/lib/dpkg")}
    setuid = Made("x", 0o4755)
    files: Changes = {**nothing, "usr/bin/sudo": setuid, "usr/local/bin/su": setuid}
    found = told(check(make_image(tmp_path, files)))
    assert found == [("setuid", "/usr/local/bin/su", "setuid 0, from no package")]


# ---- odd and hostile trees


def test_odd_trees(tmp_path: Path) -> None:
    """Links in circles and out of the image, names that are no text, files of odd sizes."""
    names = [b"\xff\xfe", b"a\nb", "ü\u202e".encode(), b"-rf", b"x" * 255]
    draw = random.Random(3)
    tree = tmp_path / "tree"
    for path in ("etc/ssh", "root/.ssh", "home/ops", "var/log", "etc/systemd/system/a.wants"):
        folder = tree / path
        folder.mkdir(parents=True)
        for name in names:
            os.close(os.open(os.path.join(os.fsencode(folder), name), os.O_CREAT | os.O_WRONLY))
            content = draw.randbytes(draw.randrange(3000))
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(content)
    for path, target in {
        "etc/shadow": "../etc/shadow",
        "etc/passwd": "/etc/group",
        "etc/group": "passwd",
        "etc/os-release": "../../../../../../etc/os-release",
        "root/.netrc": "/" + "x/" * 400,
        "var/lib": "/var/lib",
        "usr": "/proc/self/root",
        "etc/fstab": ".",
        "tmp": "/",
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(target)
    with (tree / "var/log/huge").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tree / "etc/ssh/sshd_config")
    image = tmp_path / "image"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(image), "16M"]
    subprocess.run(argv, check=True)
    found = told(check(image))
    assert ("log", "/var/log/huge", "a log of 1 TiB") in found
    assert {"/var/log/\\xff\\xfe", "/var/log/a?b", "/var/log/-rf"} < {path for _, path, _ in found}


def test_a_folder_that_holds_itself(tmp_path: Path) -> None:
    image = make_image(tmp_path, {"srv/a/b/c": "x"})
    debugfs(image, "ln /srv/a /srv/a/b/again")
    with pytest.raises(FileSystemError) as raised:
        check(image)
    assert str(raised.value) == (
        "a folder of the image holds itself, or lies too deep: '/srv/a/b/again'\n"
        "  do: the image is damaged, or was made to harm"
    )


# ---- what people read of the rules


def test_the_page_lists_all_rules() -> None:
    page = (Path(__file__).parents[2] / "docs/checks.md").read_text()
    rows = [
        f"| `{rule.id}` | {rule.severity} | {rule.what}: {rule.reason} | {rule.todo} |"
        for rule in checks.RULES.values()
    ]
    table = page.partition("\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.rstrip("\n").split("\n") == rows


@pytest.mark.parametrize("rule", checks.RULES.values(), ids=lambda rule: rule.id)
def test_a_rule_says_all_that_people_need(rule: Rule) -> None:
    assert re.fullmatch("[a-z]+(-[a-z]+)*", rule.id)
    for text in (rule.what, rule.reason, rule.todo):
        assert text and "\n" not in text and not text.endswith(".")
