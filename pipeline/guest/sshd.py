"""The settings of the image's sshd: people log in by key only.

sshd takes the first value of each setting that it reads. The definition's files and scripts come
after this, so a definition that wants other settings puts its own file in the place of ours.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline.disk.untrusted import lines_of
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.payload import Payload

DROP_IN = PurePosixPath("/etc/ssh/sshd_config.d/00-phantom.conf")

_CONFIGURATIONS = (PurePosixPath("/etc/ssh/sshd_config"), PurePosixPath("/usr/etc/ssh/sshd_config"))
_MARK = "# Written by phantom-image:"
# In words that versions of every age know.
_SETTINGS = f"""\
{_MARK} by key only. Of each setting sshd takes the first that it reads.
PasswordAuthentication no
ChallengeResponseAuthentication no
PermitRootLogin without-password

"""
_KEYWORD = re.compile(r"[ \t]*([A-Za-z]+)[ \t=]+\"?([^ \t\"]*)")
_OURS = {
    *("passwordauthentication", "permitrootlogin", "match"),
    *("kbdinteractiveauthentication", "challengeresponseauthentication"),
}
_INCLUDED = ("/etc/ssh/sshd_config.d/*.conf", "sshd_config.d/*.conf", "/etc/ssh/sshd_config.d/*")


def let_in_by_key_only(image: Image, payload: Payload) -> None:
    """Forbids passwords, by a file in sshd_config.d if sshd reads it before any other setting of
    the same kind, else at the top of sshd_config. Does nothing in an image without sshd."""
    files = image.files
    if "sshd" not in image.programs:
        return
    path = next((path for path in _CONFIGURATIONS if files.read_to_edit(path)), None)
    if path is None:
        return
    text = files.read_to_edit(path)
    if _reads_drop_ins_first(files, text):
        files.copy([copy for copy in payload.files if copy.target == DROP_IN])
    elif _MARK not in text:
        files.write(_CONFIGURATIONS[0], _SETTINGS + text, files.mode(path) or 0o644)


def _reads_drop_ins_first(files: ImageFiles, text: str) -> bool:
    if any(DROP_IN.name > name for name in files.names(DROP_IN.parent) if name.endswith(".conf")):
        return False
    for line in lines_of(text):
        found = _KEYWORD.match(line)
        if found and found[1].lower() == "include" and found[2] in _INCLUDED:
            return True
        if found and found[1].lower() in _OURS:
            return False
    return False
