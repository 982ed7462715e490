"""Phantoms that refuse, hang, die or are none, as a user of the command line meets them."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from client_kit import HOTEL, SANDBOX, SIERRA, Desk, desk, odd_server, page
from phantom_kit import SITES, USER, SleepMachines, local_phantom

from pipeline.phantom.sandbox import run_phantom
from pipeline.phantom.service import PhantomServer
from pipeline.phantom.state import State

__all__ = ["desk"]
WORDS = ("launch-config", "web", "--phantom", "future")
APIS = pytest.mark.parametrize("api", ["query", "web"])
WAYS = {
    api: f"set PHANTOM_FUTURE_ACCESS_KEY and PHANTOM_FUTURE_{word}, or let "
    "PHANTOM_FUTURE_CREDENTIALS, or `credentials:` in sites.yaml, name a file with "
    f"aws_access_key_id and {key}"
    for api, word, key in (
        ("query", "SECRET_KEY", "aws_secret_access_key"),
        ("web", "TOKEN", "phantom_token"),
    )
}
AGAIN = "run the same command again: it goes on where it was"


@pytest.fixture
def published(desk: Desk) -> Desk:
    desk.publish(HOTEL)
    return desk


def fail(desk: Desk, status: int, what: str, todo: str) -> str:
    """Runs the command, which must end with this status and message. Returns what it printed."""
    ran = desk.run(*WORDS)
    assert ran.err == f"error: {what}\n  do: {todo}\n"
    assert ran.status == status
    for secret in (USER.secret_key, USER.token):
        assert secret not in ran.out + ran.err
    return ran.out


# ---- credentials


@pytest.mark.parametrize(
    ("api", "name", "why", "code"),
    [
        ("query", "ACCESS_KEY", "the access key is not known", "403 InvalidClientTokenId"),
        (
            "query",
            "SECRET_KEY",
            "the secret key is not the access key's",
            "400 IncompleteSignature",
        ),
        ("web", "ACCESS_KEY", "the access key or its token is wrong", "401 UNAUTHORIZED"),
        ("web", "TOKEN", "the access key or its token is wrong", "401 UNAUTHORIZED"),
    ],
)
def test_wrong_credentials(
    published: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    name: str,
    why: str,
    code: str,
) -> None:
    monkeypatch.setenv(f"PHANTOM_FUTURE_{name}", "wrong-one")
    with local_phantom(tmp_path) as local:
        published.know(local.server.url, f", api: {api}")
        fail(
            published,
            30,
            f"Phantom future: the credentials are refused, {why} ({code})",
            f"correct those of the environment; or {WAYS[api]}",
        )


@APIS
def test_no_credentials(published: Desk, monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    published.know("http://127.0.0.1:9", f", api: {api}")
    second = "TOKEN" if api == "web" else "SECRET_KEY"
    monkeypatch.delenv(f"PHANTOM_FUTURE_{second}")
    fail(
        published,
        30,
        "Phantom future: the credentials of the environment are incomplete: "
        f"PHANTOM_FUTURE_{second} missing",
        f"add PHANTOM_FUTURE_{second}; or {WAYS[api]}",
    )
    monkeypatch.delenv("PHANTOM_FUTURE_ACCESS_KEY")
    fail(published, 30, "Phantom future: no credentials", WAYS[api])


def test_files_of_credentials(
    published: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's file comes before that of sites.yaml, and that before the usual one; the
    section with the Phantom's name comes before `default`."""
    for word in ("ACCESS_KEY", "SECRET_KEY", "TOKEN"):
        monkeypatch.delenv(f"PHANTOM_FUTURE_{word}")
    keys = f"aws_access_key_id={USER.access_key}\naws_secret_access_key={USER.secret_key}\n"
    wrong = "[default]\naws_access_key_id=x\naws_secret_access_key=y\n"
    usual = published.folder / "home/.phantom/credentials"
    usual.parent.mkdir()
    with local_phantom(tmp_path) as local:
        published.know(local.server.url)
        usual.write_text(f"{wrong}[future]\n{keys}")
        assert published.run(*WORDS).status == 0

        Path("named").write_text("aws_secret_access_key: no section")
        published.know(local.server.url, ", credentials: named")
        fail(
            published,
            30,
            "Phantom future: the credentials in named cannot be read: it has not the form of AWS's "
            "tools",
            WAYS["query"],
        )
        Path("named").write_text("[default]\naws_access_key_id = x\n")
        fail(
            published,
            30,
            "Phantom future: the credentials of named are incomplete: aws_secret_access_key "
            "missing",
            f"add aws_secret_access_key; or {WAYS['query']}",
        )
        Path("own").write_text(f"[default]\n{keys}")
        monkeypatch.setenv("PHANTOM_FUTURE_CREDENTIALS", "own")
        assert published.run(*WORDS).status == 0
        monkeypatch.setenv("PHANTOM_FUTURE_CREDENTIALS", "none")
        fail(
            published,
            30,
            "Phantom future: the credentials in none cannot be read: No such file or directory",
            WAYS["query"],
        )


