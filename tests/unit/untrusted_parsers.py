"""Every parser of what comes from outside, with sound samples. As a program: feeds changed samples
to them, and tells what went wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from test_disk_readers import DEPENDENCIES, ENTRY, FSTAB, GRUB, OS_RELEASE, TEXT_READERS, MemoryTree

from pipeline.clouds import clouds
from pipeline.clouds.ec2 import connection
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.metadata import TOKEN_PATH, Ec2Metadata
from pipeline.clouds.ec2.region import parse_time
from pipeline.clouds.nimbus import cumulus_client, settings
from pipeline.clouds.nimbus.repository import Repository
from pipeline.definitions.appliance import load_appliance
from pipeline.definitions.sites import load_sites
from pipeline.disk import containers, decompress, formats, initramfs, kernel, partitions, superblock
from pipeline.disk.tree import TEXT_LIMIT
from pipeline.errors import PhantomError
from pipeline.guest import (
    appliance,
    booting,
    cleaning,
    host_keys,
    kernel_options,
    mounting,
    network,
    packages,
    programs,
    release,
    remarks,
    scripts,
    services,
)
from pipeline.machine.metadata import Request
from pipeline.machine.running_guest import HOPELESS, plain
from pipeline.model import KIB, MIB, Site
from pipeline.sources import transport, unpacking
from pipeline.sources.base_disk import look
from pipeline.stages import boot
from pipeline.stages.guest_report import parse_report
from pipeline.stages.userdata_cases import make_cases
from pipeline.tools import aws, curl

REPOSITORY = Path(__file__).parents[2]

# ---- texts

CASES = make_cases(Ec2Metadata, "nonce")
REPORT = (
    "nonce nonce\nrelease Debian GNU/Linux 12 (bookworm)\nkernel 6.1.0-1-amd64\nfirmware bios\n"
    "boot_seconds 12.34\nuser_data_status 0\nuser_data_output aGVsbG8K\nuser_data_by fetcher\n"
    "fetcher /usr/lib/phantom\nfetcher_tries 3\nroot_bytes 123\nroot_start 0\nroot_end 123\n"
    "file_system_bytes 123\ndisk_bytes 123\ndisk_driver nvme\naddress 10.0.2.15/24\n"
    "ssh_host_key SHA256:x (ED25519)\n"
) + "".join(
    f"case {case.name} {case.status} {sha256(case.kept or b'').hexdigest()} {case.ran or '-'}\n"
    for case in CASES
)
HEADERS = (
    "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/b\r\n\r\nHTTP/1.1 206 Partial Content\r\n"
    'Content-Range: bytes 5-9/10\r\nContent-Length: 5\r\nETag: "abc"\r\nRetry-After: 7\r\n'
    'Last-Modified: Thu, 26 Nov 2026 06:00:00 GMT\r\n\r\n\n{"url_effective": "http://127.0.0.1/b", '
    '"http_connect": 0, "errormsg": "connect to 127.0.0.1 port 80 failed"}'
)
NETPLAN = (
    "network:\n  version: 2\n  ethernets:\n    eth0: &card\n      match: {name: e*}\n"
    "      dhcp4: true\n    eth1: {addresses: [10.0.0.2/24], dhcp4: false}\n"
)
NETWORKD = (
    "[Match]\nName=eth0\nMACAddress=52:54:00:12:34:56\n\n[Network]\nDHCP=yes\nAddress=10.0.0.2/24\n"
)
INTERFACES = (
    "source /etc/network/interfaces.d/*\nauto lo eth0\nallow-hotplug eth1\niface lo inet loopback\n"
    "iface eth0 inet dhcp\n    hwaddress 52:54:00:12:34:56\niface eth1 inet static\n"
)
SCRIPT = (
    "#!/bin/sh\n### BEGIN INIT INFO\n# Provides: a b\n# Required-Start: $remote_fs\n"
    "# X-Start-Before: ssh\n# Default-Start: 2 3\n### END INIT INFO\necho\n"
)
STATUS = (
    "Package: a\nStatus: install ok installed\nVersion: 1.0-1\nArchitecture: amd64\n"
    "Description: b\n more\n\nPackage: c\nStatus: hold ok installed\nVersion: 2\n"
)
SETTINGS = (
    'http_proxy="http://proxy:3128"\nexport NO_PROXY=localhost\nproxy = http://proxy\n'
    'Acquire::http::Proxy "http://proxy:3128";\nhttps_proxy = http://proxy\n'
)
DEFAULTS = "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet console=ttyS0,115200\"\nGRUB_CMDLINE_LINUX='a=b'\n"
PROPERTIES = "vws.repository.s3id=ID\n# a comment\nkey : a\\\n   b\\u00e4\\t\nother value\n"
SHADOW = "root:$6$x:19000::::::\nuser::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n"
TABLE = "label: gpt\ndevice: a\n\na1 : start=2048, size= 1024, type=83, bootable\n"
CONSOLE = (
    "\x1b[0mLoading Linux\r\nerror: file `/boot/grub/a.mod' not found.\nKernel panic\nlogin: \n"
)
VMDK = (
    '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicSparse"\n'
    'RW 2048 SPARSE "a.vmdk"\nddb.adapterType = "ide"\n'
)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cache
def _descriptor_reader() -> containers.Image:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this process)
    return containers.Image(file, "IMAGE", lambda _: None, lambda: None)


def _judge_report(text: str) -> None:
    check = boot.BootCheck(
        machine=clouds()["ec2"](Site(name="a", cloud="ec2", where="a test")).machines[0],
        report=None,  # type: ignore[arg-type]
        user_data=None,
        check=None,
        seconds=None,
    )
    facts = parse_report(_bytes(text))
    check._check_whole(facts, Path("log"))
    json.dumps([boot._told(facts), boot._outcomes(facts, CASES)], allow_nan=False)
    check._judge(facts, "nonce", CASES, Path("log"))


def _read_headers(text: str) -> None:
    answer = curl._read_answer(text, 0)
    assert answer.total is None or answer.total >= 0
    assert answer.validator is None or answer.validator.isprintable()
    error = transport.Transport("http://127.0.0.1/a").explain(answer)
    assert isinstance(error, transport.Broken | PhantomError | OSError), error


def _ask_for_token(text: str) -> None:
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": text}
    answer = Ec2Metadata().answer(Request(method="PUT", path=TOKEN_PATH, headers=headers))
    assert answer.status in (200, 400)


def _refusal(text: str) -> None:
    headers: Any = {}
    connection._make_refused(400, headers, _bytes(text))


def _kernel(files: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        kernel.read_kernel(MemoryTree(files), Path(work), kernel.SCRATCH)


TEXTS: Mapping[str, tuple[Callable[[str], object], Sequence[str]]] = {
    **{
        name: (read, (FSTAB, OS_RELEASE, GRUB, ENTRY, DEPENDENCIES))
        for name, (read, _) in TEXT_READERS.items()
    },
    "VMDK's descriptor": (
        lambda text: containers._check_descriptor(_descriptor_reader(), _bytes(text)),
        (VMDK,),
    ),
    "format": (lambda text: formats.detect_format(_bytes(text), "IMAGE"), (VMDK, SCRIPT)),
    "init script": (services.read_header, (SCRIPT,)),
    "proxies of dnf": (lambda text: cleaning._DNF_PROXY.sub("", text), (SETTINGS,)),
    "proxies of apt": (lambda text: cleaning._APT_PROXY.sub("", text), (SETTINGS,)),
    "proxies": (
        lambda text: [each.sub("", text) for each in cleaning._PROXY_FILES.values()],
        (SETTINGS,),
    ),
    "networkd's address": (network._is_one_address, (NETWORKD,)),
    "networkd's patterns": (lambda text: [*network._dhcp_patterns(text)], (NETWORKD,)),
    "NetworkManager": (lambda text: network._is_manual(network._parse(text)), (NETWORKD,)),
    "netplan": (network._plans_addresses, (NETPLAN,)),
    "netplan's patterns": (lambda text: [*network._netplan_patterns(text)], (NETPLAN,)),
    "interfaces": (network._has_dhcp, (INTERFACES,)),
    "interfaces without cards": (network._without_cards, (INTERFACES,)),
    "packages": (lambda text: [*packages._stanzas(text)], (STATUS,)),
    "output": (programs.printable, (CONSOLE,)),
    "status of a program": (
        lambda text: [pattern.search(text) for pattern in (programs._ENDED, programs._LEFT)],
        ("started\nended 0\nleft 0\n",),
    ),
    "GRUB's defaults": (kernel_options._default_options, (DEFAULTS,)),
    "GRUB's settings": (booting._settings, (DEFAULTS,)),
    "options": (lambda text: kernel_options.follow(text, "uuid"), (DEFAULTS,)),
    "entry's options": (
        lambda text: kernel_options.follow_lines(text, kernel_options.ENTRY_LINE, "uuid"),
        (ENTRY,),
    ),
    "environment's options": (
        lambda text: kernel_options.follow_lines(text, kernel_options.ENVIRONMENT_LINE, "uuid"),
        ("kernelopts=ro a=b\n###",),
    ),
    "first options": (
        lambda text: kernel_options._first(text, kernel_options.EXTLINUX_LINE),
        ("append root=/dev/sda1\n",),
    ),
    "partition table": (booting._table, (TABLE,)),
    "remarks": (
        lambda text: [
            *remarks.find_remarks(
                MemoryTree(
                    dict.fromkeys(
                        (
                            *("/etc/shadow", "/etc/machine-id", "/root/.ssh/authorized_keys"),
                            "/etc/udev/rules.d/70-persistent-net.rules",
                        ),
                        text,
                    )
                )
            )
        ],
        (SHADOW,),
    ),
    "old releases": (
        lambda text: release.read_release(MemoryTree({"/etc/redhat-release": text})),
        ("CentOS release 6.10 (Final)\n",),
    ),
    "old Ubuntu": (
        lambda text: release.read_release(MemoryTree({"/etc/lsb-release": text})),
        ("DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=10.04\n",),
    ),
    "interpreter": (lambda text: scripts._INTERPRETER.match(_bytes(text)), (SCRIPT,)),
    "error of libguestfs": (
        lambda text: mounting.first_line(RuntimeError(text)),
        ("mount: /dev/sda1 on /: wrong fs type\n",),
    ),
    "maker of keys": (host_keys._MAKERS.search, ("ExecStart=/usr/bin/ssh-keygen -A\n",)),
    "listed name": (lambda text: appliance._unescape(_bytes(text)), ("a\\040b\\303\\244\\n",)),
    "console": (lambda text: HOPELESS.search(plain(text)), (CONSOLE,)),
    "report": (_judge_report, (REPORT,)),
    "HTTP headers": (_read_headers, (HEADERS,)),
    "URL": (lambda text: transport.make_transport(f"http://{text}"), ("user:secret@host:80/a?b",)),
    "token's time": (_ask_for_token, ("21600",)),
    "block's refusal": (_refusal, ('{"__type": "a#b:c", "message": "d", "Reason": "e"}',)),
    "properties": (settings.parse_properties, (PROPERTIES,)),
    "reason of a cut": (lambda text: cumulus_client._reason(OSError(text)), ("a: [Errno 111] b",)),
    "time": (parse_time, ("2026-11-26T06:00:00Z", "2026-11-26T06:00:00.000Z")),
    "kernel": (
        lambda text: _kernel({"/boot/grub/grub.cfg": text, "/boot/vmlinuz-5\xb2": text}),
        (GRUB,),
    ),
}


# ---- files


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Where the parsers of files find what they need."""

    folder: Path

    def file(self, content: bytes) -> Path:
        file = self.folder / "file"
        file.write_bytes(content)
        return file


