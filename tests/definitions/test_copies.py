"""What a definition's `files` become, and where they may come from."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from definition_texts import HEAD, Load, Write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import SOAKING, examples

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError, StageFailedError
from pipeline.file_copies import FileCopy, FolderCopy, LinkCopy
from pipeline.model import Appliance
from pipeline.sources.copied import copied_files, write_tree
from pipeline.stages.base import local_file, own_file, read_unchanged


def target(path: str) -> PurePosixPath:
    return PurePosixPath(path)


def test_a_folder_arrives_with_links_empty_folders_and_any_name(
    root: Path, write: Write, load: Load
) -> None:
    web = root / "images/web"
    names = ["blank ", " before", "two\nlines", "quo'te\"s", "$x `y` *", "-dash", "ü", "\x1b[1m"]
    for name in names:
        write(f"images/web/tree/odd/{name}", name)
    (web / "tree/usr/bin").mkdir(parents=True)
    (web / "tree/usr/bin/python").symlink_to("/usr/bin/python3")
    (web / "tree/up").symlink_to("../../../..")
    (web / "tree/gone").symlink_to("nowhere at all")
    (web / "tree/var/log/app").mkdir(parents=True)
    (web / "tree/run").mkdir()
    assert load(HEAD + "files: [{from: tree, to: /}]\n").files == (
        LinkCopy(target=target("/gone"), leads_to="nowhere at all"),
        *(
            FileCopy(source=web / "tree/odd" / name, target=target("/odd") / name)
            for name in sorted(names, key=str.encode)
        ),
        FolderCopy(target=target("/run")),
        LinkCopy(target=target("/up"), leads_to="../../../.."),
        LinkCopy(target=target("/usr/bin/python"), leads_to="/usr/bin/python3"),
        FolderCopy(target=target("/var/log/app")),
    )


def test_a_path_with_a_slash_at_its_end_is_a_folder(root: Path, write: Write, load: Load) -> None:
    write("images/common/motd", "hello\n")
    write("images/web/tree/a", "a")
    web = root / "images/web"
    assert load(
        HEAD
        + """
files:
  - {from: ../common/motd, to: /usr/local/share/}
  - {from: tree, to: /opt/}
  - {from: tree/../tree/a, to: /srv}
"""
    ).files == (
        FileCopy(
            source=root / "images/common/motd", target=target("/usr/local/share/motd"), mode=0o644
        ),
        FileCopy(source=web / "tree/a", target=target("/opt/a")),
        FileCopy(source=web / "tree/a", target=target("/srv")),
    )


def test_a_link_that_is_named_itself_is_followed(root: Path, write: Write, load: Load) -> None:
    write("images/common/setup.sh", "#!/bin/sh\n")
    for name in ("setup.sh", "common"):
        (root / "images/web" / name).symlink_to(f"../common/{name}".removesuffix("/common"))
    appliance = load(
        HEAD + "files: [{from: common, to: /c}, {from: setup.sh, to: /s}]\nscripts: [setup.sh]\n"
    )
    source = root / "images/common/setup.sh"
    assert appliance.files == (
        FileCopy(source=source, target=target("/c/setup.sh")),
        FileCopy(source=source, target=target("/s")),
    )
    assert appliance.scripts == (source,)


def test_the_folder_of_what_is_extended_may_be_named(root: Path, write: Write, load: Load) -> None:
    write("shared/base/base.yaml", "extends: more.yaml\nfiles: [{from: motd, to: /etc/motd}]\n")
    write("shared/base/more.yaml", "files: [{from: ../base/issue, to: /etc/issue}]\n")
    for name in ("motd", "issue"):
        write(f"shared/base/{name}", name)
    own = "files: [{from: ../../shared/base/motd, to: /m}]\nextends: ../../shared/base/base.yaml\n"
    appliance = load(HEAD + own)
    assert [str(copy.target) for copy in appliance.files] == ["/etc/issue", "/etc/motd", "/m"]
    write("shared/base/more.yaml", "files: [{from: ../other, to: /etc/issue}]\n")
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + own)
    assert str(caught.value) == (
        "shared/base/more.yaml:1:16: 'files[0].from': '../other' leads to shared/other, outside "
        "shared/base and images; copy it there\n"
        "  do: correct it; `phantom-image schema` prints all that a definition can say"
    )


def test_of_what_cannot_both_be_the_childs_wins(write: Write, load: Load) -> None:
    for name in ("a/one", "a/two", "b", "c/deep/er", "keep"):
        write(f"images/base/tree/{name}", "base")
    write(
        "images/base/appliance.yaml",
        HEAD.replace("web", "base") + "files: [{from: tree, to: /}]\n",
    )
    write("images/web/tree/b/below", "web")
    write("images/web/file", "web")
    Path("images/web/tree/c").symlink_to("b")
    text = "extends: base\nfiles: [{from: tree, to: /}, {from: file, to: /a/one}]\n"
    found = {str(copy.target): copy for copy in load(HEAD + text).files}
    assert sorted(found) == ["/a/one", "/a/two", "/b/below", "/c", "/keep"]
    assert isinstance(found["/c"], LinkCopy)


# ---- nothing from outside


SECRET = "the host's own"
PIECES = ("..", "web", "images", "tree", "inner", "file", "up", "out", "away", "secret", ".", "x")


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of definitions, with links that lead out of it in many ways."""
    top = tmp_path_factory.mktemp("traps")
    web = top / "images/web"
    (web / "tree/inner").mkdir(parents=True)
    (top / "away/inner").mkdir(parents=True)
    for file in ("secret", "away/file", "away/inner/file"):
        (top / file).write_text(f"#!/bin/sh\n# {SECRET}\n")
    for file in ("file", "tree/file", "tree/inner/file"):
        (web / file).write_text("#!/bin/sh\n")
    (web / "out").symlink_to(top / "away")
    (web / "secret").symlink_to("../../secret")
    (web / "tree/up").symlink_to("..")
    (web / "tree/out").symlink_to("../out/inner")
    (web / "tree/inner/secret").symlink_to("/" + "../" * 20 + str(top / "secret").lstrip("/"))
    return top


