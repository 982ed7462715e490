#!/bin/sh
#
# The user-data of the boot check, which the fetcher or cloud-init runs in the guest. It runs the
# appliance's default user-data and check script, and reports the machine's state to the metadata
# service. Old and small images may have POSIX's programs only. The host sets these variables first:
#
# nonce         a text that the report repeats
# metadata_url  the metadata service
# user_data     the default user-data in base64, or empty
# check         the check script in base64, or empty
# login_user    who is to log in with the launch's key
# cases         names of further user-data answers of the metadata service

: "${nonce:=}" "${metadata_url:=}" "${user_data:=}" "${check:=}" "${cases:=}" \
    "${login_user:=root}"

fetcher=/usr/lib/phantom/fetch-user-data
runs=/run/phantom-boot-check

# Only the fetcher sets PHANTOM_USER_DATA_TRIES.
runner=fetcher
[ -n "${PHANTOM_USER_DATA_TRIES-}" ] || runner=cloud-init

# If both the fetcher and cloud-init run this script, only the first one reports.
mkdir -p "${runs%/*}"
if ! mkdir "$runs"; then
    echo "$runner" >>"$runs/again"
    exit 0
fi

work=$(mktemp -d) || exit 1
booted=$(cut -d ' ' -f 1 /proc/uptime)

# tell NAME VALUE: adds a line to the report.
tell() {
    printf '%s %s\n' "$1" "$2" >>"$work/report"
}

# run_part NAME SCRIPT: runs a script in base64; reports its exit status and the end of its output.
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

# post FILE PATH: sends a file to the metadata service. If BusyBox's wget cannot, nc does.
post() {
    if command -v curl >/dev/null; then
        curl --silent --show-error --noproxy '*' --max-time 30 --retry 3 \
            --data-binary "@$1" "$metadata_url$2"
        return
    fi
    (
        unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
        wget -q -O - --post-file="$1" "$metadata_url$2"
    ) && return
    command -v nc >/dev/null || return 1
    address=${metadata_url#http://}
    {
        printf 'POST %s HTTP/1.0\r\nHost: %s\r\nContent-Length: %s\r\n\r\n' \
            "$2" "$address" "$(wc -c <"$1" | tr -d ' ')"
        cat "$1"
    } | nc "${address%:*}" "${address##*:}"
}

# try_case NAME: switches the metadata service to another answer, has the fetcher fetch that into a
# separate folder, and prints lines for the report. The fetcher's output stays off the console, where
# its errors would count as the boot's.
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
    echo "case $1 $status $kept $ran"
    echo "case_said $1: $(tail -n 1 "$folder/out")"
}

# wait_for COMMAND: runs a command until it succeeds, for 20 s at most. Old programs sleep for whole
# seconds only.
wait_for() {
    left=100
    until "$@" || [ "$left" -le 0 ]; do
        if sleep 0.2 2>/dev/null; then
            left=$((left - 1))
        else
            sleep 1
            left=$((left - 5))
        fi
    done
}

# Whether all services have started. The fetcher's own service does not count. Under cloud-init only
# running jobs count: jobs that wait for cloud-init wait for this script.
# shellcheck disable=SC2317 # wait_for calls it
has_started() {
    [ -d /run/systemd/system ] || return 0
    systemctl list-jobs --no-legend --no-pager | awk -v "runner=$runner" '
        runner == "fetcher" && $2 !~ /phantom-user-data/ { starting = 1 }
        runner != "fetcher" && $2 !~ /^cloud-/ && $4 == "running" { starting = 1 }
        END { exit starting }
    '
}

# Reports sshd's enabled units if none was started: systemd silently drops a unit from a dependency
# cycle.
tell_idle_units() {
    [ ! -e /etc/ssh/sshd_not_to_be_run ] || return 0
    systemctl show -p Id -p UnitFileState -p ActiveState \
        ssh.socket ssh.service sshd.socket sshd.service |
        awk -F = '
            { value[$1] = $2 }
            $1 == "" { judge() }
            END { judge(); if (!started) for (unit in idle) print unit }
            function judge() {
                if (value["UnitFileState"] == "enabled") {
                    if (value["ActiveState"] == "inactive") idle[value["Id"]]; else started = 1
                }
                split("", value)
            }
        ' >"$work/idle"
    while read -r unit; do
        tell idle_unit "$unit"
    done <"$work/idle"
}

# shellcheck disable=SC2317 # wait_for calls it
has_host_keys() {
    for key in /etc/ssh/ssh_host_*_key.pub; do
        [ -s "$key" ] && return 0
    done
    return 1
}

