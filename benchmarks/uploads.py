"""What an upload to EBS costs: our uploader against the minimal one, both to the same sink.

.venv/bin/python3 -m benchmarks.uploads                              # prints the figures
.venv/bin/python3 -m benchmarks.uploads DISK URL GIB CONNECTIONS     # one upload: one line of JSON
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ebs_sink import running_sink
from benchmarks.measure import ROOT, Figure

MIB, GIB = 1 << 20, 1 << 30
CONNECTIONS = 64
DATA, EXTENT = 1 * GIB, 16 * MIB  # data in pieces with holes between, as in a root file system
ROUNDS = 5  # of each kind, in turns: the host's speed changes from second to second


def measure_upload(folder: Path | None = None) -> dict[str, float]:
    """Measures our uploader with 64 connections. `rate`: its rate / the minimal uploader's;
    `disk_size`: its time for a 20 GiB disk / for a 2 GiB disk with the same data, both from
    medians; `peak_bytes`: its peak memory; `mib_per_second`: its rate."""
    with tempfile.TemporaryDirectory(dir=folder) as spare, running_sink() as url:
        small, large = Path(spare, "small.raw"), Path(spare, "large.raw")
        _make_disk(small, 2 * GIB)
        _make_disk(large, 20 * GIB)
        minimal: list[float] = []
        ours: list[float] = []
        ours_large: list[float] = []
        peaks: list[float] = []
        for _ in range(ROUNDS):
            minimal.append(_minimal(small, url))
            for disk, gib, times in ((small, 2, ours), (large, 20, ours_large)):
                answer = json.loads(_run("benchmarks.uploads", disk, url, gib, CONNECTIONS))
                assert answer["blocks"] == DATA // 524288
                times.append(answer["seconds"])
                peaks.append(answer["peak_bytes"])
    return {
        "rate": statistics.median(minimal) / statistics.median(ours),
        "disk_size": statistics.median(ours_large) / statistics.median(ours),
        "peak_bytes": max(peaks),
        "mib_per_second": DATA / MIB / statistics.median(ours),
    }


def measure_uploads(folder: Path | None = None) -> Iterator[Figure]:
    """The figures that the project promises for uploads."""
    found = measure_upload(folder)
    yield Figure(
        name="rate of an upload / of a minimal uploader to the same sink",
        value=found["rate"],
        unit=" x",
        at_least=0.7,
    )
    yield Figure(
        name="upload of a 20 GiB disk / of a 2 GiB disk with the same data",
        value=found["disk_size"],
        unit=" x",
        at_most=1.15,
    )
    yield Figure(
        name=f"peak memory of an upload over {CONNECTIONS} connections",
        value=found["peak_bytes"] / MIB,
        unit=" MB",
        at_most=250,
    )


def _minimal(disk: Path, url: str) -> float:
    seconds, blocks = _run("benchmarks.ebs_minimal", disk, url, CONNECTIONS).split()
    assert int(blocks) == DATA // 524288
    return float(seconds)


def _run(module: str, *words: object) -> str:
    argv = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _make_disk(disk: Path, size: int) -> None:
    source, pieces = random.Random(1), DATA // EXTENT
    with disk.open("wb") as opened:
        opened.truncate(size)
        for piece in range(pieces):
            opened.seek(piece * (size // pieces))
            opened.write(source.randbytes(EXTENT))


class _Completed:
    """Reports every snapshot as completed, as the sink completes it at once."""

    def state(self, snapshot_id: str) -> str:
        return "completed"

    def delete(self, snapshot_id: str) -> None: ...


def _upload(disk: Path, url: str, volume_gib: int, connections: int) -> None:
    """Does one upload in this process, and times it without the loading of modules."""
    from pipeline.clouds.ec2.ebs import Ebs
    from pipeline.clouds.ec2.upload import SnapshotOrder, upload_snapshot
    from pipeline.model import NoProgress, Sha256
    from pipeline.tools.aws import Account
    from pipeline.tools.aws_session import make_dummy_session

    account = Account(make_dummy_session(), endpoint=url, isolated=True)
    account.client("ebs", "us-east-1")
    with tempfile.TemporaryDirectory(dir=disk.parent) as records:
        order = SnapshotOrder(
            disk=disk,
            volume_gib=volume_gib,
            description="benchmark",
            tags={},
            encrypted=False,
            kms_key=None,
            parent=None,
            records=Path(records, "sink"),
            content=Sha256("0" * 64),
        )
        ebs = Ebs(account, "us-east-1", connections)
        started = time.monotonic()
        sent = upload_snapshot(ebs, order, _Completed(), NoProgress())
        seconds = time.monotonic() - started
    # Not getrusage's peak, which is never below that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"seconds": seconds, "blocks": sent.blocks_sent, "peak_bytes": peak}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _upload(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        for each in measure_uploads():
            print(each)
