#!/bin/sh
#
# libguestfs starts this in QEMU's place, from a copy in the folder of one appliance. It notes there,
# before it becomes QEMU, which process that is and where the appliance's sockets are: guard.sh has
# to know them, and libguestfs tells neither while it launches. What an appliance prints goes to a
# named pipe there; libguestfs sees by QEMU's standard input when it ends.

set -eu

folder=${0%/*}
console=
for word in "$@"; do
    case $word in
        socket,path=*)
            path=${word#socket,path=}
            path=${path%%,*}
            printf '%s\n' "${path%/*}" >"$folder/sockets"
            printf '%s\n' "$$" >"$folder/pid"
            console=$folder/console
            ;;
    esac
done
if [ -n "$console" ]; then
    exec >"$console" 2>&1
fi
# QEMU works on untrusted disks, and has no use for the credentials that libguestfs's process has.
exec env -i PATH="$PATH" TMPDIR="${TMPDIR:-/tmp}" LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" \
    "$(cat "$folder/qemu")" "$@"
