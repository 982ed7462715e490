"""What sandbox sites keep of published images, for those who start machines from them."""

from __future__ import annotations

from pathlib import Path

from pipeline.clouds import make_cloud
from pipeline.clouds.nimbus.cumulus_store import Store
from pipeline.model import Site


def nimbus(**options: object) -> Site:
    return Site(name="s", cloud="nimbus", sandbox=True, where="here", options=options)


def put(folder: Path, key: str, content: bytes) -> None:
    store = Store(folder)
    incoming = store.receive()
    incoming.file.write(content)
    incoming.size = len(content)
    store.put(key, "owner", incoming, 0.0, 0)
    store.close()


def test_a_nimbus_sandbox_keeps_its_images(tmp_path: Path) -> None:
    owner = "0a000000-0000-4000-8000-00000000000a"
    cloud = make_cloud(nimbus(canonical_id=owner, prefix="P"))
    assert cloud.open_kept(tmp_path, "web.gz") is None
    put(tmp_path, f"P/{owner}/web.gz", b"own")
    put(tmp_path, "P/common/web.gz", b"for all")
    put(tmp_path, "P/common/db.gz", b"db for all")
    for name, content in (("web.gz", b"own"), ("db.gz", b"db for all")):
        opened = cloud.open_kept(tmp_path, name)
        assert opened is not None
        with opened:
            assert opened.read() == content
    for name in ("other.gz", "../common/web.gz", ""):
        assert cloud.open_kept(tmp_path, name) is None


def test_other_sites_keep_none(tmp_path: Path) -> None:
    for sandbox in (True, False):
        options = {"region": "us-east-1"}
        site = Site(name="e", cloud="ec2", sandbox=sandbox, where="here", options=options)
        assert make_cloud(site).open_kept(tmp_path, "ami-1") is None
