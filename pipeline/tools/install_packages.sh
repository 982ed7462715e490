#!/bin/sh
#
# Installs all packages of a local repository in one transaction, and writes the tree to a tar.
#
#   install_packages.sh BUILD REPOSITORY TAR AHEAD
#
# BUILD is an empty folder. REPOSITORY has Packages, Release, the packages themselves, and for
# unpack_ahead.py `order`. AHEAD is how many bytes of unpacked packages may wait for dpkg.
#
# PHANTOM_ANSWERS                         a file of answers for debconf
# PHANTOM_ARCHITECTURE, PHANTOM_RELEASE   what to install
# PHANTOM_PACKAGES                        the names of all packages, separated by commas
# PHANTOM_DPKG_OPTIONS                    lines of dpkg's configuration: which files to leave out
# PHANTOM_SETTINGS                        a folder with files that decide the initramfs, or without
#                                         any: then there will be none
# PHANTOM_PYTHON                          a Python
# PHANTOM_OWNER                           who owns the tar: UID:GID
# SOURCE_DATE_EPOCH                       the time that no file is younger than

set -eu

build=$1 repository=$2 tar=$3 ahead=$4
here=$(cd "$(dirname "$0")" && pwd)
tree=$build/tree
programs=$build/programs
ready=run/phantom # below the tree: dpkg sees nothing else
mkdir -p "$programs" "$tree/$ready/bin"

# dpkg and mmdebstrap ask dpkg-deb for the files of a package. Where these are ready, or nearly so,
# they get them from there.
#
#   make_dpkg_deb PLACE FOLDER AFTER OTHERS
#
# AFTER is done with what was handed over, and OTHERS with the files of a package that were not ready.
make_dpkg_deb() {
    cat >"$1" <<END
#!/bin/sh
if [ "\$1" = --fsys-tarfile ]; then
    package=\${2##*/}
    case \$2 in
        */apt-dpkg-install-*) package=\${package#*-} ;; # apt counts them
    esac
    package=$2/\$package
    while [ -e "\$package.part" ] && [ ! -e "\$package" ]; do
        kill -0 "\$(cat $2/worker)" 2>/dev/null || break
        sleep 0.02
    done
    if [ -e "\$package" ]; then
        cat "\$package"
        exec $3
    fi
    : >"\$package.begun"
    $4
fi
exec /usr/bin/dpkg-deb "\$@"
END
    chmod 0755 "$1"
}

# mmdebstrap unpacks essential packages first of all, and dpkg does it once more.
# shellcheck disable=SC2016  # the programs expand these
make_dpkg_deb "$programs/dpkg-deb" "$tree/$ready" true \
    '/usr/bin/dpkg-deb "$@" >"$package.part" && mv "$package.part" "$package" && exec cat "$package"'
# shellcheck disable=SC2016
make_dpkg_deb "$tree/$ready/bin/dpkg-deb" "/$ready" 'rm "$package"' :
"$PHANTOM_PYTHON" -I "$here/unpack_ahead.py" "$repository/order" "$repository" "$tree/$ready" \
    "$ahead" &
worker=$!
echo "$worker" >"$tree/$ready/worker"

# mmdebstrap takes what is left out from its own file of options only, and then starts a Python for
# each essential package. So the options are in another one, and what is left out goes later.
mkdir -p "$tree/etc/dpkg/dpkg.cfg.d"
options=$tree/etc/dpkg/dpkg.cfg.d/99phantom
printf '%s\n' force-unsafe-io "$PHANTOM_DPKG_OPTIONS" >"$options"

cat >"$programs/after-unpacking" <<END
#!/bin/sh
set -eu
"$PHANTOM_PYTHON" -I "$here/leave_out.py" "\$1" <"$options"
END
chmod 0755 "$programs/after-unpacking"

# By then debconf is configured, and no package that asks anything.
cat >"$programs/before-the-others" <<END
#!/bin/sh
set -eu
[ -s "$PHANTOM_ANSWERS" ] || exit 0
chroot "\$1" debconf-set-selections <"$PHANTOM_ANSWERS"
END
chmod 0755 "$programs/before-the-others"

# The server's keys would be made, which takes seconds, and thrown away: each machine makes its own.
case ",$PHANTOM_PACKAGES," in
    *,openssh-server,*)
        mkdir -p "$tree/etc/ssh"
        for type in rsa ecdsa ed25519; do
            : >"$tree/etc/ssh/ssh_host_${type}_key"
        done
        ;;