def _unpack(content: bytes, outside: Outside) -> None:
    file = outside.file(content)
    look(file, "IMAGE")
    compression = decompress.detect(content[: formats.HEAD])
    if compression not in (None, "zstd"):
        with file.open("rb") as opened:
            for chunk in unpacking._chunks(opened, compression, "IMAGE"):
                assert len(chunk) <= decompress.CHUNK


def _read_image(content: bytes, outside: Outside) -> None:
    formats.read_format(outside.file(content), "IMAGE")


def _read_disk(content: bytes, outside: Outside) -> None:
    head = content[: partitions.HEAD]
    superblock.read_superblock(head)
    partitions.recognise(head)
    partitions.file_system_bytes(head)
    partitions.read_geometry(outside.file(content))


def _read_initramfs(content: bytes, outside: Outside) -> None:
    initramfs.list_files(outside.file(content), outside.folder)


def _read_kernel_header(content: bytes, outside: Outside) -> None:
    version = kernel._read_version(outside.file(content))
    assert version is None or version.isascii()


def _read_definition(content: bytes, outside: Outside) -> None:
    images, name = outside.folder / "images", "hello-phantom"
    if not images.exists():
        shutil.copytree(REPOSITORY / "images", images)
    (images / name / "appliance.yaml").write_bytes(content)
    load_appliance(name, images, clouds=[*clouds()])


