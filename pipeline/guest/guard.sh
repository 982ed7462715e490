#!/bin/sh
#
# Waits until its standard input ends, which is when whoever started it wants it so or is gone, even
# by `kill -9`; then ends the appliance that belongs to a folder, and removes what lies around.
#
#   guard.sh FOLDER

set -eu

folder=$1
trap '' INT TERM HUP # it ends in good time by itself
cat >/dev/null

sockets=
if [ -s "$folder/sockets" ]; then
    read -r sockets <"$folder/sockets"
fi
if [ -s "$folder/pid" ]; then
    read -r pid <"$folder/pid"
    # The number may be another process's by now.
    if tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$sockets/"; then
        kill -s KILL "$pid" 2>/dev/null || :
    fi
fi
case $sockets in
    */libguestfs*) rm -rf -- "$sockets" ;;
    '')
        # It was about to start QEMU, or had not come so far. A socket that is there and that no
        # process has open is of one that is gone.
        sleep 0.2 # the kernel may still be at closing ours
        for socket in "${XDG_RUNTIME_DIR:-/tmp}"/libguestfs*/guestfsd.sock /tmp/libguestfs*/guestfsd.sock; do
            if [ -O "$socket" ] && ! grep -qF " $socket" /proc/net/unix; then
                rm -rf -- "${socket%/*}"
            fi
        done
        ;;
esac
rm -rf -- "$folder"
