#!/bin/sh
#
# The first process of isolated programs: it holds no file of the host and no environment. It runs a
# command with the environment of /run/environment, and ends with it, or when its standard input does.

set -eu
exec 3<&0 </dev/null
trap "exit 143" TERM
# shellcheck disable=SC2016  # the inner shell expands these
env -i sh -c '. /run/environment; rm /run/environment; exec "$@"' sh "$@" 3<&- &
command=$!
{
    cat <&3 >/dev/null
    kill -s TERM 1
} &
exec 3<&-
wait "$command"