def _read_sites(content: bytes, outside: Outside) -> None:
    load_sites(outside.file(content), clouds())


def _answering(client: Any, content: bytes) -> None:
    """Has a client take this for the answer to each of its requests."""
    from botocore.awsrequest import AWSResponse

    class Raw(io.BytesIO):
        def stream(self, **_: object) -> Iterator[bytes]:
            yield self.read()

    head, _, body = content.partition(b"\n\n")
    lines = [line.partition(":") for line in head.decode("latin-1").split("\n")]
    headers = {name.strip(): value.strip() for name, _, value in lines}
    client.meta.events.unregister("before-send", unique_id="answer")
    client.meta.events.register(
        "before-send",
        lambda request, **_: AWSResponse(request.url, 200, headers, Raw(body)),
        unique_id="answer",
    )


@cache
def _repository() -> Repository:
    options = {"repository": "127.0.0.1:1", "bucket": "Repo", "https": False}
    site = Site(name="a", cloud="nimbus", options=options, where="a test")
    environment = {
        "PHANTOM_A_S3ID": "id",
        "PHANTOM_A_S3KEY": "key",
        "PHANTOM_A_CANONICAL_ID": "0" * 8,
    }
    return Repository(site, settings.resolve_settings(site, environment), lambda _: None)


@cache
def _ebs() -> Ebs:
    import boto3

    session = boto3.Session("id", "key", region_name="us-east-1")
    return Ebs(aws.Account(session, endpoint="http://127.0.0.1:1", isolated=True), "us-east-1")


