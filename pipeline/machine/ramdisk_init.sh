#!/bin/sh
#
# The first program of the ramdisk that stands for a Xen site's own, run by BusyBox: loads the
# drivers of the boot check's machine, which Xen's guests have built in, and starts the image's own
# first program. The file system is the whole disk, as it is on Xen, where it is called sda1.

export PATH=/bin
disk=sda
name=sda1

fail() {
    echo "ramdisk: error: $*"
    sleep 5
    poweroff -f
}

/bin/busybox --install /bin
mkdir -p /dev /proc /sys /run /root
mount -t devtmpfs devtmpfs /dev
exec 0<>/dev/console 1>&0 2>&0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run

while read -r module; do
    insmod "/modules/$module" || echo "ramdisk: $module cannot be loaded"
done </modules/order

tries=0
until [ -b "/dev/$disk" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 300 ] || fail "the machine has no disk"
    sleep 0.1
done
# What the image's own udev makes of it lasts.
ln -s "$disk" "/dev/$name"
mkdir -p /run/udev/rules.d
echo "KERNEL==\"$disk\", SYMLINK+=\"$name\"" >/run/udev/rules.d/10-site.rules

root=
init=/sbin/init
mode=ro
read -r words </proc/cmdline
for word in $words; do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
    esac
done
mount -t ext4 -o "$mode" "$root" /root || fail "$root does not hold an ext3 or ext4 file system"
[ -x "/root$init" ] || [ -L "/root$init" ] || fail "the image has no $init"

for folder in dev proc sys run; do
    mkdir -p "/root/$folder" 2>/dev/null
    if [ "$folder" = run ] && [ ! -d /root/run ]; then # an image from before there was one
        umount /run
        continue
    fi
    mount --move "/$folder" "/root/$folder" || fail "the image has no folder /$folder"
done
exec switch_root /root "$init"
