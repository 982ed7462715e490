#!/bin/sh
#
# Run in the guest as its user-data: runs the appliance's default user-data and its check script, and
# reports to the metadata service what became of the machine. These are set before it:
#
# nonce      what the host wants to hear again
# user_data  the default user-data in base64, or nothing
# check      the check script in base64, or nothing
# cases      names of answers that the metadata service can give besides

: "${nonce:=}" "${user_data:=}" "${check:=}" "${cases:=}"

fetcher=/usr/lib/phantom/fetch-user-data

work=$(mktemp -d) || exit 1
booted=$(cut -d ' ' -f 1 /proc/uptime)

tell() {
    printf '%s %s\n' "$1" "$2" >>"$work/report"
}

# Runs a script given in base64; tells its exit status and the end of what it printed.
run_part() {
    [ -n "$2" ] || return 0
    printf '%s' "$2" | base64 -d >"$work/$1"
    chmod 0700 "$work/$1"
    if [ "$(head -c 2 "$work/$1")" = '#!' ]; then
        "$work/$1" >"$work/$1.out" 2>&1 </dev/null
    else
        /bin/sh "$work/$1" >"$work/$1.out" 2>&1 </dev/null
    fi
    tell "$1_status" "$?"
    tell "$1_output" "$(tail -c 4000 "$work/$1.out" | base64 | tr -d '\n')"
}

# post FILE PATH: sends a file to the metadata service.
post() {
    if command -v curl >/dev/null; then
        curl --silent --show-error --noproxy '*' --max-time 30 --retry 3 \
            --data-binary "@$1" "$PHANTOM_METADATA_URL$2"
    else
        wget -q -O - --post-file="$1" "$PHANTOM_METADATA_URL$2"
    fi
}

# Has the metadata service give one of its other answers, and the fetcher fetch that into a folder
# of its own. What it says does not go to the console, where its errors would be taken for the boot's.
try_case() {
    folder=$work/$1
    mkdir -p "$folder/etc/default" "$folder/var"
    printf '%s\n' PHANTOM_USER_DATA_MAX_TRIES=5 PHANTOM_USER_DATA_INTERVAL=0.2 \
        >"$folder/etc/default/phantom-user-data"
    if [ -e /var/nimbus-metadata-server-url ]; then
        cp /var/nimbus-metadata-server-url "$folder/var/"
    fi
    post /dev/null "/report/$1" || return 0
    PHANTOM_ROOT=$folder "$fetcher" >"$folder/out" 2>&1 </dev/null
    status=$?
    kept=-
    ran=-
    if [ -e "$folder/var/lib/phantom/user-data" ]; then
        kept=$(sha256sum <"$folder/var/lib/phantom/user-data" | cut -d ' ' -f 1)
    fi
    if [ -s "$folder/ran" ]; then ran=$(cat "$folder/ran"); fi
    tell case "$1 $status $kept $ran"
    tell case_said "$1: $(tail -n 1 "$folder/out")"
}

# Whether other services are still being started. This one is; it is part of the boot itself.
is_starting() {
    [ -d /run/systemd/system ] || return 1
    systemctl list-jobs --no-legend --no-pager | grep -v phantom-user-data | grep -q .
}

has_host_keys() {
    for key in /etc/ssh/ssh_host_*_key.pub; do
        [ -s "$key" ] && return 0
    done
    return 1
}

# The driver of the nearest device above a path of /sys that sits on a bus of the machine's board.
driver_above() {
    device=$(readlink -f "$1")
    while [ "${device%/*}" != "" ]; do
        case $(readlink -f "$device/subsystem") in
            */bus/pci | */bus/xen | */bus/virtio)
                basename "$(readlink -f "$device/driver")"
                return
                ;;
        esac
        device=${device%/*}
    done
}

# Tells how large the ext file system on a device is, by its superblock: what can be used of it is
# less. The block count's halves and the binary logarithm of a block's KiB are words 1, 84 and 6.
tell_file_system_bytes() {
    # shellcheck disable=SC2046
    set -- $(od -An -v -tu4 -j 1024 -N 1024 "$1")
    tell file_system_bytes "$((($2 + (${85} << 32)) * (1024 << $7)))"
}

root=$(readlink -f "$(findmnt --noheadings --output SOURCE /)")
disk=$(lsblk --noheadings --nodeps --output PKNAME "$root" | head -n 1)
block=/sys/class/block/${disk:-${root##*/}}
part=/sys/class/block/${root##*/}
start=0 # where root is the whole disk
[ ! -e "$part/start" ] || start=$(cat "$part/start")
card=$(ip -o -4 addr show scope global | awk '{ print $2; exit }')

run_part user_data "$user_data"
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    is_starting || break
    sleep 1
done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    has_host_keys && break
    sleep 1
done
run_part check "$check"

tell nonce "$nonce"
tell release "$(sed -n 's/^PRETTY_NAME="\(.*\)"$/\1/p' /etc/os-release)"
tell kernel "$(uname -r)"
tell machine_id "$(cat /etc/machine-id)"
tell boot_seconds "$booted"
tell fetcher_tries "${PHANTOM_USER_DATA_TRIES-}"
tell fetcher_protocol "${PHANTOM_METADATA_PROTOCOL-}"
tell root_bytes "$(lsblk --noheadings --bytes --nodeps --output FSSIZE "$root" | tr -d ' ')"
tell_file_system_bytes "$root"
tell root_start "$((start * 512))"
tell root_end "$(((start + $(cat "$part/size")) * 512))"
tell disk_bytes "$(($(cat "$block/size") * 512))"
tell disk_driver "$(driver_above "$block")"
tell network_driver "$(driver_above "/sys/class/net/$card/device")"
ip -o addr show scope global | while read -r _ _ _ address _; do
    tell address "$address"
done
for key in /etc/ssh/ssh_host_*_key.pub; do
    [ ! -s "$key" ] || tell ssh_host_key "$(ssh-keygen -l -f "$key" | cut -d ' ' -f 2,4)"
done
if [ -d /run/systemd/system ]; then
    systemctl list-units --failed --no-legend --no-pager --plain | while read -r unit _; do
        tell failed_unit "$unit"
    done
fi
if [ -e /root/.ssh/authorized_keys ]; then
    while read -r line; do
        tell authorized_key "$line"
    done </root/.ssh/authorized_keys
fi
if [ -d /sys/firmware/efi ]; then tell firmware uefi; else tell firmware bios; fi
if [ -x "$fetcher" ]; then
    tell fetcher "$fetcher"
    for case in $cases; do
        try_case "$case"
    done
fi

post "$work/report" /report
status=$?
rm -rf "$work"
exit "$status"