def _list_objects(content: bytes, _: Outside) -> None:
    repository = _repository()
    _answering(repository._s3, content)
    repository.list_folder("common")


def _list_blocks(content: bytes, _: Outside) -> None:
    ebs = _ebs()
    _answering(ebs._account.client("ebs", "us-east-1"), content)
    with suppress(aws.Cut, aws.Refused):
        [*ebs.list_blocks("snap-1")]
        ebs.start("token", {"VolumeSize": 1})


OBJECTS = (
    b"Content-Type: application/xml\nETag: x\n\n<ListBucketResult><Name>Repo</Name>"
    b"<Contents><Key>VMS/common/a</Key><LastModified>2026-11-26T06:00:00.000Z</LastModified>"
    b"<ETag>&quot;0&quot;</ETag><Size>12</Size></Contents></ListBucketResult>"
)
BLOCKS = (
    b'Content-Type: application/json\n\n{"Blocks": [{"BlockIndex": 1, "BlockToken": "a"}], '
    b'"VolumeSize": 1, "BlockSize": 524288, "ExpiryTime": 1.5, "SnapshotId": "snap-1"}'
)
SITES = (
    b"sites:\n  hotel:\n    cloud: nimbus\n    repository: hotel.example.org:8888\n"
    b"    max_vms: 5\n  amazon:\n    cloud: ec2\n    regions: [us-east-1]\n"
)
KERNEL = bytes(0x202) + b"HdrS" + bytes(8) + b"\x10\x01" + bytes(256) + b"6.1.0-1-amd64 (a@b)\0"
FILES: Mapping[str, Callable[[bytes, Outside], object]] = {
    "packed": _unpack,
    "image": _read_image,
    "disk": _read_disk,
    "initramfs": _read_initramfs,
    "kernel's header": _read_kernel_header,
    "definition": _read_definition,
    "sites": _read_sites,
    "objects": _list_objects,
    "blocks": _list_blocks,
}