esac

# From Debian 12 on packages see to it that /bin, /sbin and /lib lead into /usr.
case $PHANTOM_RELEASE in
    bullseye)
        for folder in bin sbin lib lib32 lib64 libx32; do
            mkdir -p "$tree/usr/$folder"
            ln -s "usr/$folder" "$tree/$folder"
        done
        ;;
esac

# The kernel's package would make an initramfs, and initramfs-tools' trigger the same one again:
# INITRD=No leaves it to us.
INITRD=No PATH="$programs:/$ready/bin:$PATH" mmdebstrap \
    --mode=root \
    --variant=minbase \
    --format=directory \
    --architectures="$PHANTOM_ARCHITECTURE" \
    --include="$PHANTOM_PACKAGES" \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Languages "none"' \
    --aptopt="DPkg::Path \"/$ready/bin:/usr/sbin:/usr/bin:/sbin:/bin\"" \
    --skip=check/empty,chroot/mount/sys,cleanup/apt \
    --extract-hook="$programs/after-unpacking" \
    --essential-hook="$programs/before-the-others" \
    "$PHANTOM_RELEASE" "$tree" "deb [trusted=yes] copy:$repository ./"

kill "$worker" 2>/dev/null || : # it has nothing left to do
cd "$tree"
rm -rf "$ready"
# What was of use to mmdebstrap: the local repository, its own options, the host's names.
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99phantom etc/apt/sources.list
rm -f etc/hostname etc/resolv.conf
# Which packages were asked for is for the appliance to say.
rm -f var/lib/apt/extended_states
rm -rf var/lib/apt/lists/* var/cache/apt/*
# Each machine makes its own.
rm -f etc/ssh/ssh_host_*

# The initramfs is made again when the image is finished, if anything that it is made of was changed.
# That is known for these hooks alone (elements/phantom-debian/bin/initramfs-inputs); others may copy
# whatever there is, keys among it.
make_initramfs() {
    (cd "$PHANTOM_SETTINGS" &&
        find . -type f -exec install -D -m 0644 -o root -g root {} "$tree/{}" \;)
    mount -t proc proc proc
    mount --rbind /dev dev
    COMPRESSLEVEL=1 chroot . update-initramfs -c -k all
    umount --lazy dev proc # with all that is mounted below
}
initramfs_is_known() {
    [ -n "$(find "$PHANTOM_SETTINGS" -type f)" ] || return 1
    for hook in usr/share/initramfs-tools/hooks/* etc/initramfs-tools/hooks/*; do
        case ${hook##*/} in
            busybox | dmsetup | fsck | fuse | keymap | klibc-utils | kmod | resume | thermal) ;;
            udev | zz-busybox | '*') ;;
            *) return 1 ;;
        esac
    done
}

# The tar is written beside it. All that the initramfs adds or may touch comes last.
pack() {
    tar --file "$tar" --format=posix --pax-option=delete=atime,delete=ctime \
        --sort=name --numeric-owner --xattrs --xattrs-include='*' --sparse --one-file-system \
        --clamp-mtime --mtime="@$SOURCE_DATE_EPOCH" "$@"
}
made=
if initramfs_is_known; then
    make_initramfs &
    made=$!
fi
pack --create --exclude=./boot --exclude=./dev --exclude=./etc --exclude=./proc --exclude=./var .
if [ -n "$made" ]; then
    sync --data "$tar" # the store waits for the disk
    wait "$made"
fi
pack --append --exclude='./dev/*' ./boot ./dev ./etc ./proc ./var
chown "$PHANTOM_OWNER" "$tar"
