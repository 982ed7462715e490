"""`diff`: builds and image files are compared offline."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import jsonschema
from cli_runs import Hello, Project, assert_clean


def edit(disk: Path, *commands: str) -> None:
    script = "".join(f"{command}\n" for command in commands)
    argv = ["debugfs", "-w", "-f", "-", str(disk)]
    subprocess.run(argv, input=script, text=True, check=True, capture_output=True)


def test_a_build_and_a_file(shared: Project, hello: Hello, tmp_path: Path) -> None:
    """The file is the build's root file system, edited by another tool."""
    root = hello.artifact("root") / "root.ext4"
    edited = shared.folder / "edited.raw"
    subprocess.run(["cp", "--sparse=always", root, edited], check=True)
    edited.chmod(0o644)
    (tmp_path / "new").write_text("something new\n")
    status = subprocess.run(
        ["debugfs", "-R", "cat /var/lib/dpkg/status", root], capture_output=True, check=True
    ).stdout
    older = status.replace(b"Package: bash\n", b"Package: bush\n", 1)
    assert older != status
    (tmp_path / "status").write_bytes(older)
    edit(
        edited,
        f"write {tmp_path}/new /etc/new",
        "rm /etc/issue",
        "set_inode_field /etc/fstab mode 0100600",
        "set_inode_field /etc/fstab uid 7",
        "rm /var/lib/dpkg/status",
        f"write {tmp_path}/status /var/lib/dpkg/status",
    )
    shutil.copytree(
        hello.project.build / "hello-phantom", shared.build / "hello-phantom", symlinks=True
    )
    build = hello.summary["build"]
    no_network = {"http_proxy": "http://127.0.0.1:9", "PHANTOM_DEBIAN_MIRROR": "http://127.0.0.1:9"}
    told = shared.succeed("diff", "hello-phantom", "edited.raw", "--json", **no_network).json
    schema = shared.succeed("schema", "changes").json
    jsonschema.validate(told, schema)
    assert told["old"]["name"] == f"hello-phantom/{build}"
    assert [each["name"] for each in told["packages"]["removed"]] == ["bash"]
    assert [each["name"] for each in told["packages"]["added"]] == ["bush"]
    files = {each["path"]: each for each in told["files"]}
    assert {"/etc/new", "/etc/issue", "/etc/fstab", "/var/lib/dpkg/status"} == set(files)
    assert files["/etc/new"]["old"] is None and files["/etc/issue"]["new"] is None
    assert (files["/etc/fstab"]["new"]["mode"], files["/etc/fstab"]["new"]["uid"]) == (0o600, 7)
    assert not files["/etc/fstab"]["content"] and files["/var/lib/dpkg/status"]["content"]
    assert told["boots"][0]["boot_seconds"]["old"] > 0
    shown = shared.succeed("diff", build, "edited.raw").out
    assert shown.startswith(f"hello-phantom/{build} -> edited.raw\n")
    assert "  * /etc/fstab  mode 0644 -> 0600, owner 0:0 -> 7:0\n" in shown
    assert "  * /var/lib/dpkg/status  content\n" in shown
    assert_clean(shared)

    # The packed image of the build has the same files.
    image = shared.build / "hello-phantom" / build / hello.manifest["images"][0]["file"]
    shown = shared.succeed("diff", f"hello-phantom/{build}", str(image)).out
    assert "packages: the same\n" in shown and shown.endswith("files: the same\n")

    done = shared.run("diff", "hello-phantom", "nothing")
    assert done.status == 24
    assert done.error == (
        "error: 'nothing' is neither a build nor an image file\n"
        "  do: `phantom-image list` lists the builds: name one as APPLIANCE/BUILD, by its twelve "
        "digits, or as APPLIANCE for its latest one\n"
    )
    (shared.folder / "text").write_text("no image\n")
    assert shared.run("diff", "hello-phantom", "text").status != 0