def _run(*words: str) -> Callable[[bytes], bytes]:
    """Compresses by a program."""

    def pack(content: bytes) -> bytes:
        return subprocess.run(words, input=content, stdout=subprocess.PIPE, check=True).stdout

    return pack


def make_samples(folder: Path) -> dict[str, list[bytes]]:
    """Sound samples for each of `FILES`."""
    disk = folder / "disk"
    content = b"\0U\xff\1" * 16 * KIB + bytes(256 * KIB)
    disk.write_bytes(content)
    images = [content]
    for kind, *options in (
        ("qcow2", "-o", "cluster_size=512"),
        ("qcow2", "-c", "-o", "cluster_size=4k"),
        ("qcow2", "-o", "extended_l2=on,cluster_size=16k"),
        ("vmdk",),
        ("vmdk", "-o", "subformat=streamOptimized"),
        ("vpc", "-o", "force_size=on"),
        ("vpc", "-o", "subformat=fixed,force_size=on"),
        ("vdi",),
    ):
        words = [
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            kind,
            *options,
            str(disk),
            str(folder / "image"),
        ]
        subprocess.run(words, check=True)
        images.append((folder / "image").read_bytes()[: 2 * MIB])
    zips = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("disk.img", content[: 128 * KIB])
        zips.append(packed.getvalue())
    small = content[: 128 * KIB]
    others = [gzip.compress(small), bz2.compress(small), lzma.compress(small)]
    entries = [initramfs.Entry(f"lib/modules/6.1/{n}.ko", b"module" * n) for n in range(20)]
    initramfs.write(folder / "cpio", entries)
    cpio = (folder / "cpio").read_bytes()
    disks = [content]
    for script in ("label: dos\n,64K,83\n,64K,5\n", "label: gpt\n,64K\n,,L,\n"):
        disk.write_bytes(bytes(MIB))
        subprocess.run(["sfdisk", "-q", disk], input=script.encode(), check=True)
        disks.append(disk.read_bytes())
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", disk], check=True)
    disks.append(disk.read_bytes())
    packers = (gzip.compress, lzma.compress, bz2.compress, _run("zstd", "-q"), _run("lz4", "-l"))
    return {
        "packed": [*zips, *others, _run("zstd", "-q")(small)],
        "image": images,
        "disk": disks,
        "initramfs": [
            cpio,
            *(pack(cpio) for pack in packers),
            lzma.compress(cpio, lzma.FORMAT_ALONE),
            cpio + gzip.compress(cpio),
        ],
        "kernel's header": [KERNEL],
        "definition": [(REPOSITORY / "images/hello-phantom/appliance.yaml").read_bytes()],
        "sites": [SITES, (REPOSITORY / "sites.example.yaml").read_bytes()],
        "objects": [OBJECTS],
        "blocks": [BLOCKS],
    }


# ---- changes

_PIECES = (
    *(b"9" * 5000, b"\xc2\xb2", b"\xd9\xa3", b"-1", b"0x", b"1e999", b"inf", b"\n", b"\r", b"\0"),
    *(b'"', b"'", b"\\", b"$", b"{", b"}", b"[", b"]", b"(", b":", b"=", b"#", b"&a ", b"*a"),
    *(b" " * 300, b"\t", b"<", b">", b"/", b"..", b"\xff", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80"),
    *(b'"\\U00110000"', b"!!int ''", b"<<: ", b"%", b"\x1b[", b"\xe2\x80\xa8", b"\x85", b""),
)
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 64) - 1, 1 << 40)


