"""A new cloud is one package and one line: a copy of the product gets one by exactly these."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TABLE = """_PACKAGES = {
"""
LINE = """    "toy": "pipeline.clouds.toy",
"""

# A plan does not look into its base image. It has no packages, so it needs no network.
APPLIANCE = """name: rag-doll
version: "1"
summary: Sits on a shelf
disk_size: 1GiB
source:
  base_image: {location: base.raw, format: raw}
"""

PACKAGE = """
from contextlib import contextmanager
from dataclasses import replace

from pipeline.clouds import CloudClasses
from pipeline.machine.metadata import Answer
from pipeline.model import MIB, Disk, Hardware, Machine, Outlook


class Toy:
    site_schema = {
        "title": "Options of a toy site",
        "type": "object",
        "additionalProperties": False,
        "properties": {"shelf": {"type": "string", "description": "Where it stands."}},
    }
    default_instance_type = "toy.small"
    site_kinds = {"A toy": {}}
    common = False
    disk = Disk(layout="mbr", format="raw")
    hardware = Hardware(disks=("virtio_blk",), networks=("virtio_net",), console="ttyS0")
    machines = (
        Machine(
            name="toybox", board="pc", disk_bus="ide", network_card="virtio-net-pci",
            memory=512 * MIB, cpus=1, metadata="toy", metadata_address="10.0.2.100:80",
            network="10.0.2.0/24",
        ),
    )

    def __init__(self, site):
        self.site = site

    def image_name(self, appliance, build):
        return f"{appliance.name}-{build}"

    def check_size(self, disk_size):
        pass

    def find_risks(self):
        return ["everybody can take it from the shelf"]

    def find_credentials(self):
        return "the toy's label"

    def foresee(self, image, release, folder):
        return Outlook(action="send", bytes=image.bytes, detail="to the shelf")

    @contextmanager
    def open(self, folder):
        yield

    def list(self):
        return []

    def find_leftovers(self):
        return []


class ToySandbox(Toy):
    machines = (replace(Toy.machines[0], name="sandpit"),)


class ToyMetadata:
    LATE = Answer(status=503)
    LIMIT = 1000
    ANY_BYTES = False

    def __init__(self, *, user_data=None):
        self.user_data = user_data

    def lacks_token(self, request):
        return False

    def answer(self, request):
        return Answer(status=200, body=self.user_data or b"")


def load():
    return CloudClasses(site=Toy, sandbox=ToySandbox, metadata=ToyMetadata)
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the product that has the toy cloud and a site of that cloud."""
    folder = tmp_path_factory.mktemp("product")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=unwanted)
    (folder / "elements").symlink_to(REPOSITORY / "elements")
    image = folder / "images/rag-doll"
    image.mkdir(parents=True)
    (image / "appliance.yaml").write_text(APPLIANCE)
    (image / "base.raw").write_bytes(bytes(1 << 20))
    table = folder / "pipeline/clouds/__init__.py"
    text = table.read_text()
    assert text.count(TABLE) == 1
    table.write_text(text.replace(TABLE, TABLE + LINE))
    package = folder / "pipeline/clouds/toy"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (folder / "sites.yaml").write_text("sites:\n  nursery: {cloud: toy, shelf: low}\n")
    return folder


def run(product: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "PHANTOM_STORE": str(product / "store")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=product,
        env=environ | {"PYTHONPATH": str(product)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "check"),
    [
        (("--cloud", "toy"), "boot nursery toybox"),
        (("--site", "toy-sandbox"), "boot toy-sandbox sandpit"),
    ],
)
def test_plan_knows_the_sites_of_the_cloud(
    product: Path, words: tuple[str, str], check: str
) -> None:
    """The cloud's name finds its site in `sites.yaml`; the built-in sandbox site is there, too."""
    plan = run(product, "-m", "pipeline.cli", "plan", "rag-doll", *words)
    assert plan.returncode == 0, plan.stderr
    assert check in plan.stdout
    assert "send: not built yet" in plan.stdout
    assert "everybody can take it from the shelf" in plan.stdout


def test_schemas_know_the_cloud(product: Path) -> None:
    schema = json.loads(run(product, "-m", "pipeline.cli", "schema", "--sites").stdout)
    sites = schema["properties"]["sites"]
    assert "toy" in sites["additionalProperties"]["properties"]["cloud"]["enum"]
    assert "toy-sandbox" in sites["description"]
    appliance = json.loads(run(product, "-m", "pipeline.cli", "schema").stdout)
    assert "toy" in appliance["properties"]["clouds"]["properties"]


def test_boot_checks_know_the_metadata_service(product: Path) -> None:
    code = (
        "from pipeline.clouds import make_cloud, metadata_service\n"
        "from pipeline.model import Site\n"
        "from pipeline.stages.userdata_cases import make_cases\n"
        "site = Site(name='nursery', cloud='toy', where='the test')\n"
        "service = metadata_service(make_cloud(site).machines[0].metadata)\n"
        "print(service.__name__, [case.name for case in make_cases(service, 'nonce')])\n"
    )
    told = run(product, "-c", code)
    assert (told.stdout, told.stderr) == ("ToyMetadata ['absent']\n", "")
