#!/bin/sh
#
# Runs a command as the first process's child in new mount and process namespaces.
#
#   unshare --mount --pid --fork ... isolate.sh WORK TMPFS_MIB ENVIRONMENT COMMAND...
#
# WORK is an empty folder, TMPFS_MIB how large a file system in memory may be mounted on it (0: none),
# and ENVIRONMENT a file of `export` lines, which is all that the command sees of an environment.
#
# Whatever the command mounts or starts ends with this process, and this process ends when its
# standard input does: when whoever asked for it is gone, however it went.

set -eu

work=$1 tmpfs=$2 environment=$3
shift 3

umask 022 # the caller's must not decide what lies in the image
exec 3<&0 </dev/null
if [ "$tmpfs" -gt 0 ]; then
    mount -t tmpfs -o "size=${tmpfs}m,mode=0755" phantom "$work"
fi

trap 'exit 143' TERM
# shellcheck disable=SC2016  # the inner shell expands these
env -i sh -c '. "$1"; shift; exec "$@"' sh "$environment" "$@" 3<&- &
command=$!
{
    cat <&3 >/dev/null
    kill -s TERM 1
} &
exec 3<&-
wait "$command"