def change(sample: bytes, some: random.Random) -> bytes:
    """The sample with a few changes, most of them near its start or end."""
    content = bytearray(sample)
    for _ in range(some.choice((1, 1, 1, 2, 3, 5))):
        size = len(content)
        at = some.choice(
            (
                some.randrange(size + 1),
                some.randrange(min(size, 128) + 1),
                some.randrange(min(size, 2048) + 1),
                size - some.randrange(min(size, 600) + 1),
            )
        )
        kind = some.randrange(8)
        if kind == 0 and at < size:
            content[at] ^= 1 << some.randrange(8)
        elif kind == 1:
            content[at : at + 1] = bytes([some.randrange(256)])
        elif kind == 2:
            form = some.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            length = struct.calcsize(form)
            number = some.choice(_NUMBERS) & (1 << 8 * length) - 1
            content[at : at + length] = struct.pack(form, number)
        elif kind == 3:
            content[at:at] = some.choice(_PIECES)
        elif kind == 4:
            content[at : at + some.randrange(1, 20)] = some.choice(_PIECES)
        elif kind == 5:
            start = some.randrange(size + 1)
            content[at:at] = content[start : start + some.randrange(64)]
        elif kind == 6:
            del content[at : at + some.choice((1, 2, 16, 512, 4096))]
        else:
            del content[some.choice((at, size // 2, size - 1)) :]
    return bytes(content)


def run_changes(count: int, seed: int) -> dict[str, Any]:
    """Feeds `count` changed samples to the parsers. Tells of each parser how many it took without
    an error, of all the slowest, and of each defect one sample."""
    some = random.Random(seed)
    defects: dict[str, list[str]] = {}
    taken: dict[str, int] = {}
    slowest, slowest_name = 0.0, ""
    with tempfile.TemporaryDirectory() as name:
        outside = Outside(folder=Path(name))
        readers: list[tuple[str, Callable[[bytes], object], bytes]] = [
            (kind, partial(_read_text, read), _bytes(sample))
            for kind, (read, samples) in TEXTS.items()
            for sample in samples
        ]
        for kind, samples in make_samples(outside.folder).items():
            readers += [(kind, partial(_read_file, FILES[kind], outside), one) for one in samples]
        for number in range(count):
            kind, read_one, sample = readers[number % len(readers)]
            content = change(sample, some) if number >= len(readers) else sample
            started = time.process_time()
            try:
                read_one(content)
                taken[kind] = taken.get(kind, 0) + 1
            except (PhantomError, transport.Broken):
                pass
            except Exception:  # noqa: BLE001 - whatever it is, it is a defect
                told = traceback.format_exc().strip().splitlines()
                defects.setdefault(f"{kind}: {told[-1][:100]}", [*told[-9:], repr(content)[:2000]])
            seconds = time.process_time() - started
            if seconds > slowest:
                slowest, slowest_name = seconds, kind
    return {"defects": defects, "taken": taken, "slowest": [slowest_name, slowest]}


def _read_text(read: Callable[[str], object], content: bytes) -> None:
    read(content.decode("utf-8", "replace"))


def _read_file(read: Callable[[bytes, Outside], object], outside: Outside, content: bytes) -> None:
    read(content, outside)


def _most_memory() -> int:
    """Bytes that this process took at most."""
    status = Path("/proc/self/status").read_text()
    (own,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(own) * KIB


def parse_largest(name: str) -> dict[str, Any]:
    """Has a parser read the largest text of many short lines, no two of which are the same."""
    lines = (f"{number:x}.ko: a b\n" for number in range(TEXT_LIMIT // 15))
    read, _ = TEXTS[name]
    read("".join(lines))
    return {}


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "largest":
        told = parse_largest(words[0])
    else:
        told = run_changes(int(words[0]), int(words[1]))
    print(json.dumps({**told, "memory": _most_memory()}))