@settings(
    max_examples=examples(200),
    deadline=None,
    derandomize=not SOAKING,
    suppress_health_check=list(HealthCheck),
)
@given(
    path=st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("/".join),
    key=st.sampled_from(["files", "scripts", "check", "user_data"]),
)
def test_no_path_reaches_what_lies_outside(traps: Path, path: str, key: str) -> None:
    web = traps / "images/web"
    text = {
        "files": f"files: [{{from: {path}, to: /opt/here/}}]\n",
        "scripts": f"scripts: [{path}]\n",
        "check": f"boot_check: {{script: {path}}}\n",
        "user_data": f"phantom: {{user_data: {path}}}\n",
    }[key]
    (web / "appliance.yaml").write_text(HEAD + text)
    with suppress(DefinitionError):
        for source in sources(load_appliance("web", traps / "images", clouds=["nimbus"])):
            assert (traps / "images") in source.parents
            assert SECRET not in source.read_text()
            assert own_file(source).path == source


def sources(appliance: Appliance) -> list[Path]:
    named = [*appliance.scripts, appliance.boot_check.script, appliance.phantom.user_data]
    copied = [copy.source for copy in appliance.files if isinstance(copy, FileCopy)]
    return [*copied, *(path for path in named if path is not None)]


# ---- what changes between the check and the copy


@pytest.fixture
def appliance(write: Write, load: Load) -> Appliance:
    write("images/web/tree/sub/file", "checked\n")
    write("outside/file", "checked\n")  # the same, so that no digest tells
    return load(HEAD + "files: [{from: tree, to: /}]\n")


def replace_file() -> None:
    Path("images/web/tree/sub/file").unlink()
    Path("images/web/tree/sub/file").symlink_to("../../../../outside/file")


def replace_folder() -> None:
    Path("images/web/tree/sub").rename("images/web/tree/was")
    Path("images/web/tree/sub").symlink_to("../../../outside")


def replace_by_a_pipe() -> None:
    Path("images/web/tree/sub/file").unlink()
    os.mkfifo("images/web/tree/sub/file")


@pytest.mark.parametrize("change", [replace_file, replace_folder, replace_by_a_pipe])
def test_what_was_checked_is_what_is_copied(
    root: Path, appliance: Appliance, change: object
) -> None:
    planned = copied_files(appliance)
    assert callable(change)
    change()
    file = root / "images/web/tree/sub/file"
    with pytest.raises(DefinitionError, match="was changed after the definition was read"):
        copied_files(appliance)
    with pytest.raises(StageFailedError) as caught:
        write_tree(planned, root / "copy")
    assert caught.value.what == f"{file} was changed after the plan was made"
    assert not (root / "copy/sub/file").exists()


def test_other_content_is_refused_too(root: Path, appliance: Appliance) -> None:
    (planned,) = copied_files(appliance)
    file = root / "images/web/tree/sub/file"
    local = local_file(file)
    assert read_unchanged(local) == b"checked\n"
    file.write_text("changed\n")
    with pytest.raises(StageFailedError, match="was changed after the plan was made"):
        write_tree([planned], root / "copy")
    with pytest.raises(StageFailedError, match="was changed after the plan was made"):
        read_unchanged(local)


def test_nothing_is_written_through_a_link_of_the_definition(
    root: Path, write: Write, load: Load
) -> None:
    write("images/web/file", "x")
    Path("images/web/tree").mkdir()
    Path("images/web/tree/etc").symlink_to(root / "host")
    (root / "host").mkdir()
    appliance = load(HEAD + "files: [{from: tree, to: /}, {from: file, to: /opt/x}]\n")
    link, file = copied_files(appliance)
    inside = type(file)(**{**vars(file), "target": target("/etc/x")})
    with pytest.raises(FileExistsError):
        write_tree([link, inside], root / "copy")
    assert list((root / "host").iterdir()) == []
