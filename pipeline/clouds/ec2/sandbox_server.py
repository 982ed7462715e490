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
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.disk.untrusted import to_number

LOG = "emulator.log"
NO_SPACE = "SandboxDiskFull"
"""A code that EC2 does not have: repeating the call would not help."""

_BLOCK_PATH = re.compile(r"/snapshots/(?P<snapshot>snap-[0-9a-f]+)/blocks/(?P<number>[0-9]{1,12})")
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]+/([^/]+)/ebs/")

_Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass(kw_only=True, eq=False)
class SpilledBlock:
    """What moto knows of a block, with its bytes in a file."""

    file: int
    offset: int
    data_length: int
    checksum: str
    checksum_algorithm: str = "SHA256"
    block_token: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def block_data(self) -> bytes:
        return os.pread(self.file, self.data_length, self.offset)


class BlockService:
    """PutSnapshotBlock and GetSnapshotBlock of moto's snapshots; all else goes to moto."""

    def __init__(self, folder: Path, application: _Application) -> None:
        self._application = application
        self._spill = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as we do)
        self._end = 0
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match = _BLOCK_PATH.fullmatch(environ.get("PATH_INFO", ""))
        snapshot = _find_snapshot(environ, match["snapshot"]) if match else None
        if match is None or snapshot is None:
            return self._ask_moto(environ, start_response)
        number = int(match["number"])
        if environ["REQUEST_METHOD"] == "PUT":
            return self._put(snapshot, number, environ, start_response)
        return _get(snapshot, number, start_response)

    def _ask_moto(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """moto answers an action that it has not got with a page about its defect; here it gets
        EC2's answer to an action that does not exist."""
        try:
            return self._application(environ, start_response)
        except NotImplementedError as error:
            text = (
                "<Response><Errors><Error><Code>InvalidAction</Code>"
                f"<Message>{error}</Message></Error></Errors>"
                "<RequestID>sandbox</RequestID></Response>"
            )
            headers = {"Content-Type": "text/xml"}
            return _respond(start_response, "400 Bad Request", text.encode(), headers)

    def _put(
        self, snapshot: Any, number: int, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        data = environ["wsgi.input"].read(to_number(environ.get("CONTENT_LENGTH") or "") or 0)
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        if environ.get("HTTP_X_AMZ_CHECKSUM") != checksum:
            return _refuse(start_response, "ValidationException", "the checksum is another")
        try:
            snapshot.blocks[number] = self._store(data, checksum)
        except OSError as error:
            if error.errno not in errors.NO_SPACE:
                raise
            return _refuse(start_response, NO_SPACE, str(error))
        headers = {"x-amz-Checksum": checksum, "x-amz-Checksum-Algorithm": "SHA256"}
        return _respond(start_response, "201 Created", b"{}", headers)

    def _store(self, data: bytes, checksum: str) -> SpilledBlock:
        file = self._spill.fileno()
        with self._lock:
            offset, self._end = self._end, self._end + len(data)
        view, at = memoryview(data), offset
        while view:
            count = os.pwrite(file, view, at)
            view, at = view[count:], at + count
        return SpilledBlock(file=file, offset=offset, data_length=len(data), checksum=checksum)


def _get(snapshot: Any, number: int, start_response: Any) -> Iterable[bytes]:
    block = snapshot.blocks.get(number)
    if block is None:
        return _refuse(start_response, "ResourceNotFoundException", "no such block")
    headers = {
        "Content-Type": "application/octet-stream",
        "x-amz-Data-Length": str(block.data_length),
        "x-amz-Checksum": block.checksum,
        "x-amz-Checksum-Algorithm": block.checksum_algorithm,
    }
    return _respond(start_response, "200 OK", block.block_data, headers)


def _refuse(start_response: Any, code: str, message: str) -> Iterable[bytes]:
    body = json.dumps({"Message": message}).encode()
    return _respond(start_response, "400 Bad Request", body, {"x-amzn-ErrorType": code})


def _respond(
    start_response: Any, status: str, body: bytes, headers: Mapping[str, str]
) -> Iterable[bytes]:
    start_response(status, [*headers.items(), ("Content-Length", str(len(body)))])
    return [body]


def _find_snapshot(environ: dict[str, Any], snapshot_id: str) -> Any:
    """moto's own snapshot in the region that the request is signed for."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.ebs.models import ebs_backends

    match = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    backends = ebs_backends[DEFAULT_ACCOUNT_ID]
    if match is None or match[1] not in backends:
        return None
    return backends[match[1]].snapshots.get(snapshot_id)


def _forget_surroundings() -> None:
    """Removes the AWS settings and proxies that moto's own boto3 would read."""
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

    application = BlockService(folder, DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    while sys.stdin.buffer.read(1):
        pass


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    os._exit(0)  # threads that still answer must not keep it alive
