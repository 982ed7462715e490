"""The minimal uploader to the EBS direct APIs: it reads, hashes and sends blocks.

It skips blocks of zeros, signs nothing, checks nothing and records nothing. The benchmark compares
our own uploader with it.

.venv/bin/python3 -m benchmarks.ebs_minimal DISK URL CONNECTIONS    # prints seconds and blocks
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

BLOCK = 524288
ZEROS = bytes(BLOCK)


def upload(disk: Path, url: str, connections: int) -> int:
    """Sends every block that is not all zeros, and returns their number."""
    descriptor = os.open(disk, os.O_RDONLY)
    numbers = iter(_find_blocks(descriptor, disk.stat().st_size))
    sent = itertools.count()
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            block = os.pread(descriptor, BLOCK, number * BLOCK)
            if block == ZEROS:
                continue
            checksum = base64.b64encode(hashlib.sha256(block).digest()).decode()
            headers = {
                "x-amz-Data-Length": str(BLOCK),
                "x-amz-Checksum": checksum,
                "x-amz-Checksum-Algorithm": "SHA256",
            }
            path = f"/snapshots/snap-0123456789abcdef0/blocks/{number}"
            connection.request("PUT", path, block, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201
            next(sent)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    return next(sent)


def _find_blocks(descriptor: int, size: int) -> list[int]:
    numbers: list[int] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            break
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        numbers += range(start // BLOCK, -(-offset // BLOCK))
    return sorted(set(numbers))


if __name__ == "__main__":
    started = time.monotonic()
    count = upload(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    print(time.monotonic() - started, count)