# The driver of the nearest PCI, Xen or virtio device above a path in /sys.
driver_above() {
    cd -P "$1" 2>/dev/null || return 0
    device=$PWD
    while [ "${device%/*}" != "" ]; do
        if cd -P "$device/subsystem" 2>/dev/null; then
            case $PWD in
                */bus/pci | */bus/xen | */bus/virtio)
                    if cd -P "$device/driver" 2>/dev/null; then echo "${PWD##*/}"; fi
                    return
                    ;;
            esac
        fi
        device=${device%/*}
    done
}

# Reports the size of the ext file system on a device by its superblock; df shows less. The block
# count's halves and the binary logarithm of a block's KiB are words 1, 84 and 6.
tell_file_system_bytes() {
    # shellcheck disable=SC2046
    set -- $(od -An -v -tu4 -j 1024 -N 1024 "$1")
    tell file_system_bytes "$((($2 + (${85} << 32)) * (1024 << $7)))"
}

# Reports the keys with which the user logs in, if sshd takes them: it wants the user's folder, home and
# file to be the user's own, and writable by nobody else.
tell_login_keys() {
    home=$(awk -F : -v user="$login_user" '$1 == user { print $6 }' /etc/passwd)
    # shellcheck disable=SC2012
    ls -ldn "$home" "$home/.ssh" "$home/.ssh/authorized_keys" |
        awk -v user="$(id -u "$login_user")" '
            $1 ~ /^[d-]....-..-/ && ($3 == user || $3 == 0) { good++ }
            END { exit good != 3 }' || return 0
    while read -r line; do
        tell login_key "$line"
    done <"$home/.ssh/authorized_keys"
}

# Prints the machine's addresses, one `CARD ADDRESS/BITS` a line.
list_addresses() {
    if command -v ip >/dev/null; then
        ip -o addr show scope global | awk '{ print $2, $4 }'
    else
        ifconfig | awk '/^[^ \t]/ { card = $1; sub(/:$/, "", card) }
            $1 == "inet" && card != "lo" { sub(/addr:/, "", $2); print card, $2 }'
    fi
}

find_release() {
    # shellcheck source=/dev/null
    release=$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME-}")
    [ -n "$release" ] || release=$(head -n 1 /etc/system-release 2>/dev/null)
    echo "${release:-unknown}"
}

# Find root by its device number: mount tables may call it /dev/root.
numbers=$(awk '$5 == "/" { number = $3 } END { print number }' /proc/self/mountinfo)
part=$(readlink -f "/sys/dev/block/$numbers")
root=/dev/${part##*/}
block=$part
start=0 # where root is the whole disk
if [ -e "$part/partition" ]; then
    block=${part%/*}
    start=$(cat "$part/start")
fi
list_addresses >"$work/addresses"
read -r card _ <"$work/addresses"

run_part user_data "$user_data"
wait_for has_started
sshd=$(command -v sshd || ls /usr/sbin/sshd 2>/dev/null)
[ -z "$sshd" ] || wait_for has_host_keys
run_part check "$check"
# Run the fetcher as its service does: it must leave user-data to cloud-init, which runs it now.
if [ "$runner" != fetcher ] && [ -x "$fetcher" ]; then
    "$fetcher" >"$work/left" 2>&1 </dev/null
fi

# Try the fetcher with other answers beside what follows. From here on the metadata service has no
# more to say that the image's own programs should see.
if [ -x "$fetcher" ]; then
    for case in $cases; do
        try_case "$case"
    done >"$work/cases" &
fi

tell nonce "$nonce"
tell release "$(find_release)"
tell kernel "$(uname -r)"
tell machine_id "$(cat /etc/machine-id 2>/dev/null)"
tell boot_seconds "$booted"
tell user_data_by "$runner"
tell fetcher_tries "${PHANTOM_USER_DATA_TRIES-}"
tell fetcher_protocol "${PHANTOM_METADATA_PROTOCOL-}"
tell root_bytes "$(df -P -k / | awk 'END { printf "%.0f\n", $2 * 1024 }')"
tell_file_system_bytes "$root"
tell root_start "$((start * 512))"
tell root_end "$(((start + $(cat "$part/size")) * 512))"
tell disk_bytes "$(($(cat "$block/size") * 512))"
tell disk_driver "$(driver_above "$block")"
tell network_driver "$(driver_above "/sys/class/net/$card/device")"
while read -r _ address; do
    tell address "$address"
done <"$work/addresses"
[ -z "$sshd" ] || tell sshd "$sshd"
for key in /etc/ssh/ssh_host_*_key.pub; do
    [ ! -s "$key" ] || tell ssh_host_key "$(ssh-keygen -l -f "$key")"
done
if [ -d /run/systemd/system ]; then
    systemctl list-units --failed --no-legend --no-pager --plain | while read -r unit _; do
        tell failed_unit "$unit"
    done
    tell_idle_units
fi
if [ -e /root/.ssh/authorized_keys ]; then
    while read -r line; do
        tell authorized_key "$line"
    done </root/.ssh/authorized_keys
fi
if [ -d /sys/firmware/efi ]; then tell firmware uefi; else tell firmware bios; fi
if [ -x "$fetcher" ]; then
    tell fetcher "$fetcher"
    tell login_user "$login_user"
    tell_login_keys
fi
if [ "$runner" = fetcher ] && [ ! -e /var/nimbus-metadata-server-url ] &&
    grep -qs '^PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT=yes' /etc/default/phantom-user-data; then
    tell cloud_init 'found no source'
fi
if [ -e "$runs/again" ]; then
    while read -r line; do
        tell run_again "$line"
    done <"$runs/again"
fi

wait
[ ! -e "$work/cases" ] || cat "$work/cases" >>"$work/report"
post "$work/report" /report
status=$?
rm -rf "$work"
exit "$status"
