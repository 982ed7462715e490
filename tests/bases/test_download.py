from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from http_files import HttpFile, serving

from pipeline.build.builder import Builder
from pipeline.errors import ChecksumError, DownloadError, NoSpaceError, PhantomError
from pipeline.model import NoProgress, Sha256
from pipeline.sources import download
from pipeline.sources.download import Download
from pipeline.sources.transport import make_transport, shown
from pipeline.store import Store
from pipeline.tools import curl

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(4).randbytes(3 << 20) + bytes(5)
OTHER = random.Random(5).randbytes(3 << 20) + bytes(5)


def sha256(content: bytes) -> Sha256:
    return Sha256(hashlib.sha256(content).hexdigest())


DIGEST = sha256(CONTENT)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def file() -> Iterator[HttpFile]:
    with serving(HttpFile(CONTENT)) as file:
        yield file


class Steps(NoProgress):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.most = 0

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self.steps.append(text)

    def advance(self, done: int, total: int | None) -> None:
        self.most = max(self.most, done)


def get(store: Store, url: str, digest: Sha256 = DIGEST) -> tuple[bytes, list[str]]:
    """The content and the messages of a download, as a build runs it."""
    steps = Steps()
    built = Builder(store, lambda _: steps).build([Download(sha256=digest, url=url)])
    assert downloads(store) == []
    return built[0].artifact.file("download").read_bytes(), steps.steps


def downloads(store: Store) -> list[str]:
    return sorted(path.name for path in store.path("downloads").iterdir())


def failure(store: Store, url: str, digest: Sha256 = DIGEST) -> PhantomError:
    with pytest.raises(PhantomError) as caught:
        get(store, url, digest)
    return caught.value


def test_a_file_is_fetched_once_wherever_it_lies(store: Store, file: HttpFile) -> None:
    content, steps = get(store, file.url)
    assert content == CONTENT
    assert steps[0] == f"fetching {file.url}"
    assert get(store, "http://another.example.com/base.img")[0] == CONTENT
    assert len(file.requests) == 1


def test_an_interrupted_download_continues(store: Store, file: HttpFile) -> None:
    file.cut_after = [1_500_000, 700_000]
    content, steps = get(store, file.url)
    assert content == CONTENT
    assert file.ranges_asked == [None, "bytes=1500000-", "bytes=2200000-"]
    assert file.sent == len(CONTENT)
    assert [step.partition(";")[0] for step in steps[:5]] == [
        f"fetching {file.url}",
        "127.0.0.1 broke the connection",
        f"going on with {file.url} after 1.43 MiB",
        "127.0.0.1 broke the connection",
        f"going on with {file.url} after 2.1 MiB",
    ]


def test_a_part_that_is_shorter_than_asked_for_is_not_the_rest(
    store: Store, file: HttpFile
) -> None:
    file.cut_after, file.longest = [1_500_000], 1_000_000
    content, steps = get(store, file.url)
    assert content == CONTENT
    assert file.ranges_asked == [None, "bytes=1500000-", "bytes=2500000-"]
    assert any(step.startswith("the connection ended too early; ") for step in steps)


@pytest.mark.parametrize("way", ["no ranges", "no validator", "changed", "chunked"])
def test_a_download_that_cannot_continue_starts_again(
    store: Store, file: HttpFile, way: str
) -> None:
    file.cut_after = [1_500_000]
    if way == "no ranges":
        file.ranges = False
    elif way == "no validator":
        file.etag = None
    elif way == "chunked":
        file.chunked, file.ranges = True, False
    else:
        file.content, file.etag = OTHER, '"other"'
        assert failure_after(store, file, 1).exit_code == 45
        file.content, file.etag, file.cut_after = CONTENT, '"one"', []
    assert get(store, file.url)[0] == CONTENT


def failure_after(store: Store, file: HttpFile, attempts: int) -> PhantomError:
    """The error when a server answers so many requests, and then no more."""
    file.statuses = [200] * attempts + [503] * 10
    error = failure(store, file.url)
    file.statuses = []
    return error


def test_two_files_of_one_etag_are_not_put_together(store: Store, file: HttpFile) -> None:
    file.content, file.cut_after = OTHER, [2_000_000]
    assert failure_after(store, file, 1).exit_code == 45
    file.content = CONTENT
    content, steps = get(store, file.url)
    assert content == CONTENT
    assert "what had arrived before does not fit: fetching all of it anew" in steps


