#!/bin/sh
#
# The `sudo` of isolated programs, which are root already: it runs commands as they are.
#
# diskimage-builder calls sudo wherever it needs root's rights, and mounts by it. Below a user
# namespace's root, which /phantom/mapped tells, /proc needs no protection, sysfs may not be
# mounted, and /dev has mounts in it.

set -eu
user=
while [ "$#" -gt 0 ]; do
    case $1 in
        -u | --user)
            user=$2
            shift
            ;;
        --user=*) user=${1#*=} ;;
        -u*) user=${1#-u} ;;
        --)
            shift
            break
            ;;
        -*) ;;
        *) break ;;
    esac
    shift
done
case "$1 ${2-} ${3-}" in
    "mount -t proc")
        "$@"
        [ ! -e /phantom/mapped ] || exit 0
        for place in "$@"; do :; done # the last word
        for name in sys sysrq-trigger; do # the settings of the host's kernel
            [ -e "$place/$name" ] || continue
            mount --bind "$place/$name" "$place/$name"
            mount -o remount,bind,ro "$place/$name"
        done
        exit
        ;;
    "mount -o remount,ro,bind")
        # Options that a mount must keep, mount(8) looks up only where it is told no source.
        if [ -e /phantom/mapped ] && [ "$#" -eq 5 ]; then
            exec mount -o remount,ro,bind "$5"
        fi
        ;;
    "mount -o ro")
        [ ! -e /phantom/mapped ] || [ "${5-}" != sysfs ] || exit 0
        ;;
    "umount -fl "* | "umount -f "*) # force is for this host's root alone
        if [ -e /phantom/mapped ]; then
            shift 2
            exec umount -l "$@"
        fi
        ;;
    "mount --bind /dev")
        shift 2
        exec mount --rbind "$@"
        ;;
esac
case $user in
    '' | root) exec env "$@" ;;
    *) exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups env "$@" ;;
esac
