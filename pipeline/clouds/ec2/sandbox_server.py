"""The EC2 emulator of the sandbox: moto in a process of its own. Not imported: run as a program.

    python -m pipeline.clouds.ec2.sandbox_server FOLDER

It writes its port to standard output and ends when standard input does, and with it goes all that
it holds. Complaints go to `emulator.log` of the folder.

Blocks are taken and given here, beside moto's own dispatcher, whose way costs more than the block;
their checksums are looked at, which moto does not. They lie in a file of the folder that has no
name, so that memory does not grow with the image; moto would hold them in memory.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LOG = "emulator.log"
NO_SPACE = "SandboxDiskFull"
"""A code of its own: the same call again would not help."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK_PATH = re.compile(r"/snapshots/(?P<snapshot>snap-[0-9a-f]+)/blocks/(?P<number>[0-9]+)")
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]+/([^/]+)/ebs/")

_Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class SpilledBlock:
    """What moto knows of a block, with its bytes in a file."""

    def __init__(self, file: int, offset: int, size: int, said: tuple[Any, Any, Any]) -> None:
        self._file, self._offset, self._size = file, offset, size
        self.checksum, self.checksum_algorithm, self.data_length = said
        self.block_token = str(uuid.uuid4())

    @property
    def block_data(self) -> bytes:
        return os.pread(self._file, self._size, self._offset)


class Spill:
    """The file that blocks go to, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._opened = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as we do)
        self._end = 0
        self._lock = threading.Lock()

    def add(self, data: bytes, *said: Any) -> SpilledBlock:
        with self._lock:
            offset, self._end = self._end, self._end + len(data)
        view, at = memoryview(data), offset
        while view:
            count = os.pwrite(self._opened.fileno(), view, at)
            view, at = view[count:], at + count
        return SpilledBlock(self._opened.fileno(), offset, len(data), (said[0], said[1], said[2]))


class BlockService:
    """PutSnapshotBlock and GetSnapshotBlock of moto's snapshots; all else goes to moto."""

    def __init__(self, folder: Path, application: _Application) -> None:
        self._spill = Spill(folder)
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match = _BLOCK_PATH.fullmatch(environ.get("PATH_INFO", ""))
        snapshot = _find_snapshot(environ, match["snapshot"]) if match else None
        if match is None or snapshot is None:
            return self._application(environ, start_response)
        number = int(match["number"])
        if environ["REQUEST_METHOD"] == "PUT":
            return self._put(snapshot, number, environ, start_response)
        return self._get(snapshot, number, start_response)

    def _put(
        self, snapshot: Any, number: int, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        checksum = environ.get("HTTP_X_AMZ_CHECKSUM")
        if checksum != base64.b64encode(hashlib.sha256(data).digest()).decode():
            return _refuse(start_response, "ValidationException", "the checksum is another")
        try:
            snapshot.blocks[number] = self._spill.add(data, checksum, "SHA256", len(data))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return _refuse(start_response, NO_SPACE, str(error))
        headers = [("x-amz-Checksum", checksum), ("x-amz-Checksum-Algorithm", "SHA256")]
        start_response("201 Created", [*headers, ("Content-Length", "2")])
        return [b"{}"]

    def _get(self, snapshot: Any, number: int, start_response: Any) -> Iterable[bytes]:
        block = snapshot.blocks.get(number)
        if block is None:
            return _refuse(start_response, "ResourceNotFoundException", "no such block")
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("x-amz-Data-Length", str(block.data_length)),
            ("x-amz-Checksum", block.checksum),
            ("x-amz-Checksum-Algorithm", block.checksum_algorithm),
            ("Content-Length", str(block.data_length)),
        ]
        start_response("200 OK", headers)
        return [block.block_data]


def _find_snapshot(environ: dict[str, Any], snapshot_id: str) -> Any:
    """moto's own snapshot in the region that the request is signed for."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.ebs.models import ebs_backends

    match = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    backends = ebs_backends[DEFAULT_ACCOUNT_ID]
    if match is None or match[1] not in backends:
        return None
    return backends[match[1]].snapshots.get(snapshot_id)


def _refuse(start_response: Any, code: str, message: str) -> Iterable[bytes]:
    body = json.dumps({"Message": message}).encode()
    headers = [("x-amzn-ErrorType", code), ("Content-Length", str(len(body)))]
    start_response("400 Bad Request", headers)
    return [body]


def _answer_unknown(application: _Application) -> _Application:
    """Says of an action that moto has not got what EC2 says of one that it does not know. moto
    itself answers with a page about its defect."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            return application(environ, start_response)
        except NotImplementedError as error:
            text = (
                "<Response><Errors><Error><Code>InvalidAction</Code>"
                f"<Message>{error}</Message></Error></Errors>"
                "<RequestID>sandbox</RequestID></Response>"
            )
            body = text.encode()
            headers = [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))]
            start_response("400 Bad Request", headers)
            return [body]

    return answer


def _forget_surroundings() -> None:
    """Takes away what moto's own boto3 would read of the user's AWS settings, and proxies."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )


def serve(folder: Path) -> None:
    """Serves until standard input ends."""
    _forget_surroundings()
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # a connection for every block would cost more than the block

        def log_request(self, *_: object) -> None: ...

    application = _answer_unknown(DomainDispatcherApplication(create_backend_app))
    application = BlockService(folder, application)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    while sys.stdin.buffer.read(1):
        pass


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    os._exit(0)  # threads that still answer must not keep it alive