def test_a_server_that_has_gone_for_good(store: Store, file: HttpFile) -> None:
    file.cut_after = [2 << 20]
    error = failure_after(store, file, 1)
    assert isinstance(error, DownloadError)
    assert str(error) == (
        f"{file.url}: the file cannot be fetched: the server says 503 Service Unavailable; "
        "2 MiB of 3 MiB have arrived and are kept\n"
        "  do: run the same command again when the server answers; it goes on"
    )
    assert downloads(store) == [f"{DIGEST}.json", f"{DIGEST}.part"]
    assert get(store, file.url)[0] == CONTENT
    assert file.sent == len(CONTENT)


def test_an_endless_row_of_cuts_ends(store: Store, file: HttpFile) -> None:
    file.ranges, file.cut_after = False, [100_000] * 100
    assert "broke the connection" in failure(store, file.url).what
    assert len(file.requests) < 10


def test_a_wrong_digest_is_not_kept(store: Store, file: HttpFile) -> None:
    file.content = OTHER
    error = failure(store, file.url.replace("//", "//user:secret@") + "?signature=secret")
    assert isinstance(error, ChecksumError)
    assert str(error) == (
        f"{file.url}: the base image has the SHA-256 {sha256(OTHER)}, and its definition says "
        f"{DIGEST}\n"
        "  do: if its publisher has a new image there, `phantom-image pin` looks at it and writes "
        "the new digest; else do not trust it"
    )
    assert downloads(store) == []
    assert len(file.requests) == 1
    path, headers = file.requests[0]
    assert path == "/images/base.img?signature=secret"
    assert headers["authorization"] == "Basic dXNlcjpzZWNyZXQ="


def test_a_web_page_is_no_new_image(store: Store, file: HttpFile) -> None:
    file.content = b"<!DOCTYPE html><title>Log in</title>"
    assert str(failure(store, file.url)) == (
        f"{file.url}: the file cannot be fetched: a web page came in its place\n"
        "  do: open the location in a browser: it may want a login, or lead to another place"
    )


def test_permanent_failures_are_not_retried(store: Store, file: HttpFile) -> None:
    todo = (
        "\n  do: see that the location is right and that this host reaches it, then run the "
        "command again"
    )
    start = "the file cannot be fetched: "
    file.statuses = [404]
    assert (
        str(failure(store, file.url)) == f"{file.url}: {start}the server says 404 Not Found{todo}"
    )
    file.redirect = file.url
    found = str(failure(store, file.url))
    assert found == f"{file.url}: {start}it was redirected more than 5 times{todo}"
    file.redirect = "file:///etc/passwd"
    assert str(failure(store, file.url)) == (
        f"{file.url}: {start}it is redirected from http to file:///etc/passwd, which is not "
        "followed\n  do: name a location that leads to https alone, or the one at its end"
    )
    assert len(file.requests) == 1 + 6 + 1
    url = "http://127.0.0.1:9/base.img"
    found = str(failure(store, url))
    assert found == f"{url}: {start}127.0.0.1 cannot be reached{todo}"
    url = "http://no-such-host.invalid/base.img?secret"
    found = str(failure(store, url))
    assert found == f"{shown(url)}: {start}the name no-such-host.invalid is not known{todo}"
    assert downloads(store) == []


def test_redirections_are_followed_without_credentials(store: Store, file: HttpFile) -> None:
    with serving(HttpFile(b"")) as first:
        first.redirect = file.url
        assert get(store, first.url.replace("//", "//user:secret@"))[0] == CONTENT
        assert "authorization" in first.requests[0][1]
    assert "authorization" not in file.requests[0][1]