def test_a_clock_that_is_off(published: Desk, tmp_path: Path) -> None:
    state = State(tmp_path)
    late = datetime.now(UTC) + timedelta(minutes=16)
    with PhantomServer(state, [USER], SITES, clock=lambda: late) as server:
        published.know(server.url)
        fail(
            published,
            65,
            "Phantom future: requests are refused because this host's clock is more than 15 "
            "minutes off (400 RequestExpired: The timestamp is more than 15 minutes off.)",
            "set this host's clock (such as with `timedatectl set-ntp true`), or that of Phantom "
            f"if it is the wrong one; then {AGAIN}",
        )
    state.close()


# ---- servers that are no Phantom, or not for long


def unreachable(desk: Desk, url: str, why: str) -> str:
    """The command must say that nothing answers."""
    return fail(
        desk,
        31,
        f"Phantom future: {url} does not answer: {why}",
        f"see whether this Phantom runs, and this host's network and proxy; then {AGAIN}",
    )


def foreign(desk: Desk, url: str, api: str, what: str) -> None:
    """The command must say that something else answers."""
    fail(
        desk,
        64,
        f"Phantom future: {url} answers with {what}, which is nothing that Phantom's {api} API "
        "says",
        "compare `url` and `api` of this Phantom in sites.yaml; something else may answer there, "
        f"such as a proxy or a page to log in. Then {AGAIN}",
    )


