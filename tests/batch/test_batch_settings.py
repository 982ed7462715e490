"""The settings of a batch cluster, and what is made of them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from batch_cluster.settings import (
    Cluster,
    SettingsError,
    Site,
    Worker,
    make_munge_key,
    make_slurm_conf,
    make_user_data,
    parse_cluster,
    parse_worker,
)

ELEMENT = Path(__file__).parents[2] / "elements/batch-cluster"
SECRET = "0123456789abcdef" * 4
TEXT = f"""\
[cluster]
secret = {SECRET}
address = 10.0.0.2
share = 10.0.0.0/24
idle = 120

[ec2-east1]
image = ami-0123
instance_type = t3.micro
nodes = 3
price = 0.012
paid_by = hour
cpus = 2
memory = 900

[hotel]
image = batch-cluster-1.0-0123456789ab.gz
instance_type = m1.small
nodes = 2
"""


def test_settings_are_read_with_the_cheapest_site_first() -> None:
    assert parse_cluster(TEXT) == Cluster(
        secret=SECRET,
        address="10.0.0.2",
        share="10.0.0.0/24",
        idle=120,
        sites=(
            Site(
                name="hotel",
                image="batch-cluster-1.0-0123456789ab.gz",
                instance_type="m1.small",
                nodes=2,
            ),
            Site(
                name="ec2-east1",
                image="ami-0123",
                instance_type="t3.micro",
                nodes=3,
                price=0.012,
                by_hour=True,
                cpus=2,
                memory=900,
            ),
        ),
    )


def test_slurm_conf_has_the_sites_in_the_order_of_their_prices() -> None:
    conf = make_slurm_conf(parse_cluster(TEXT), "head1").splitlines()
    assert [line for line in conf if line.startswith(("Slurmctld", "Node", "Partition"))] == [
        "SlurmctldHost=head1(10.0.0.2)",
        "SlurmctldPidFile=/run/slurmctld/slurmctld.pid",
        "SlurmctldParameters=enable_configless,idle_on_node_suspend,power_save_interval=5",
        "NodeName=hotel-[1-2] CPUs=1 Weight=1 State=CLOUD",
        "NodeName=ec2-east1-[1-3] CPUs=2 RealMemory=900 Weight=2 State=CLOUD",
        "PartitionName=batch Nodes=hotel-[1-2],ec2-east1-[1-3] Default=YES State=UP",
        "PartitionName=hotel Nodes=hotel-[1-2] State=UP",
        "PartitionName=ec2-east1 Nodes=ec2-east1-[1-3] SuspendTime=INFINITE State=UP",
    ]
    assert {"SuspendTime=120", "ResumeTimeout=900", "ClusterName=batch"} < set(conf)
    assert SECRET not in "\n".join(conf)


def test_a_workers_user_data_is_short_and_brings_what_a_worker_needs() -> None:
    text = make_user_data(parse_cluster(TEXT), "ec2-east1-3")
    assert text == (
        "#!/bin/sh\nset -eu\nbatch-cluster worker <<END\n"
        f"head = 10.0.0.2\nnode = ec2-east1-3\nsecret = {SECRET}\nshare = yes\nEND\n"
    )
    told = text.partition("<<END\n")[2].removesuffix("END\n")
    worker = Worker(head="10.0.0.2", node="ec2-east1-3", secret=SECRET, share=True)
    assert parse_worker(told) == worker
    longest = Site(name="s" * 32, image="i", instance_type="t", nodes=250)
    cluster = Cluster(
        secret=SECRET, sites=(longest,), address="fd00:1111:2222:3333:4444:5555:6666:7777"
    )
    assert len(make_user_data(cluster, longest.node_names[-1])) < 1024


def test_munges_key_follows_from_the_secret_alone() -> None:
    key = make_munge_key(SECRET)
    assert key == make_munge_key(SECRET) != make_munge_key(SECRET[::-1])
    assert len(key) == 64  # munge wants 32 or more
    assert bytes.fromhex(SECRET) not in key


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("[cluster]", "[hut]", "a section [cluster] and one for each site are needed"),
        (SECRET, "abc", "the secret is not 64 hexadecimal digits in small letters"),
        (f"secret = {SECRET}\n", "", "[cluster] secret is missing: 64 hexadecimal digits"),
        ("idle = 120", "idle = soon", "[cluster] idle is a number from 1 to 86400"),
        ("idle = 120", "idel = 120", "[cluster]: unknown: idel"),
        ("idle = 120", "name = Batch!", "[cluster] name: 'Batch!' is not a-z, digits and hyphens"),
        ("= 10.0.0.2", "= head", "'head' is no IP address"),
        ("10.0.0.0/24", "10.0.0.1/24", "[cluster] share: '10.0.0.1/24' is no network"),
        ("[hotel]", "[a.b]", "[a.b]: a site's name is letters, digits, - and _, and not batch"),
        ("[hotel]", "[batch]", "[batch]: a site's name is letters, digits, - and _, and not batch"),
        ("image = ami-0123\n", "", "[ec2-east1] image is missing or is no word"),
        ("nodes = 3", "nodes = 0", "[ec2-east1] nodes is a number from 1 to 250"),
        ("price = 0.012", "price = -1", "[ec2-east1] price is a number such as 0.05"),
        ("paid_by = hour", "paid_by = day", "[ec2-east1] paid_by is hour or second"),
        ("[hotel]", "[ec2-east1]", "not sections of lines `key = value`, each once"),
        ("cpus = 2", "cpus", "not sections of lines `key = value`, each once"),
    ],
)
def test_wrong_settings_are_refused(old: str, new: str, error: str) -> None:
    assert old in TEXT
    with pytest.raises(SettingsError) as raised:
        parse_cluster(TEXT.replace(old, new))
    assert str(raised.value) == error
    assert SECRET not in error


@pytest.mark.parametrize(
    ("words", "told", "status", "error"),
    [
        (["worker"], "secret = S3CRET\n", 78, "error: the secret is not 64 hexadecimal digits"),
        (["worker"], f"secret = {SECRET}\nnode = a/b\n", 78, "error: node: 'a/b' is no name of"),
        (["head"], "[cluster]\n", 78, "error: a section [cluster] and one for each site"),
    ],
)
def test_the_command_tells_of_wrong_settings_in_one_line(
    words: list[str], told: str, status: int, error: str
) -> None:
    static = ELEMENT / "static"
    client = ELEMENT.parent / "phantom-client/static/usr/lib/python3/dist-packages"
    modules = f"{static}/usr/lib/python3/dist-packages:{client}"
    done = subprocess.run(
        [sys.executable, str(static / "usr/local/sbin/batch-cluster"), *words],
        input=told,
        env={"PYTHONPATH": modules},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"batch-cluster: {error}")
    assert done.stderr.count("\n") == 1
    assert "S3CRET" not in done.stderr


def test_the_element_installs_all_of_its_files() -> None:
    hook = (ELEMENT / "extra-data.d/50-batch-cluster").read_text()
    hook = hook.replace("$modules", "usr/lib/python3/dist-packages/batch_cluster")
    static = ELEMENT / "static"
    for path in static.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            mode = "0755" if path.stat().st_mode & 0o100 else "0644"
            assert f"{path.relative_to(static)}:{mode}" in hook


def test_the_documents_user_data_is_right_and_fits() -> None:
    page = (ELEMENT.parents[1] / "docs/batch-cluster.md").read_text()
    block = page.partition("    #!/bin/sh\n")[2].partition("    END\n\n")[0]
    text = textwrap.dedent("    #!/bin/sh\n" + block).replace(
        "(what `openssl rand -hex 32` prints)", SECRET
    )
    assert len(text) < 900  # of 1,024
    assert [site.name for site in parse_cluster(text.partition("head <<END\n")[2]).sites] == [
        "hotel",
        "ec2-east",
    ]
