#!/bin/sh
#
# Runs a command with a root directory of its own, as the child of the first process in new
# namespaces.
#
#   unshare --mount --pid --uts --ipc --fork ... isolate.sh FOLDER COMMAND...
#
# FOLDER, which the command does not see, holds
#   environment  `export` lines: all that the command gets of an environment
#   shown        what the command sees of this host beside its system, one a line: `read-only PATH`,
#                `writable PATH`, or `memory MIB PATH`, an empty folder in memory
#   root         an empty folder, to mount the root directory on
#
# The command finds the host's programs and libraries, read-only; of /etc what programs need and
# nothing that is secret or tells which host this is; devices that are not hardware; and a `sudo`
# that runs commands as they are.
#
# Whatever the command mounts or starts ends with this process, and this process ends when its
# standard input does: when whoever asked for it is gone, however it went.

set -eu

folder=$1
shift
root=$folder/root
umask 022 # the caller's must not decide what lies in the image
hostname localhost

# show read-only|writable PATH: the same path shows the same files.
show() {
    if [ -d "$2" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$root${2%/*}"
        [ -e "$root$2" ] || : >"$root$2"
    fi
    mount --rbind "$2" "$root$2"
    [ "$1" = read-only ] || return 0
    awk -v top="$root$2" '$5 == top || index($5, top "/") == 1 { print $5 }' /proc/self/mountinfo |
        while IFS= read -r mounted; do
            mount -o remount,bind,ro "$(printf '%b' "$mounted")"
        done
}

make_etc() {
    mkdir -p "$root/etc/ssl" "$root/etc/apt/apt.conf.d" "$root/etc/apt/preferences.d" \
        "$root/etc/apt/sources.list.d" "$root/etc/apt/trusted.gpg.d" "$root/etc/dpkg/dpkg.cfg.d"
    for name in alternatives ca-certificates ca-certificates.conf debian_version ld.so.cache \
        ld.so.conf ld.so.conf.d login.defs mke2fs.conf mtab os-release perl protocols services \
        ssl/certs ssl/openssl.cnf; do
        if [ -e "/etc/$name" ]; then
            cp -a "/etc/$name" "$root/etc/$name"
        fi
    done
    for name in passwd group; do # not those of people
        awk -F : '$3 < 1000 || $3 == 65534' "/etc/$name" >"$root/etc/$name"
    done
    # Its own name, and no domain of the host's in which names would be looked up.
    sed -n '/^nameserver/p; /^options/p' /etc/resolv.conf >"$root/etc/resolv.conf" || :
    echo localhost >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
}

make_dev() {
    mkdir "$root/dev"
    mount -t tmpfs -o mode=0755,nosuid,noexec phantom "$root/dev"
    for name in null zero full random urandom tty; do
        cp -a "/dev/$name" "$root/dev/$name"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s fd/0 "$root/dev/stdin"
    ln -s fd/1 "$root/dev/stdout"
    ln -s fd/2 "$root/dev/stderr"
    ln -s pts/ptmx "$root/dev/ptmx"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,mode=0620,ptmxmode=0666 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 phantom "$root/dev/shm"
}

# diskimage-builder calls sudo wherever it needs root's rights, which it has, and mounts /proc by it.
make_sudo() {
    mkdir "$root/phantom"
    cat >"$root/phantom/sudo" <<'END'
#!/bin/sh
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
if [ "$1 ${2-} ${3-}" = "mount -t proc" ]; then
    "$@"
    for place in "$@"; do :; done # the last word
    for name in sys sysrq-trigger; do # the settings of the host's kernel
        [ -e "$place/$name" ] || continue
        mount --bind "$place/$name" "$place/$name"
        mount -o remount,bind,ro "$place/$name"
    done
    exit
fi
case $user in
    '' | root) exec env "$@" ;;
    *) exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups env "$@" ;;
esac
END
    chmod 0755 "$root/phantom/sudo"
}

mount -t tmpfs -o size=64m,mode=0755 phantom "$root"
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then
        cp -a "/$name" "$root/$name"
    elif [ -d "/$name" ]; then
        show read-only "/$name"
    fi
done
show read-only /usr
make_etc
make_dev
make_sudo
mkdir -p "$root/proc" "$root/sys" "$root/run/lock" "$root/mnt" "$root/var/lib" "$root/var/cache" \
    "$root/var/log" "$root/old"
mkdir -m 0700 "$root/root"
mkdir -m 1777 "$root/tmp" "$root/var/tmp"
mount -t tmpfs -o mode=1777 phantom "$root/tmp"
mount --bind "$root/tmp" "$root/var/tmp"
"$root/phantom/sudo" mount -t proc proc "$root/proc"
while read -r kind path; do
    case $kind in
        memory)
            mkdir -p "$root${path#* }"
            mount -t tmpfs -o "size=${path%% *}m,mode=0755" phantom "$root${path#* }"
            ;;
        *) show "$kind" "$path" ;;
    esac
done <"$folder/shown"
cp "$folder/environment" "$root/run/environment"
chmod 0600 "$root/run/environment"

cd "$root"
pivot_root . old
cd /
umount -l /old
rmdir /old

# The first process starts again, so that it holds no file of the host and no environment.
# shellcheck disable=SC2016  # the inner shells expand these
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c '
    exec 3<&0 </dev/null
    trap "exit 143" TERM
    env -i sh -c ". /run/environment; rm /run/environment; exec \"\$@\"" sh "$@" 3<&- &
    command=$!
    {
        cat <&3 >/dev/null
        kill -s TERM 1
    } &
    exec 3<&-
    wait "$command"
' sh "$@"