def test_a_proxy_is_asked(store: Store, file: HttpFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", file.url.removesuffix("/images/base.img"))
    assert get(store, "http://example.com/base.img")[0] == CONTENT
    assert file.requests[0][0] == "http://example.com/base.img"


def test_a_certificate_that_nobody_vouches_for(store: Store, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(HttpFile(CONTENT), context) as file:
        assert str(failure(store, file.url)) == (
            f"{file.url}: the file cannot be fetched: the certificate of 127.0.0.1 is not "
            "valid: self-signed certificate\n"
            "  do: name the authority that vouches for it by SSL_CERT_FILE, or another location"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(certificate))
            assert get(store, file.url)[0] == CONTENT
            with serving(HttpFile(OTHER)) as plain:
                file.redirect = plain.url
                assert failure(store, file.url, sha256(OTHER)).what == (
                    "the file cannot be fetched: it is redirected from https to "
                    f"{plain.url}, which is not followed"
                )
                assert plain.requests == []


def test_space_is_looked_for_before(
    store: Store, file: HttpFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9 << 20, 7 << 20, 2 << 20))
    error = failure(store, file.url)
    assert isinstance(error, NoSpaceError)
    assert error.what == "no space for the artifacts: 2 MiB are free, and about 3 MiB are needed"


PATIENCE = 600.0
"""Seconds of a server's silence; a test takes as long if it does not cut the silence short."""


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes curl wait longer than PATIENCE for a silent server."""
    monkeypatch.setattr(curl, "SLOW_SECONDS", 3600)


def curls() -> list[str]:
    """The arguments of each running curl that this process has started."""
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(os.getpid()) and (folder / "comm").read_text() == "curl\n":
                running.append((folder / "cmdline").read_text())
    return running


@pytest.mark.usefixtures("_patient")
def test_a_slow_download_is_stopped_at_once(store: Store, file: HttpFile) -> None:
    """While it runs, other users of the host cannot read the URL's secrets."""
    file.pause = PATIENCE
    secret = file.url.replace("//", "//user:secret@") + "?signature=secret"
    steps = Steps()
    builder = Builder(store, lambda _: steps)
    builder.submit([Download(sha256=DIGEST, url=secret)])
    while steps.most == 0:
        time.sleep(0.01)
    (arguments,) = curls()
    assert "--config" in arguments and "secret" not in arguments
    started = time.monotonic()
    builder.stop()
    assert time.monotonic() - started < PATIENCE / 10
    assert curls() == []
    file.pause = 0.0
    assert get(store, file.url)[0] == CONTENT
    assert file.ranges_asked[-1] is not None


@pytest.mark.usefixtures("_patient")
def test_a_server_that_says_nothing_is_left_at_once(store: Store, file: HttpFile) -> None:
    file.silence = PATIENCE
    builder = Builder(store, lambda _: NoProgress())
    builder.submit([Download(sha256=DIGEST, url=file.url)])
    while not file.requests:
        time.sleep(0.01)
    started = time.monotonic()
    builder.stop()
    assert time.monotonic() - started < PATIENCE / 10


def test_a_server_that_sends_next_to_nothing(
    store: Store, file: HttpFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curl, "SLOW_SECONDS", 3)
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    file.pause = PATIENCE
    assert failure(store, file.url).what.startswith(
        "the file cannot be fetched: the server sends next to nothing; "
    )


def test_a_body_without_end_leaves_the_store_room(
    store: Store, file: HttpFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has arrived is removed, but kept if the length of the file is known."""
    usage = shutil._ntuple_diskusage
    part = store.path("downloads") / f"{DIGEST}.part"

    def fill(_: object) -> object:
        """Pretends that something else fills the store while the file arrives."""
        return usage(9 << 20, 0, 500_000 if part.exists() and part.stat().st_size else 9 << 20)

    monkeypatch.setattr(download, "_SPACE_STEP", 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", fill)
    file.pause = 0.2
    for chunked in (True, False):
        file.chunked = chunked
        assert isinstance(failure(store, file.url), NoSpaceError)
        assert downloads(store) == ([] if chunked else [f"{DIGEST}.json", f"{DIGEST}.part"])


def test_a_full_file_system_is_told_as_that(store: Store, file: HttpFile) -> None:
    transport = make_transport(file.url)
    with pytest.raises(NoSpaceError) as caught, store.errors():
        transport.fetch(Path("/dev/full"), 0, None, 1 << 40, lambda _: None)
    assert caught.value.what == "no space for the artifacts: nothing is left free"


def test_a_killed_download_goes_on(store: Store, file: HttpFile) -> None:
    file.pause = 0.05
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.build.builder import Builder; from pipeline.model import NoProgress\n"
        "from pipeline.sources.download import Download; from pipeline.store import Store\n"
        "stage = Download(sha256=sys.argv[2], url=sys.argv[3])\n"
        "Builder(Store(Path(sys.argv[1])), lambda _: NoProgress()).build([stage])\n"
    )
    words = [sys.executable, "-c", code, str(store.folder), DIGEST, file.url]
    part = store.path("downloads") / f"{DIGEST}.part"
    with subprocess.Popen(words, cwd=ROOT) as process:
        while not part.exists() or part.stat().st_size < 1 << 20:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    there = part.stat().st_size
    file.pause = 0.0
    assert get(store, file.url)[0] == CONTENT
    assert file.ranges_asked == [None, f"bytes={there}-"]


def test_a_complete_download_is_not_repeated_after_a_kill(store: Store, file: HttpFile) -> None:
    fetched = download.fetch(file.url, store, NoProgress(), expected=DIGEST)
    assert fetched.sha256 == DIGEST
    assert get(store, file.url)[0] == CONTENT
    assert len(file.requests) == 1


def test_parts_go_with_the_store(store: Store, file: HttpFile) -> None:
    file.cut_after = [2 << 20]
    failure_after(store, file, 1)
    store.evict(1 << 30)
    assert len(downloads(store)) == 2
    week = time.time() - 8 * 86_400
    for path in store.path("downloads").iterdir():
        os.utime(path, (week, week))
    assert store.evict(1 << 30)[1] >= 2 << 20
    assert downloads(store) == []
    file.cut_after = [2 << 20]
    failure_after(store, file, 1)
    store.evict(0)
    assert downloads(store) == []


# ---- S3


@pytest.fixture
def s3(file: HttpFile, monkeypatch: pytest.MonkeyPatch) -> HttpFile:
    monkeypatch.setenv("AWS_ENDPOINT_URL", file.url.removesuffix("/images/base.img"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return file


def test_an_object_of_s3_goes_on_too(store: Store, s3: HttpFile) -> None:
    s3.cut_after = [1_500_000]
    assert get(store, "s3://bucket/folder/base.img")[0] == CONTENT
    paths, signatures = zip(*(path.split("?") for path, _ in s3.requests), strict=True)
    assert paths == ("/bucket/folder/base.img",) * 2
    assert all("X-Amz-Signature=" in signature for signature in signatures)
    assert s3.ranges_asked == [None, "bytes=1500000-"]
    assert s3.requests[1][1]["if-match"] == '"one"'


def test_an_object_of_s3_that_changes_or_comes_whole(store: Store, s3: HttpFile) -> None:
    s3.content, s3.etag, s3.cut_after = OTHER, '"other"', [1_500_000]
    s3.statuses = [200] + [503] * 10
    assert failure(store, "s3://bucket/base.img").what == (
        "the file cannot be fetched: S3 says 503 Service Unavailable; 1.43 MiB of 3 MiB have "
        "arrived and are kept"
    )
    s3.content, s3.etag, s3.statuses = CONTENT, '"one"', []
    assert get(store, "s3://bucket/base.img")[0] == CONTENT
    shutil.rmtree(store.folder)
    s3.ranges, s3.cut_after = False, [1_500_000]  # as some services that imitate S3
    assert get(store, "s3://bucket/base.img")[0] == CONTENT


def test_a_bucket_of_another_region(store: Store, s3: HttpFile) -> None:
    s3.region = "eu-central-1"
    assert get(store, "s3://bucket/base.img")[0] == CONTENT
    assert "%2Fus-east-1%2F" in s3.requests[0][0]
    assert "%2Feu-central-1%2F" in s3.requests[-1][0]


def test_errors_of_s3(store: Store, s3: HttpFile, monkeypatch: pytest.MonkeyPatch) -> None:
    start = "s3://bucket/base.img: the file cannot be fetched: "
    s3.statuses = [403] * 2  # boto3 gets one, too
    assert str(failure(store, "s3://bucket/base.img")) == (
        f"{start}S3 says 403\n  do: let these credentials read the object (s3:GetObject)"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert str(failure(store, "s3://bucket/base.img")) == (
        f"{start}there are no credentials for S3, or they have expired\n"
        "  do: give credentials as to the AWS command line, such as by AWS_PROFILE"
    )


def test_invalid_locations_are_refused() -> None:
    for url, what in (
        ("ftp://example.com/a", "ftp URL: http, https, s3 are fetched"),
        ("s3://bucket", "it names no object"),
        ("http://example.com:x/a", "the location is no URL"),
        ('http://example.com/a"\noutput = "/tmp/b', "the location is no URL"),
    ):
        with pytest.raises(DownloadError) as caught:
            make_transport(url)
        assert caught.value.what == f"the file cannot be fetched: {what}"


def test_memory_stays_small(store: Store) -> None:
    content = bytes(200 << 20)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.model import NoProgress; from pipeline.store import Store\n"
        "from pipeline.sources.download import fetch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(fetch(sys.argv[2], Store(Path(sys.argv[1])), NoProgress(), None).sha256)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    with serving(HttpFile(content)) as file:
        words = [sys.executable, "-c", code, str(store.folder), file.url]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    digest, grown = done.stdout.split()
    assert digest == sha256(content)
    assert int(grown) < 40_000  # KiB
