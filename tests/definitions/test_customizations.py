"""Mistakes in the keys that customize the image, and how a definition inherits them."""

from __future__ import annotations

from pathlib import Path

import pytest
from definition_texts import HEAD, Load, Write

from pipeline.customizations import describe, make_steps
from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError

FILE = "images/web/appliance.yaml"

# A definition's lines and its messages: one `line:column: message` for each mistake.
MISTAKES: list[tuple[str, list[str]]] = [
    (
        "timezone: Mars/Base One\n",
        [
            "4:11: 'timezone' must be the name of a time zone, such as Europe/Berlin or UTC, not "
            "'Mars/Base One'"
        ],
    ),
    (
        "groups: [{name: Lab}, {name: a, gid: 5}, {gid: 0}]\n",
        [
            "4:17: 'groups[0].name' must be lower-case letters, digits, '_' and '-', beginning "
            "with a letter or '_', and at most 32 of them, not 'Lab'",
            "4:42: 'name' is missing in 'groups[2]'",
            "4:48: 'groups[2].gid' must be at least 1, not 0",
        ],
    ),
    (
        "groups: [{name: a, gid: 5}, {name: a, gid: 6}, {name: b, gid: 5}]\n",
        [
            "4:36: 'groups[1].name': entry 1 has the same name, 'a'",
            "4:63: 'groups[2].gid': entry 1 has the same gid, 5",
        ],
    ),
    (
        "users:\n- {name: ops, uid: 7, ssh_authorized_keys: keys}\n"
        "- {name: ops, create_home: false, ssh_authorized_keys: none, "
        "password: {environment: A, file: b}}\n",
        [
            "5:44: 'users[0].ssh_authorized_keys': line 2 of 'keys' is not a public key of OpenSSH",
            "6:10: 'users[1].name': entry 1 has the same name, 'ops'",
            "6:56: 'users[1].ssh_authorized_keys': there is no 'none' in images/web",
            "6:56: 'users[1].ssh_authorized_keys': keys lie in a home, and 'create_home' is false",
            "6:72: 'users[1].password': give either 'environment' or 'file'",
            "6:95: 'users[1].password.file': must be an absolute path: the hash does not belong "
            "beside the definition",
        ],
    ),
    ("debconf: nothing\n", ["4:10: 'debconf': there is no 'nothing' in images/web"]),
    (
        "debconf: keys\n",
        [
            "4:10: 'debconf': line 2 of 'keys' is not `package question type answer`, as "
            "debconf-set-selections reads it"
        ],
    ),
    (
        "locale: de\nhostname: A_b\nkeyboard: {variant: x}\n",
        [
            "4:9: 'locale' must be a locale, such as de_DE.UTF-8 or C.UTF-8, not 'de'",
            "5:11: 'hostname' must be a host name: lower-case letters, digits, '-' and '.', not "
            "'A_b'",
            "6:11: 'layout' is missing in 'keyboard'",
        ],
    ),
    (
        "swap: {size: 1MiB}\n",
        ["4:14: 'swap.size': 1MiB is no size of a swap file: from 16MiB to 512GiB"],
    ),
    (
        "kernel_options: {append: [quiet, root=LABEL=x], remove: [console, a b]}\n",
        [
            "4:67: 'kernel_options.remove[1]' must be an option of the kernel, such as quiet, not "
            "'a b'"
        ],
    ),
    (
        "kernel_options: {append: [quiet, root=LABEL=x], remove: [console]}\n",
        [
            "4:34: 'kernel_options.append[1]': 'root=LABEL=x' is for the image's layout to say",
            "4:58: 'kernel_options.remove[0]': the boot check hears the machine by this console",
        ],
    ),
    (
        "directories: [{path: /tmp/x}, {path: /a/../b}, {path: /srv/}, {path: /srv}]\n",
        [
            "4:22: 'directories[0].path': '/tmp/x' is made anew at each boot",
            "4:38: 'directories[1].path': '/a/../b' must not hold '.' or '..'",
            "4:70: 'directories[3].path': entry 3 has the same path, '/srv'",
        ],
    ),
    (
        "services: {enabled: [nginx, a b], started: [x]}\n",
        [
            "4:29: 'services.enabled[1]' must be the name of a service, such as nginx or "
            "backup.timer, not 'a b'",
            "4:35: unknown key 'started' in 'services'; known here: enabled, disabled, masked",
        ],
    ),
    (
        "services:\n  enabled: [nginx]\n  masked: [nginx.service]\n",
        ["6:12: 'services.masked[0]': 'nginx.service' is among the enabled services too"],
    ),
    (
        "repositories:\n  - {name: A, url: ftp://h/x, suite: x, key: keys}\n"
        "  - {name: b, url: http://me:pw@h/x, suite: 'a b', components: [c], key: none}\n",
        [
            "5:12: 'repositories[0].name' must be lower-case letters, digits, '_' and '-', not 'A'",
            "5:20: 'repositories[0].url' must be an http or https URL without a name or password, "
            "not 'ftp://h/x'",
            "6:20: 'repositories[1].url' must be an http or https URL without a name or password, "
            "not 'http://me:pw@h/x'",
            "6:45: 'repositories[1].suite' must be the name of a suite, or a folder that ends in "
            "'/', not 'a b'",
            "6:74: 'repositories[1].key': there is no 'none' in images/web",
        ],
    ),
    (
        "repositories:\n  - {name: a, url: http://h/x, suite: x, key: keys}\n"
        "  - {name: a, url: http://h/x, suite: x/, components: [c], key: keys}\n",
        [
            "5:5: 'repositories[0]': 'components' is missing; an archive without any has a suite "
            "that ends in '/'",
            "5:47: 'repositories[0].key': 'keys' is no block of public keys; `gpg --export KEY` "
            "writes a file with a public key",
            "6:12: 'repositories[1].name': entry 1 has the same name, 'a'",
            "6:55: 'repositories[1].components': an archive whose suite ends in '/' has no "
            "components",
            "6:65: 'repositories[1].key': 'keys' is no block of public keys; `gpg --export KEY` "
            "writes a file with a public key",
        ],
    ),
    (
        "python: {path: opt/x, requirements: none, version: '2.7'}\n",
        [
            "4:16: 'python.path' must be an absolute path such as /opt/jupyter, of letters, "
            "digits, '.', '_', '+' and '-', not 'opt/x'",
            "4:37: 'python.requirements': there is no 'none' in images/web",
            "4:52: 'python.version' must be a version of Python from 3.8 on, in quotes, such as "
            "'3.11', not '2.7'",
        ],
    ),
    (
        "python:\n  path: /run/x/y\n  requirements: keys\n",
        [
            "5:9: 'python.path': '/run' is made anew at each boot; /opt is a place for "
            "environments",
            "6:17: 'python.requirements': line 2 of 'keys' is no requirement, such as name==1.0",
        ],
    ),
    (
        "python:\n  path: /usr/lib/x\n  requirements: pins\n",
        [
            "5:9: 'python.path': '/usr' is the system's own; /opt is a place for environments",
            "6:17: 'python.requirements': line 2 of 'pins' has no --hash for foo; `pip-compile "
            "--generate-hashes` or `uv pip compile --generate-hashes` writes them",
            "6:17: 'python.requirements': line 3 of 'pins' does not pin bar to one version; write "
            "bar==VERSION",
        ],
    ),
    (
        "python: {path: /opt/../x, requirements: empty}\n",
        [
            "4:16: 'python.path': '/opt/../x' must not hold '.' or '..'",
            "4:41: 'python.requirements': 'empty' names no package",
        ],
    ),
    (
        "source: {scratch: {components: [contrib, other]}}\n",
        [
            "4:42: 'source.scratch.components[1]' must be one of contrib, non-free, "
            "non-free-firmware, not 'other'"
        ],
    ),
]


