#!/bin/sh
#
# Runs a command as the first process's child in new mount and process namespaces.
#
#   unshare --mount --pid --fork ... isolate.sh WORK TMPFS_MIB COMMAND...
#
# Whatever the command mounts or starts ends with this process, and this process ends when its
# standard input does: when whoever asked for it is gone, however it went.

set -eu

work=$1 tmpfs=$2
shift 2

exec 3<&0 </dev/null
if [ "$tmpfs" -gt 0 ]; then
    mount -t tmpfs -o "size=${tmpfs}m,mode=0755" phantom "$work"
fi

trap 'exit 143' TERM
"$@" 3<&- &
command=$!
{
    cat <&3 >/dev/null
    kill -s TERM 1
} &
exec 3<&-
wait "$command"
