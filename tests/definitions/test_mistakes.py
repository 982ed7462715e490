"""Mistakes in definitions: each whole message is compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from definition_texts import HEAD, Load, Write

from pipeline.customizations import CUSTOMIZATIONS
from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError, UsageError

FILE = "images/web/appliance.yaml"
TODO = "  do: correct {}; `phantom-image schema` prints all that a definition can say"
UNSUPPORTED = (
    "is not supported; write the value at each place, or share it between definitions by 'extends'"
)
KEYS = (
    "extends, name, version, summary, source, elements, packages, without_packages, files, "
    "scripts, environment, build_certificates, build_secrets, "
    f"{', '.join(CUSTOMIZATIONS)}, disk_size, user_data, login, kernel, clouds, "
    "boot_check, phantom, keep, waive, labels"
)

# A definition and its messages: one `place: message` for each mistake.
WHOLE_FILES: list[tuple[str, list[str]]] = [
    ("", [" is empty"]),
    (" \n\n", [" is empty"]),
    ("# name: web\n", [" contains only comments"]),
    ("- name: web\n", ["1:1: the file must be a mapping, not a list"]),
    ("name\n", ["1:1: the file must be a mapping, not a string"]),
    ("~\n", ["1:1: the file has no value; it must be a mapping"]),
    ("\tname: web\n", ["1:1: a tab; YAML wants spaces here"]),
    ("name: web\n\tversion: x\n", ["2:1: a tab; YAML wants spaces here"]),
    ("# \u00e9\nname: web\n", ["2:1: 'version' is missing", "2:1: 'summary' is missing"]),
    (
        'nmae: web\nVersion: "1"\nsummary: s\n',
        [
            "1:1: unknown key 'nmae'; did you mean 'name'?",
            "2:1: unknown key 'Version'; did you mean 'version'?",
        ],
    ),
    (
        "name: 1\nversion: 1.10\nsummary: no\n",
        [
            "1:7: 'name' must be a string, and YAML reads 1 as the number 1; put it in quotes: "
            '"1"',
            "2:10: 'version' must be a string, and YAML reads 1.10 as the number 1.1; put it in "
            'quotes: "1.10"',
            "3:10: 'summary' must be a string, and YAML reads no as false; put it in quotes: "
            '"no"',
        ],
    ),
    (
        "name: web\nversion: 2026-01-31\nsummary: on\n",
        [
            "2:10: 'version' must be a string, and YAML reads 2026-01-31 as a date; put it in "
            'quotes: "2026-01-31"',
            "3:10: 'summary' must be a string, and YAML reads on as true; put it in quotes: \"on\"",
        ],
    ),
    (
        'name: Web_1\nversion: "1/2"\nsummary: >\n  two\n  lines\n',
        [
            "1:7: 'name' must be lower-case letters, digits, '.' and '-', beginning with a letter "
            "or digit, not 'Web_1'",
            "2:10: 'version' must be letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit, not '1/2'",
            "3:10: 'summary' must be one line of text (with '>' YAML adds a line feed, with '>-' "
            "not), not 'two lines\\n'",
        ],
    ),
    (
        'name: site\nversion: "1"\nsummary: s\n',
        ["1:7: 'name': 'site' is not the name of the definition's folder, 'web'"],
    ),
    (
        f'name: {"w" * 65}\nversion: "{"1" * 33}"\nsummary: s\n',
        [
            "1:7: 'name' must be lower-case letters, digits, '.' and '-', beginning with a letter "
            f"or digit, not '{'w' * 55}...'",
            "2:10: 'version' must be letters, digits, '.', '_' and '-', beginning with a letter or "
            f"digit, not '{'1' * 33}'",
        ],
    ),
]

# The same, for text that follows the three lines of HEAD, so its first line is line 4.
PARTS: list[tuple[str, list[str]]] = [
    # waivers
    (
        "waive:\n  - {rule: privat-key, reason: a test's}\n  - {rule: log}\n  - rule: log\n"
        "    reason: ' '\n    path: opt/*\n    paths: /opt/*\n",
        [
            "5:12: 'waive[0].rule' must be the id of a rule for images (docs/checks.md), not "
            "'privat-key'; did you mean 'private-key'?",
            "6:5: 'reason' is missing in 'waive[1]'",
            "8:13: 'waive[2].reason' must be one line of text, not ' '",
            "9:11: 'waive[2].path' must be an absolute path, not 'opt/*'",
            "10:5: unknown key 'paths' in 'waive[2]'; did you mean 'path'?",
        ],
    ),
    # YAML itself
    (
        "a: [1\n",
        [
            "5:1: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence "
            "that starts on line 4)"
        ],
    ),
    (
        "a: b: c\n",
        [
            "4:5: a ':' where no key can be; put text that holds ': ' in quotes, and indent "
            "the keys of one mapping alike"
        ],
    ),
    (
        "packages:\n  - vim\n nano\n",
        [
            "6:2: this line is not indented like the ones it belongs "
            "to (while parsing a block mapping that starts on line 1)"
        ],
    ),
    (
        "packages:\n  - vim\n - nano\n",
        [
            "6:2: this line is not indented like the ones it belongs "
            "to (while parsing a block mapping that starts on line 1)"
        ],
    ),
    (
        "labels: {a: @x}\n",
        ["4:13: found character '@' that cannot start any token; put the text in quotes"],
    ),
    (
        "x: '\n",
        [
            "5:1: found unexpected end of stream (while scanning a quoted scalar that starts "
            "on line 4)"
        ],
    ),
    ("labels: *x\n", [f"4:9: the alias *x {UNSUPPORTED}"]),
    (
        "labels: &a {x: &b y, z: *b}\nscripts: &c [&d !!str x]\n",
        [
            f"4:9: the anchor &a {UNSUPPORTED}",
            f"4:16: the anchor &b {UNSUPPORTED}",
            f"4:25: the alias *b {UNSUPPORTED}",
            f"5:10: the anchor &c {UNSUPPORTED}",
            f"5:14: the anchor &d {UNSUPPORTED}",
        ],
    ),
    (
        "login: {user: Ops, name: a}\n",
        [
            "4:15: 'login.user' must be a user's name: lower-case letters, digits, '_' and '-', "
            "not 'Ops'",
            "4:20: unknown key 'name' in 'login'; known here: user",
        ],
    ),
    (
        "labels: {<<: {a: b}, c: 1}\n",
        [
            f"4:10: the merge key '<<' {UNSUPPORTED}",
            "4:25: 'labels.c' must be a string, and YAML reads 1 as the number 1; put it in "
            'quotes: "1"',
        ],
    ),
    ("labels: {&a a: b}\n", [f"4:10: the anchor &a {UNSUPPORTED}"]),
    (
        "labels: &a {x: *a\n",
        [
            "5:1: expected ',' or '}', but got '<stream end>' (while parsing a flow mapping that "
            "starts on line 4)"
        ],
    ),
    ("labels: !foo {}\n", ["4:9: the tag !foo means nothing here; take it away"]),
    (
        "packages: !!set {vim}\n",
        [
            "4:11: the tag !!set means nothing here; take it away",
            "4:11: 'packages' must be a list, not a mapping",
        ],
    ),
    ("labels: {a: !!binary aGk=}\n", ["4:13: the tag !!binary means nothing here; take it away"]),
    ("---\nname: b\n", ["4:1: a second document starts here; one file is one document"]),
    ("labels: " + "[" * 200_000, ["4:58: more than 50 levels deep"]),
    ('labels: {a: "x\\0"}\n', ["4:13: holds the control character U+0000; take it out"]),
    ("labels: {a: '\x07'}\n", ["4:14: control character U+0007; take it out"]),
    # Keys
    ("name: web\n", ["4:1: 'name' is written twice; the first is on line 1"]),
    ("labels:\n  a: b\n  'a': c\n", ["6:3: 'a' is written twice; the first is on line 5"]),
    ("disk-size: 2GiB\n", ["4:1: unknown key 'disk-size'; did you mean 'disk_size'?"]),
    ("max_vms: 3\n", ["4:1: unknown key 'max_vms'; it belongs in 'phantom'"]),
    ("release: trixie\n", ["4:1: unknown key 'release'; it belongs in 'source.scratch'"]),
    ("zzz: 3\n", [f"4:1: unknown key 'zzz'; known here: {KEYS}"]),
    ("? [a]\n: b\n", ["4:3: a key must be text, not a list or a mapping"]),
    (
        "labels: {on: x, 1: y}\n",
        [
            '4:10: a key must be text, and YAML reads on as true; put it in quotes: "on"',
            '4:17: a key must be text, and YAML reads 1 as the number 1; put it in quotes: "1"',
        ],
    ),
    (
        "labels: {a b: x, c: 1}\n",
        [
            "4:10: the key 'a b' must be letters, digits, '.', '_', '/' and '-'",
            "4:21: 'labels.c' must be a string, and YAML reads 1 as the number 1; put it in "
            "quotes: "
            '"1"',
        ],
    ),
    # Lists
    (
        "packages: vim\n",
        ["4:11: 'packages' must be a list, not a string; write one item a line, each after '- '"],
    ),
    ("packages:\n", ["4:1: 'packages' has no value; it must be a list"]),
    (
        "packages:\n  - vim\n  - nano\n  - vim\n",
        ["7:5: 'vim' is listed twice in 'packages'; the first is on line 5"],
    ),
    (
        "packages: [vim==2, no]\n",
        [
            "4:12: 'packages[0]' must be the name of a package, name=version, or the path of a "
            ".deb file that begins with './', not 'vim==2'",
            "4:20: 'packages[1]' must be a string, and YAML reads no as false; put it in quotes: "
            '"no"',
        ],
    ),
    (
        "packages:\n  - vim\n  - nano\n  - vim=2:9.0\n  - nano=1\n  - nano=1\n",
        [
            "7:5: 'packages[2]': line 5 asks for the same package, 'vim'",
            "8:5: 'packages[3]': line 6 asks for the same package, 'nano'",
            "9:5: 'nano=1' is listed twice in 'packages'; the first is on line 8",
            "9:5: 'packages[4]': line 6 asks for the same package, 'nano'",
        ],
    ),
    # Variables
    (
        "environment:\n  DIB_RELEASE: trixie\n  PATH: /x\n  PHANTOM_OUTPUT: /x\n  A-B: x\n"
        "  LD_PRELOAD: x\n  IMAGE_NAME: x\n  DIB_PYTHON_VERSION: 3\n  DIB_DEV_USER: me\n",
        [
            "5:3: 'environment.DIB_RELEASE' cannot be set here: write it as `source: {scratch: "
            "{release: ...}}`",
            "6:3: 'environment.PATH' cannot be set here: the build sets it itself",
            "7:3: 'environment.PHANTOM_OUTPUT' cannot be set here: the build sets it itself",
            "8:3: the key 'A-B' must be a variable's name: letters, digits and '_'",
            "9:3: 'environment.LD_PRELOAD' cannot be set here: the build sets it itself",
            "10:3: 'environment.IMAGE_NAME' cannot be set here: the build sets it itself",
            "11:23: 'environment.DIB_PYTHON_VERSION' must be a string, and YAML reads 3 as the "
            'number 3; put it in quotes: "3"',
        ],
    ),
    (
        "source: {base_image: {location: appliance.yaml}}\ndisk_size: 2GiB\nenvironment: {A: b}\n",
        [
            "6:1: 'environment' has no use with a base image: elements' hooks only run from "
            "scratch",
        ],
    ),
    (
        "elements: ['../x', {a: b}, ]\n",
        [
            "4:12: 'elements[0]' must be the name of an element, which is its folder's name, not "
            "'../x'",
            "4:20: 'elements[1]' must be a string, not a mapping",
        ],
    ),
    # Single values
    (
        "disk_size: 2G\n",
        ["4:12: 'disk_size' must be a number and MiB, GiB or TiB, such as 2GiB, not '2G'"],
    ),
    (
        "disk_size: 2\n",
        ["4:12: 'disk_size' must be a number and MiB, GiB or TiB, such as 2GiB, not 2"],
    ),
    (
        'disk_size: "2GiB\\n"\n',
        ["4:12: 'disk_size' must be a number and MiB, GiB or TiB, such as 2GiB, not '2GiB\\n'"],
    ),
    (
        "disk_size: 0MiB\n",
        ["4:12: 'disk_size': 0MiB is not a valid disk size; it must be from 1MiB to 2TiB"],
    ),
    (
        "disk_size: 1MB\n",
        ["4:12: 'disk_size': 1MB is not a valid disk size; it must be from 1MiB to 2TiB"],
    ),
    (
        "disk_size: 3TiB\n",
        ["4:12: 'disk_size': 3TiB is not a valid disk size; it must be from 1MiB to 2TiB"],
    ),
    (
        "kernel: clud\n",
        ["4:9: 'kernel' must be one of generic, cloud, auto, not 'clud'; did you mean 'cloud'?"],
    ),
    ("kernel: on\n", ["4:9: 'kernel' must be one of generic, cloud, auto, not on"]),
    (
        "user_data: {frequency: always}\n",
        ["4:24: 'user_data.frequency' must be one of boot, instance, not 'always'"],
    ),
    ("source: {}\n", ["4:9: 'source' must not be empty"]),
    ("source: scratch\n", ["4:9: 'source' must be a mapping, not a string"]),
    (
        "packages: [NetworkManager]\n",
        ["4:12: 'packages[0]' must be the name of a Debian package, not 'NetworkManager'"],
    ),
    (
        "source: {base_image: {}}\ndisk_size: 2GiB\n",
        ["4:22: 'location' is missing in 'source.base_image'"],
    ),
    (
        "source: {base_image: {location: base.img}}\n",
        ["4:22: 'disk_size' is missing: a base image grows to the disk that is asked for"],
    ),
    (
        "source: {base_image: {location: 'https://h/b.img'}}\ndisk_size: 2GiB\n",
        [
            "4:33: 'source.base_image.sha256' is missing, and what comes over a network needs it: "
            "`phantom-image pin web` fetches the image and writes it"
        ],
    ),
    (
        "source: {base_image: {location: 'https://me:word@h/b.img'}}\ndisk_size: 2GiB\n",
        [
            "4:33: 'source.base_image.location': holds a user's name or password; no secret goes "
            "into a definition"
        ],
    ),
    (
        "source: {base_image: {location: 'ftp://h/b.img'}}\ndisk_size: 2GiB\n",
        [
            "4:33: 'source.base_image.location': ftp:// is not known; known are http://, https://, "
            "s3:// and paths of files"
        ],
    ),
    (
        "source: {base_image: {location: 's3:///b.img'}}\ndisk_size: 2GiB\n",
        ["4:33: 'source.base_image.location': 's3:///b.img' names no host"],
    ),
    (
        "source: {base_image: {location: {appliance: a, build: 12}}}\ndisk_size: 2GiB\n",
        [
            "4:55: 'source.base_image.location.build' must be 'latest' or the twelve digits of a "
            "build, not 12"
        ],
    ),
    (
        "source: {base_image: {location: {appliance: web}, format: raw}}\ndisk_size: 2GiB\n",
        [
            "4:45: 'source.base_image.location.appliance': there is no other appliance 'web' in "
            "images",
            "4:59: 'source.base_image.format': an appliance's build has its own",
        ],
    ),
    (
        "source: {base_image: {location: b, format: iso, sha256: ABC}}\ndisk_size: 2GiB\n",
        [
            "4:44: 'source.base_image.format' must be one of raw, qcow2, vmdk, vhd, vdi, not 'iso'",
            "4:57: 'source.base_image.sha256' must be 64 hexadecimal digits in lower case, not "
            "'ABC'",
        ],
    ),
    (
        "source: {scratch: {release: Bookworm, relase: x}}\n",
        [
            "4:29: 'source.scratch.release' must be a release's code name, such as bookworm, not "
            "'Bookworm'",
            "4:39: unknown key 'relase' in 'source.scratch'; did you mean 'release'?",
        ],
    ),
    (
        "clouds: {nimbsu: {disk_size: 2GB}}\n",
        ["4:10: unknown key 'nimbsu' in 'clouds'; did you mean 'nimbus'?"],
    ),
    ("clouds: {nimbsu: {}}\n", ["4:10: unknown key 'nimbsu' in 'clouds'; did you mean 'nimbus'?"]),
    (
        "clouds: {nimbus: {disk_size: 1Gb, image_name: '{nam}'}}\n",
        [
            "4:30: 'clouds.nimbus.disk_size' must be a number and MiB, GiB or TiB, such as 2GiB, "
            "not "
            "'1Gb'",
            "4:47: 'clouds.nimbus.image_name': {nam} is unknown; known are "
            "{name}, {version}, {build}, {layout}",
        ],
    ),
    (
        "clouds: {nimbus: {image_name: '{name'}}\n",
        ["4:31: 'clouds.nimbus.image_name': '{name' has a brace without its other half"],
    ),
    (
        "clouds: {nimbus: {image_name: '{name!r:>9}{}'}}\n",
        [
            "4:31: 'clouds.nimbus.image_name': {name!r:>9} is unknown; "
            "known are "
            "{name}, {version}, {build}, {layout}",
            "4:31: 'clouds.nimbus.image_name': {} is unknown; known are {name}, {version}, "
            "{build}, {layout}",
        ],
    ),
    # Phantom
    ("phantom: [a]\n", ["4:10: 'phantom' must be a mapping, not a list"]),
    (
        "phantom:\n  max_vms: 0\n  rank: 0\n",
        [
            "5:12: 'phantom.max_vms' must be -1 (no limit) or at least 1, not 0",
            "6:9: 'phantom.rank' must be at least 1, not 0",
        ],
    ),
    (
        "phantom: {max_vms: '3', rank: 1.5}\n",
        [
            "4:20: 'phantom.max_vms' must be a whole number; take the quotes away",
            "4:31: 'phantom.rank' must be a whole number, not the number 1.5",
        ],
    ),
    ("phantom: {max_vms: true}\n", ["4:20: 'phantom.max_vms' must be a whole number, not true"]),
    (
        "phantom: {instance_type: {nimbus: }}\n",
        ["4:27: 'phantom.instance_type.nimbus' has no value; it must be a string"],
    ),
    (
        "phantom: {user_data: long.sh}\n",
        [
            "4:22: 'phantom.user_data': 'long.sh' has 1,025 characters; Phantom's database holds "
            "1,024: put the rest into the image"
        ],
    ),
    (
        "phantom: {user_data: huge.sh}\n",
        [
            "4:22: 'phantom.user_data': 'huge.sh' has 100,000 characters; Phantom's database holds "
            "1,024: put the rest into the image"
        ],
    ),
    (
        "phantom: {user_data: umlaut.sh}\n",
        [
            "4:22: 'phantom.user_data': 'umlaut.sh' has byte 0xc3 on line 2; Phantom takes ASCII "
            "text "
            "only, others break its answers"
        ],
    ),
    (
        "phantom: {user_data: dos.sh}\n",
        ["4:22: 'phantom.user_data': 'dos.sh' has Windows line ends; save it with Unix ones"],
    ),
    (
        "phantom: {user_data: empty.sh}\n",
        ["4:22: 'phantom.user_data': 'empty.sh' is empty; leave 'user_data' out"],
    ),
    (
        "phantom: {user_data: /etc/passwd}\n",
        [
            "4:22: 'phantom.user_data' must be a path relative to "
            "this file's folder, not '/etc/passwd'"
        ],
    ),
    (
        "phantom: {user_data: tree}\n",
        ["4:22: 'phantom.user_data': 'tree' is a folder; name a file"],
    ),
    # Scripts and files
    (
        "boot_check: {script: chek.sh, seconds: 0}\n",
        [
            "4:22: 'boot_check.script': there is no 'chek.sh' in images/web; did you mean "
            "'check.sh'?",
            "4:40: 'boot_check.seconds' must be at least 1, not 0",
        ],
    ),
    (
        "scripts: [motd, dos.sh, check.sh, key.pem]\n",
        [
            "4:11: 'scripts[0]': 'motd' does not begin with '#!' and an interpreter",
            "4:17: 'scripts[1]': 'dos.sh' has Windows line ends; save it with Unix ones",
            "4:35: 'scripts[3]': 'key.pem' holds a private key; no secret goes into a definition "
            "or an "
            "image",
        ],
    ),
    ("files: {from: motd, to: /etc/motd}\n", ["4:8: 'files' must be a list, not a mapping"]),
    (
        "files:\n  - {from: motd}\n  - {from: motd, to: etc/motd, mode: 0644}\n  - motd\n",
        [
            "5:5: 'to' is missing in 'files[0]'",
            "6:22: 'files[1].to' must be an absolute path, not 'etc/motd'",
            "6:38: 'files[1].mode' must be a string, and YAML reads 0644 as the number 420; put "
            "it in "
            'quotes: "0644"',
            "7:5: 'files[2]' must be a mapping, not a string",
        ],
    ),
    (
        "files:\n  - {from: motd, to: /etc/../x}\n  - {from: motd, to: /}\n"
        "  - {from: motd, to: /a//}\n  - {from: motd, to: /m, mode: '999'}\n",
        [
            "5:22: 'files[0].to': '/etc/../x' must not hold '.' or '..'",
            "6:22: 'files[1].to': '/' is a folder, and 'motd' is a file; name the file",
            "7:22: 'files[2].to' must be an absolute path, not '/a//'",
            "8:32: 'files[3].mode' must be an octal mode such as '0644', not '999'",
        ],
    ),
    (
        "files:\n  - {from: void, to: /x}\n  - {from: key.pem, to: /k}\n  - {from: mott, to: /m}\n"
        "  - {from: odd, to: /o}\n",
        [
            "5:12: 'files[0].from': there is no file in 'void'",
            "6:12: 'files[1].from': 'key.pem' holds a private key; no secret goes into a "
            "definition or "
            "an image",
            "7:12: 'files[2].from': there is no 'mott' in images/web; did you mean 'motd'?",
            "8:12: 'files[3].from': 'odd' holds a file whose name is no text: 'a\\udcff'",
            "8:12: 'files[3].from': 'odd/pipe' is no file, folder or link",
            "8:12: 'files[3].from': 'odd/void' leads to no text",
        ],
    ),
    (
        "files:\n  - {from: tree, to: /t}\n  - {from: motd, to: /t/sub/b}\n",
        ["6:5: 'files[1]': '/t/sub/b' is written by the entry on line 5 too"],
    ),
    (
        "files:\n  - {from: tree, to: /t}\n  - {from: motd, to: /t/sub}\n"
        "  - {from: motd, to: /t/a/b}\n",
        [
            "6:5: 'files[1]': '/t/sub' is a folder in the entry on line 5",
            "7:5: 'files[2]': '/t/a/b' lies below /t/a, no folder in the entry on line 5",
        ],
    ),
    # Places outside the definition's folders
    (
        "files:\n  - {from: ../../secret, to: /s}\n  - {from: ../web/../../../none, to: /n}\n"
        "  - {from: to-secret, to: /s}\n  - {from: tree/../to-outside, to: /o}\n",
        [
            "5:12: 'files[0].from': '../../secret' leads to secret, outside images; copy it there",
            "6:12: 'files[1].from': '../web/../../../none' leads to ABOVE/none, outside images; "
            "copy it there",
            "7:12: 'files[2].from': 'to-secret' leads to secret, outside images; copy it there",
            "8:12: 'files[3].from': 'tree/../to-outside' leads to outside, outside images; copy it "
            "there",
        ],
    ),
    (
        "scripts: [../../secret, to-outside/x]\nboot_check: {script: to-secret}\n"
        "phantom: {user_data: ../../secret}\n",
        [
            "4:11: 'scripts[0]': '../../secret' leads to secret, outside images; copy it there",
            "4:25: 'scripts[1]': 'to-outside/x' leads to outside/x, outside images; copy it there",
            "5:22: 'boot_check.script': 'to-secret' leads to secret, outside images; copy it there",
            "6:22: 'phantom.user_data': '../../secret' leads to secret, outside images; copy it "
            "there",
        ],
    ),
    (
        "source: {base_image: {location: ../../disk.raw}}\ndisk_size: 2GiB\n",
        [
            "4:33: 'source.base_image.location': '../../disk.raw' leads to disk.raw, outside "
            "images; write its absolute path"
        ],
    ),
    (
        "files:\n"
        + "".join(
            f"  - {{from: motd, to: {place}}}\n"
            for place in ("/proc/1/x", "/sys/x", "/dev/", "/run", "/var/run/x", "/var/lock/x")
        )
        + "  - {from: device, to: /}\n",
        [
            "5:5: 'files[0]': '/proc/1/x' lies in /proc, which the image does not keep",
            "6:5: 'files[1]': '/sys/x' lies in /sys, which the image does not keep",
            "7:5: 'files[2]': '/dev/motd' lies in /dev, which the image does not keep",
            "8:5: 'files[3]': '/run' lies in /run, which the image does not keep",
            "9:5: 'files[4]': '/var/run/x' lies in /var/run, which the image does not keep",
            "10:5: 'files[5]': '/var/lock/x' lies in /var/lock, which the image does not keep",
            "11:5: 'files[6]': '/dev/x' lies in /dev, which the image does not keep",
        ],
    ),
    (
        f"files: [{{from: {'x' * 300}, to: /x}}]\n",
        [f"4:16: 'files[0].from': '{'x' * 55}...' cannot be read: File name too long"],
    ),
    # Extending
    ("extends: base\n", ["4:10: 'extends': there is no appliance 'base' in images"]),
    (
        "extends: othr\n",
        ["4:10: 'extends': there is no appliance 'othr' in images; did you mean 'other'?"],
    ),
    ("extends: ../web/x.yaml\n", ["4:10: 'extends': there is no '../web/x.yaml' in images/web"]),
    (
        "extends: ../web\n",
        ["4:10: 'extends': there is no '../web' in images/web; did you mean 'web'?"],
    ),
    ("extends: web\n", [f"4:10: 'extends' goes in a circle: {FILE} -> {FILE}"]),
    ("extends: [other]\n", ["4:10: 'extends' must be a string, not a list"]),
]


@pytest.fixture
def files(write: Write) -> None:
    """The files beside the definition."""
    write("images/other/appliance.yaml", HEAD.replace("web", "other"))
    web = "images/web/"
    write(web + "motd", "hello\n")
    write(web + "check.sh", "#!/bin/sh\n")
    write(web + "dos.sh", "#!/bin/sh\r\n")
    write(web + "long.sh", "#" * 1025)
    write(web + "huge.sh", "#" * 100_000)
    write(web + "umlaut.sh", "#!/bin/sh\necho gr\u00fc\u00df dich\n")
    write(web + "empty.sh", "\n")
    write(web + "key.pem", "-----BEGIN OPENSSH PRIVATE KEY-----\n")
    write(web + "tree/a", "a")
    write(web + "tree/sub/b", "b")
    write(web + "odd/a\udcff", "")
    Path(web, "void").mkdir()
    os.mkfifo(web + "odd/pipe")
    os.symlink(b"\xff", web + "odd/void")
    write("secret", "#!/bin/sh\n")
    write("outside/x", "#!/bin/sh\n")
    Path(web, "to-secret").symlink_to("../../secret")
    Path(web, "to-outside").symlink_to("../../outside")
    write(web + "device/dev/x", "")


def expect(said: list[str]) -> str:
    if len(said) == 1:
        return f"{FILE}:{said[0]}\n{TODO.format('it')}"
    lines = "\n".join(f"  | {FILE}:{one}" for one in said)
    return f"{len(said)} mistakes in {FILE}\n{lines}\n{TODO.format('them')}"


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without libyaml: messages must not depend on it."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)


@pytest.mark.usefixtures("files", "parser")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        *WHOLE_FILES,
        *((HEAD + text, said) for text, said in PARTS),
    ],
    ids=lambda value: value.removeprefix(HEAD)[:40] if isinstance(value, str) else "",
)
def test_whole_message(load: Load, text: str, said: list[str]) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(text)
    assert str(caught.value).replace(str(Path.cwd().parent), "ABOVE") == expect(said)


def test_one_mistake_stands_in_the_fields_of_the_error(load: Load) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + "nmae: x\n")
    error = caught.value
    assert (error.what, error.where, error.detail) == (
        "unknown key 'nmae'; did you mean 'name'?",
        f"{FILE}:4:1",
        None,
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: web\nsummary: caf\xe9\n", "2:13: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("name: web\n".encode("utf-16"), "1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"name: web\r\nx: \x00\r\n", "2:4: control character U+0000; take it out"),
        (b"name: web\rversion: 1\r", "1:10: control character U+000D; take it out"),
        (b"#" * (1 << 20) + b"\n", " is larger than 1,048,576 bytes, too large for a definition"),
    ],
)
def test_bytes_that_are_no_text(write: Write, content: bytes, said: str) -> None:
    write(FILE, content)
    with pytest.raises(DefinitionError) as caught:
        load_appliance("web", Path("images"), clouds=["nimbus"])
    assert str(caught.value) == f"{FILE}:{said}\n{TODO.format('it')}"


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(write: Write) -> None:
    write(FILE, b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    appliance = load_appliance("web", Path("images"), clouds=["nimbus"])
    assert appliance.summary == "A web server"


def test_a_file_of_too_many_values_is_refused(load: Load) -> None:
    with pytest.raises(DefinitionError) as caught:
        load("labels:\n" + "".join(f"  a{n}: b\n" for n in range(10_000)))
    assert caught.value.what == "more than 20,000 keys and values"
    assert caught.value.where == f"{FILE}:10000:10"


def test_mistakes_of_a_parent_are_told_with_its_own_file(write: Write, load: Load) -> None:
    write("images/base/appliance.yaml", 'name: base\nversion: "1"\nsummary: s\nkernel: x\n')
    write("images/base/part.yaml", "extends: base\npackages: [a, B]\n")
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + "zzzz: 1\nextends: ../base/part.yaml\n")
    assert str(caught.value) == (
        "4 mistakes in images/web/appliance.yaml, images/base/part.yaml and "
        "images/base/appliance.yaml\n"
        f"  | {FILE}:4:1: unknown key 'zzzz'; known here: {KEYS}\n"
        "  | images/base/part.yaml:2:12: 'packages[0]' must be the name of a Debian package, "
        "not 'a'\n"
        "  | images/base/part.yaml:2:15: 'packages[1]' must be the name of a Debian package, "
        "not 'B'\n"
        "  | images/base/appliance.yaml:4:9: 'kernel' must be one of generic, cloud, auto, not "
        "'x'\n"
        f"{TODO.format('them')}"
    )


def test_a_circle_is_told_where_it_closes(write: Write, load: Load) -> None:
    write("images/a/appliance.yaml", HEAD.replace("web", "a", 1) + "extends: b\n")
    write("images/b/appliance.yaml", HEAD.replace("web", "b", 1) + "extends: a\n")
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + "extends: a\n")
    assert str(caught.value) == (
        "images/b/appliance.yaml:4:10: 'extends' goes in a circle: images/a/appliance.yaml -> "
        f"images/b/appliance.yaml -> images/a/appliance.yaml\n{TODO.format('it')}"
    )


def test_a_parent_appliance_is_whole_and_a_part_need_not_be(write: Write, load: Load) -> None:
    write("images/base/appliance.yaml", "name: base\n")
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + "extends: base\n")
    assert str(caught.value) == (
        "2 mistakes in images/base/appliance.yaml\n"
        "  | images/base/appliance.yaml:1:1: 'version' is missing\n"
        "  | images/base/appliance.yaml:1:1: 'summary' is missing\n"
        f"{TODO.format('them')}"
    )
    write("images/base/part.yaml", "kernel: cloud\n")
    assert load(HEAD + "extends: ../base/part.yaml\n").kernel == "cloud"


def load_named(name: str | Path) -> Callable[[], object]:
    return lambda: load_appliance(name, Path("images"), clouds=["nimbus"])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "wbe",
            UsageError,
            "there is no appliance 'wbe' in images; did you mean 'web'?\n"
            "  do: choose one of: mail, web",
        ),
        (
            "",
            UsageError,
            "there is no appliance '' in images\n  do: choose one of: mail, web",
        ),
        (
            "void",
            DefinitionError,
            "images/void/appliance.yaml: there is no such file\n  do: choose one of: mail, web",
        ),
        (
            "./web.yaml",
            DefinitionError,
            "web.yaml: there is no such file\n  do: choose one of: mail, web",
        ),
        (
            Path("images/void"),
            DefinitionError,
            "images/void/appliance.yaml: there is no such file\n  do: choose one of: mail, web",
        ),
        (
            "images/folder",
            DefinitionError,
            "images/folder/appliance.yaml: is a folder; name the file in it\n" + TODO.format("it"),
        ),
    ],
)
def test_missing_definitions(
    write: Write, name: str | Path, kind: type[Exception], message: str
) -> None:
    write(FILE, HEAD)
    write("images/mail/appliance.yaml", HEAD.replace("web", "mail", 1))
    Path("images/void").mkdir()
    Path("elsewhere").mkdir()
    if name == "images/folder":
        Path("images/folder/appliance.yaml").mkdir(parents=True)
        Path("images/folder/appliance.yaml/x").touch()
    with pytest.raises(kind) as caught:
        load_named(name)()
    assert str(caught.value) == message


def test_no_appliances_at_all(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_appliance("web", root / "none", clouds=["nimbus"])
    assert str(caught.value) == (
        "there is no appliance 'web' in none\n  do: write none/web/appliance.yaml"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(write: Write) -> None:
    write(FILE, HEAD).chmod(0)
    with pytest.raises(DefinitionError) as caught:
        load_appliance("web", Path("images"), clouds=["nimbus"])
    assert str(caught.value) == f"{FILE}: cannot be read: Permission denied\n{TODO.format('it')}"


def test_paths_outside_the_current_directory_are_absolute(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(FILE, HEAD + "x: 1\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(DefinitionError) as caught:
        load_appliance(path, path.parent.parent, clouds=["nimbus"])
    assert caught.value.where == f"{path}:4:1"
