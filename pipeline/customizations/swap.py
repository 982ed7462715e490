"""`swap`: a swap file, made at the first boot."""

from __future__ import annotations

from pipeline.customizations.customization import Customization, Report
from pipeline.model import MIB, format_size, parse_size

_SMALLEST, _LARGEST = 16 * MIB, parse_size("512GiB")


def _check(value: dict[str, str], report: Report) -> None:
    size = parse_size(value["size"])
    if not _SMALLEST <= size <= _LARGEST:
        report(("size",), f"{value['size']} is no size of a swap file: from 16MiB to 512GiB")


def _script(value: dict[str, str]) -> str:
    mib = parse_size(value["size"]) // MIB
    return f"mib={mib}\nsize='{format_size(mib * MIB)}'\n{_SCRIPT}"


# The file is not in the image, which would grow by it. It takes no more than half of the room that
# the disk has when the root file system has grown.
_SCRIPT = r"""
mkdir -p /usr/lib/phantom
cat >/usr/lib/phantom/make-swap <<END
#!/bin/sh
# Makes the machine's swap file, if it is not there yet, and uses it.
set -eu
file=/swapfile
mib=$mib
END
cat >>/usr/lib/phantom/make-swap <<'END'
if [ ! -e "$file" ]; then
    free=$(df -Pk / | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$((2 * mib))" -gt "$free" ]; then
        echo "phantom-swap: no swap file of $mib MiB: the disk has only $free MiB free" >&2
        exit 0
    fi
    rm -f "$file.new"
    (umask 077 && : >"$file.new")
    fallocate -l "${mib}M" "$file.new" 2>/dev/null ||
        dd if=/dev/zero of="$file.new" bs=1M count="$mib" 2>/dev/null
    mkswap "$file.new" >/dev/null
    mv "$file.new" "$file"
fi
grep -q "^$file " /proc/swaps || swapon "$file"
END
chmod 0755 /usr/lib/phantom/make-swap
for program in mkswap swapon; do
    command -v "$program" >/dev/null 2>&1 || fail "the image lacks $program; add the package mount"
done
if command -v systemctl >/dev/null 2>&1; then
    cat >/etc/systemd/system/phantom-swap.service <<END
[Unit]
Description=Swap file of $size
After=local-fs.target phantom-grow-root.service
ConditionVirtualization=!container

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/phantom/make-swap
ExecStop=/bin/sh -c 'swapoff /swapfile || :'

[Install]
WantedBy=multi-user.target
END
    systemctl enable phantom-swap.service 2>&1
else
    fail 'swap needs systemd in the image'
fi
"""

CUSTOMIZATION = Customization(
    key="swap",
    schema={
        "description": "A swap file. It is made at the first boot, where the disk has twice as "
        "much room.",
        "type": "object",
        "required": ["size"],
        "additionalProperties": False,
        "properties": {
            "size": {
                "description": "Its size, from 16MiB to 512GiB.",
                "type": "string",
                "pattern": "^[0-9]{1,9} ?(MiB|GiB|MB|GB)$",
                "errorMessage": "must be a number and MiB, GiB, MB or GB, such as 1GiB",
                "examples": ["1GiB"],
            }
        },
        "examples": [{"size": "1GiB"}],
    },
    check=_check,
    script=_script,
)
