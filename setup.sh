#!/bin/sh
#
# Gives this checkout what it runs on: Debian packages, and .venv with pinned Python packages.
#
#   setup.sh          to build and publish images
#   setup.sh --dev    to run the tests as well
#
# It may be ended at any point and run again: what .venv/setup holds is written last, and says what
# was installed. With nothing to do it takes some milliseconds.

set -eu
cd "$(dirname "$0")"

unset PYTHONHOME PYTHONPATH
here=$(pwd -P)
python=/usr/bin/python3 # Debian's own, whatever comes first on the PATH: it has the guestfs module
venv=.venv
state=$venv/setup

say() {
    echo "setup: $*" >&2
}

fail() {
    say "$1"
    [ $# -lt 2 ] || say "do: $2"
    exit 1
}

# --- Debian packages ----------------------------------------------------------------------------

# Each line of the list: what it needs, without comments; `a | b` where either will do. What tests
# need comes last, and is left out where `without` says so.
listed() {
    sed -e "$without" -e 's/#.*//' -e 's/[[:space:]]*|[[:space:]]*/|/g' -e 's/[[:space:]]*$//' -e '/^$/d' \
        debian-packages.txt
}

# The packages of the list that are not installed; of alternatives the first.
missing() {
    # shellcheck disable=SC2016 # dpkg-query fills these in
    listed | tr '|' '\n' | LC_ALL=C xargs dpkg-query --show \
        --showformat='${Package} ${db:Status-Status}\n' 2>/dev/null |
        sed -n 's/ installed$//p' >"$temporary/installed" || true # it fails for a name that it does not know
    listed | while IFS='|' read -r first others; do
        found=
        for name in "$first" $(echo "$others" | tr '|' ' '); do
            ! grep -qxF "$name" "$temporary/installed" || found=yes
        done
        [ -n "$found" ] || echo "$first"
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# dpkg's own status is older than our last look, and the list is the same.
debian_is_ready() {
    [ -e "$state/debian-packages.txt" ] &&
        { listed | cmp -s - "$state/debian-packages.txt" ||
            without='' listed | cmp -s - "$state/debian-packages.txt"; } &&
        [ -z "$(find /var/lib/dpkg/status -newer "$state/debian-packages.txt")" ]
}

install_debian() {
    touch -r /var/lib/dpkg/status "$temporary/looked"
    names=$(missing | tr '\n' ' ')
    [ -n "$names" ] || return 0
    say "installing Debian packages: $names"
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        fail "this needs root's rights, and sudo is not installed" \
            "as root: apt-get install --no-install-recommends $names"
    fi
    as_root true || fail "sudo does not let this user become root" \
        "as root: apt-get install --no-install-recommends $names"
    as_root apt-get update -q 9<&- || fail "apt-get update failed" \
        "see that the mirrors in /etc/apt answer, then run the same command again"
    # An installation that was cut short has to be finished before apt does anything else.
    as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a --force-confold </dev/null 9<&-
    # shellcheck disable=SC2086 # names, separated by blanks
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=600 -o DPkg::Options::=--force-confold -o Acquire::Retries=3 \
        $names </dev/null 9<&- ||
        fail "the Debian packages could not be installed" \
            "see apt's complaint above, mend it, then run the same command again"
    touch -r /var/lib/dpkg/status "$temporary/looked"
}

# --- Python packages ----------------------------------------------------------------------------

# Where the checkout lies and which Python made .venv: its scripts hold the one, its folders the
# other, so that it works for no other.
origin() {
    echo "$here $(readlink -f "$python")"
}

# $1: requirements.txt or requirements-dev.txt
python_is_ready() {
    [ -x "$venv/bin/python3" ] && [ -e "$state/$1" ] && cmp -s "$1" "$state/$1" &&
        [ "$(cat "$state/origin")" = "$(origin)" ]
}

make_venv() {
    say "making $venv"
    rm -rf "$state"
    "$python" -m venv --clear "$venv" ||
        fail "$venv could not be made" "see the complaint above; where root made it: sudo rm -rf '$here/$venv'"
    packages=$("$venv/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Of Debian's Python packages .venv gets guestfs alone: it is on no index, and nothing else that
    # is installed on the host can then take the place of a pinned version.
    "$python" -I -c 'import guestfs, libguestfsmod
print(guestfs.__file__, libguestfsmod.__file__, sep="\n")' | while IFS= read -r file; do
        ln -sf "$file" "$packages/"
    done
    # The program itself runs from the checkout: nothing to build, nothing to copy.
    echo "$here" >"$packages/phantom-image.pth"
    write_launcher
    mkdir "$state"
    origin >"$state/origin"
}

# What pip writes for a console script. The shell starts Python, since the kernel would stop reading
# the name in a first line at a blank.
write_launcher() {
    cat >"$venv/bin/phantom-image" <<EOF
#!/bin/sh
'''exec' "$here/$venv/bin/python3" "\$0" "\$@"
' '''
import sys

from pipeline.cli import main

sys.exit(main())
EOF
    chmod +x "$venv/bin/phantom-image"
}

install_python() {
    # The test tools can be added to what is there; all else starts afresh, an interrupted run too.
    python_is_ready requirements.txt || make_venv
    say "installing Python packages"
    rm -f "$state/requirements.txt" "$state/requirements-dev.txt"
    "$venv/bin/python3" -m pip install -qq --disable-pip-version-check --no-input \
        --require-hashes --no-deps --only-binary :all: -r "$1" ||
        fail "the Python packages could not be installed" \
            "see pip's complaint above; where the index cannot be reached, run it again later"
    cp requirements.txt "$state/"
    [ "$1" = requirements.txt ] || cp "$1" "$state/"
}

# ------------------------------------------------------------------------------------------------

# shellcheck disable=SC2016 # of sed, not of the shell
case ${1-} in
    '') requirements="requirements.txt" without='/^# Tests$/,$d' ;;
    --dev) requirements="requirements-dev.txt" without='' ;;
    *) fail "unknown option $1" "setup.sh [--dev]" ;;
esac

# diskimage-builder and `make` do not quote every path.
case $here in
    *[[:space:]]*)
        fail "the folder of this checkout has a blank in its name: $here" \
            "move it to a folder without blanks, then run the same command again"
        ;;
esac

if debian_is_ready && python_is_ready "$requirements"; then
    exit 0
fi

command -v dpkg-query >/dev/null ||
    fail "this is no Debian: there is no dpkg-query" "run this on Debian 12 or newer"

# One at a time: another make in this checkout may be doing the same.
exec 9<setup.sh
flock 9

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

install_debian
python_is_ready "$requirements" || install_python "$requirements"
listed >"$state/debian-packages.txt"
touch -r "$temporary/looked" "$state/debian-packages.txt"
