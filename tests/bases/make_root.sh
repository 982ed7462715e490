#!/bin/sh
#
# Makes the file systems of one test system, as root in a mount namespace of its own.
#
#   unshare --mount make_root.sh base TREE REPOSITORY PACKAGES
#   unshare --mount make_root.sh variant TREE REPOSITORY WORK FILES
#
# `base` installs Debian into TREE. `variant` leaves TREE as it is: over it, it copies FILES, runs
# $CHANGE in the system, and then $WRITE on what came out, as $tree.

set -eu

kind=$1 lower=$2 repository=$3
shift 3

# Drivers that no machine of the tests has take most of a kernel's room.
modules='/lib/modules/*/kernel'
drivers="drivers/gpu drivers/media drivers/infiniband drivers/iio drivers/staging drivers/usb
    drivers/net/wireless drivers/net/ethernet/mellanox drivers/net/ethernet/chelsio
    drivers/net/ethernet/intel/ice drivers/net/ethernet/intel/i40e drivers/hwmon drivers/isdn
    drivers/comedi drivers/scsi/qla2xxx drivers/scsi/lpfc drivers/mtd drivers/edac sound"

if [ "$kind" = base ]; then
    set -- "$lower" "$1"
    for each in $drivers; do
        set -- "$@" --dpkgopt="path-exclude=$modules/$each/*"
    done
    tree=$1 packages=$2
    shift 2
    # The initramfs is made once, at the end, and quickly.
    # GRUB's modules lie where grub-install puts them.
    # shellcheck disable=SC2016  # mmdebstrap's shell expands these
    GRUB='mkdir -p /boot/grub/fonts; cd /usr/lib/grub; cp -r i386-pc x86_64-efi /boot/grub
        cp /usr/share/grub/unicode.pf2 /boot/grub/fonts; grub-editenv /boot/grub/grubenv create' \
    INITRD=No exec mmdebstrap \
        --mode=root --variant=minbase --format=directory --architectures=amd64 \
        --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*/LC_MESSAGES/*.mo' \
        "$@" \
        --customize-hook='printf "COMPRESS=zstd\nCOMPRESSLEVEL=1\n" >"$1/etc/initramfs-tools/conf.d/quick"' \
        --customize-hook='chroot "$1" update-initramfs -c -k all' \
        --customize-hook='rm "$1/etc/initramfs-tools/conf.d/quick"' \
        --customize-hook='chroot "$1" sh -euc "$GRUB"' \
        bookworm "$tree" "deb [trusted=yes] copy:$repository ./"
fi

work=$1 files=$2
tree=$work/tree
mkdir -p "$work/upper" "$work/overlay" "$tree"
mount -t overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/overlay" overlay "$tree"
mount -t proc proc "$tree/proc"
mkdir "$tree/repository"
mount --bind "$repository" "$tree/repository"
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # no service starts here
chmod 0755 "$tree/usr/sbin/policy-rc.d"

chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
    INITRD=No LC_ALL=C sh -eux -c "$CHANGE" >&2

umount "$tree/proc" "$tree/repository"
rmdir "$tree/repository"
rm "$tree/usr/sbin/policy-rc.d"
rm -f "$tree/etc/apt/apt.conf.d/99mmdebstrap" "$tree/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
rm -f "$tree/etc/resolv.conf"
cp -R --no-preserve=ownership "$files/." "$tree" # Debian's packages may ask for no link to be kept
eval "$WRITE"