@APIS
def test_nothing_listens(published: Desk, api: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    published.know(url, f", api: {api}")
    unreachable(published, url, "Connection refused")


@APIS
@pytest.mark.parametrize("sends", ["nothing", "half an answer", "drops"])
def test_a_phantom_that_hangs(published: Desk, api: str, sends: str) -> None:
    ended = threading.Event()

    def respond(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        if sends != "nothing":
            handler.send_response(200)
            handler.end_headers()
        while not ended.wait(0.1 if sends == "drops" else 30):
            handler.wfile.write(b" ")

    with odd_server(respond) as odd:
        published.know(odd.url, f", api: {api}, seconds: 1")
        unreachable(published, odd.url, "nothing came within 1 seconds")
        ended.set()
    assert len(odd.requests) == 1


LOGIN = "<!DOCTYPE html><html><head><title>Log\nin</title></head><body>secret</body></html>"


@APIS
def test_a_page(published: Desk, api: str) -> None:
    with odd_server(page(200, "OK", LOGIN)) as odd:
        published.know(odd.url, f", api: {api}")
        foreign(published, odd.url, api, "an HTML page ('Log in')")


@APIS
def test_a_page_that_repeats_secrets(published: Desk, api: str) -> None:
    def respond(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        text = f"<html>{handler.headers.get('Authorization', USER.secret_key)}</html>"
        page(200, "OK", text)(handler, b"")

    with odd_server(respond) as odd:
        published.know(odd.url, f", api: {api}")
        shown = "Basic ***" if api == "web" else "***"
        foreign(published, odd.url, api, f"an HTML page ('{shown}')")


@pytest.mark.parametrize(
    ("api", "text", "what"),
    [
        ("query", "It works!", "what is no XML ('It works!')"),
        ("query", "", "nothing"),
        ("query", "<feed/>", "XML of something else"),
        ("web", "It works!", "what it cannot say here (it holds no JSON)"),
        ("web", "{}", "what it cannot say here (it is not a list)"),
        ("web", '[{"id": 1}]', "what it cannot say here ([0] has no 'name')"),
    ],
)
def test_another_service(published: Desk, api: str, text: str, what: str) -> None:
    with odd_server(page(200, "OK", text, "text/plain")) as odd:
        published.know(odd.url, f", api: {api}")
        foreign(published, odd.url, api, what)


@APIS
def test_a_redirection(published: Desk, api: str) -> None:
    def respond(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(301)
        handler.send_header("Location", "https://elsewhere.example.org/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with odd_server(respond) as odd:
        published.know(odd.url, f", api: {api}")
        what = "a redirection to https://elsewhere.example.org/"
        foreign(published, odd.url, api, what)


@APIS
def test_a_proxy_whose_phantom_is_away(published: Desk, api: str) -> None:
    with odd_server(page(503, "Service Unavailable", "<html><b>Try later</b></html>")) as odd:
        published.know(odd.url, f", api: {api}")
        unreachable(published, odd.url, "503 Try later")


def test_an_error_that_is_a_page(published: Desk) -> None:
    """Phantom's own errors may be HTML; the reason phrase is the code."""
    with odd_server(page(403, "InvalidClientTokenId", "<html>no</html>")) as odd:
        published.know(odd.url)
        fail(
            published,
            30,
            "Phantom future: the credentials are refused, the access key is not known (403 "
            "InvalidClientTokenId)",
            f"correct those of the environment; or {WAYS['query']}",
        )


@pytest.mark.parametrize("answers", [1, 2])
def test_a_phantom_that_dies_between_two_calls(
    published: Desk, tmp_path: Path, answers: int
) -> None:
    """It ends the connection of the next call without an answer. Another run finishes."""
    published.publish(HOTEL, SIERRA)
    with local_phantom(tmp_path) as local:

        def respond(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
            if len(odd.requests) > answers:
                handler.connection.shutdown(socket.SHUT_RDWR)
                handler.close_connection = True
                return
            kept = {name: handler.headers[name] for name in ("Host", "Content-Type")}
            got = local.request("POST", "/", body.decode(), kept)
            page(got.status, got.reason, got.text, "text/xml")(handler, b"")

        with odd_server(respond) as odd:
            published.know(odd.url)
            out = unreachable(published, odd.url, "Remote end closed connection without response")
            assert out.count("created") == answers - 1
        published.know(local.server.url)
        done = [f"created web@{site}" for site in ("hotel", "sierra")]
        assert published.run(*WORDS).out.splitlines()[-3 + answers :] == done[answers - 1 :]


# ---- which Phantom


def test_a_phantom_that_nobody_knows(published: Desk) -> None:
    published.know("http://127.0.0.1:9")
    ran = published.run("launch-config", "web", "--phantom", "futrue")
    assert (ran.status, ran.err) == (
        24,
        "error: there is no Phantom 'futrue'; did you mean 'future'?\n"
        "  do: choose one of: future, local; `phantoms:` of sites.yaml describes others\n",
    )


def test_mistakes_in_sites_yaml(published: Desk) -> None:
    Path("sites.yaml").write_text(
        "sites: {}\n"
        "phantoms:\n"
        "  future: {url: phantom.example.org, api: soap}\n"
        "  other: {uri: 'https://phantom.example.org'}\n"
    )
    ran = published.run(*WORDS)
    assert (ran.status, ran.err) == (
        10,
        "error: 3 mistakes in sites.yaml\n"
        "  | sites.yaml:3:17: 'phantoms.future.url' must be a URL such as "
        "https://phantom.example.org:8445, not 'phantom.example.org'\n"
        "  | sites.yaml:3:43: 'phantoms.future.api' must be one of query, web, not 'soap'\n"
        "  | sites.yaml:4:11: unknown key 'uri' in 'phantoms.other'; did you mean 'url'?\n"
        "  do: correct them; sites.example.yaml shows what the file can say\n",
    )


def test_credentials_in_a_url_are_refused_and_not_shown(published: Desk) -> None:
    published.know("https://me:password@phantom.example.org")
    ran = published.run("launch-config", "web", "--phantom", "future")
    assert (ran.status, ran.err) == (
        10,
        "error: sites.yaml:2:26: the URL holds credentials: take them out\n"
        "  do: correct it; sites.example.yaml shows what the file can say\n",
    )


def test_the_local_phantom_needs_no_entry(desk: Desk, tmp_path: Path) -> None:
    desk.publish(SANDBOX)
    words = ("launch-config", "web", "--phantom", "local")
    folder = Path(os.path.realpath(desk.folder / "build/.phantom"))
    ran = desk.run(*words)
    assert (ran.status, ran.err) == (
        31,
        f"error: {folder}: no local Phantom runs\n"
        "  do: start one in another terminal: `phantom-image phantom-sandbox`\n",
    )
    with run_phantom(folder, ("nimbus-sandbox",), SleepMachines(folder / "machines")) as running:
        assert (folder / "address").read_text() == f"{running.url}\n"
        ran = desk.run(*words)
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "created web@nimbus-sandbox")
    assert not (folder / "address").exists()