@pytest.mark.parametrize(("text", "messages"), MISTAKES)
def test_mistakes(load: Load, write: Write, text: str, messages: list[str]) -> None:
    write("images/web/keys", "# mine\nssh-ed25519 AAAA\n")
    write("images/web/pins", "# pinned\nfoo==1\nbar>=2\n")
    write("images/web/empty", "# nothing\n")
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + text)
    told = str(caught.value).splitlines()
    found = [told[0]] if len(messages) == 1 else [line.removeprefix("  | ") for line in told[1:-1]]
    assert found == [f"{FILE}:{message}" for message in messages]


def test_the_child_decides_for_its_parent(write: Write, load: Load) -> None:
    write(
        "images/common/appliance.yaml",
        'name: common\nversion: "1"\nsummary: s\ntimezone: UTC\n'
        "services: {enabled: [a, b], masked: [c]}\n",
    )
    loaded = load(f"extends: common\n{HEAD}services: {{disabled: [b.service], enabled: [c]}}\n")
    assert loaded.customizations == {
        "timezone": "UTC",
        "services": {"enabled": ["a", "c"], "disabled": ["b.service"]},
    }
    assert load_appliance("common", Path("images")).customizations["services"] == {
        "enabled": ["a", "b"],
        "masked": ["c"],
    }


def test_password_is_a_hash_from_elsewhere(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(f"{HEAD}users: [{{name: ops, password: {{environment: OPS_HASH}}}}]\n")
    for value, what in (
        (None, "the environment variable OPS_HASH is not set"),
        ("secret", "OPS_HASH does not hold the hash of a password"),
    ):
        if value is not None:
            monkeypatch.setenv("OPS_HASH", value)
        with pytest.raises(DefinitionError) as caught:
            make_steps(loaded.customizations, loaded.positions)
        assert (caught.value.where, caught.value.what) == (f"{FILE}:4:31", what)
    monkeypatch.setenv("OPS_HASH", "$6$salt$" + "x" * 86)
    (step,) = make_steps(loaded.customizations, loaded.positions)
    assert "ops:$6$salt$xxx" in step.script and "$6$" not in repr(step)
    assert describe(loaded.customizations) == {
        "users": [{"name": "ops", "password": {"environment": "OPS_HASH"}}]
    }
