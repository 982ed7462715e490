"""What completes commands in a shell, and the manual page: both are made from the parser."""

from __future__ import annotations

import re
import subprocess

from cli_runs import Project

from pipeline.commands import COMMANDS

ASK = """
. ./completion.bash
function=$(complete -p phantom-image | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
ask() {
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    COMPREPLY=()
    "$function"
    echo "${COMPREPLY[@]}"
}
ask phantom-image bui
ask phantom-image build hello
ask phantom-image image --site ho
ask phantom-image build --stop
ask phantom-image launch-config --phantom ho
ask phantom-image launch-config --phantom l
"""


def test_words_are_completed_in_bash(project: Project) -> None:
    hotel = "sites:\n  hotel: {cloud: nimbus, sandbox: true}\n\n"
    project.write("sites.yaml", f"{hotel}phantoms:\n  hopper: {{url: 'https://a.example.org'}}\n")
    project.write("completion.bash", project.succeed("completion", "bash").out)
    told = subprocess.run(
        ["bash", "-eu", "-c", ASK], cwd=project.folder, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == [
        "build",
        "hello-base hello-phantom",
        "hotel",
        "--stop-after",
        "hopper",
        "local",
    ]
    assert told.stderr == ""


def test_words_of_zsh(project: Project) -> None:
    told = project.succeed("completion", "zsh").out
    assert told.startswith("#compdef phantom-image\n")
    assert "_phantom_image_appliances() {" in told and ":_phantom_image_sites" in told


def test_the_manual_page_has_every_command(project: Project) -> None:
    page = project.succeed("man").out
    titles = re.findall(r"^\.SS (.+)$", page, re.MULTILINE)
    assert [title.replace("\\-", "-") for title in titles] == [*COMMANDS]
    macros = set(re.findall(r"^\.\w+", page, re.MULTILINE))
    assert macros == {".TH", ".SH", ".SS", ".TP", ".B", ".I", ".PP", ".nf", ".fi"}
    assert "\nPrint the JSON Schema of definitions" in page
    assert "\\-\\-stop\\-after" in page and "phantom\\-image plan" in page
