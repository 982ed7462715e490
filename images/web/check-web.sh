#!/bin/sh
# Runs as root in the booted image, after the user-data. Exit status 0: the image is good.
set -u

answers() {
    curl --silent --fail --max-time 10 "http://127.0.0.1/$1" 2>/dev/null | grep -qF "$2"
}

failed=0
tries=30
for asked in 'health:ok' ':<h1>Hello from Phantom</h1>' ":This is $(uname -n)."; do
    until answers "${asked%%:*}" "${asked#*:}"; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            failed=1
            break
        fi
        sleep 1
    done
done
[ "$failed" = 0 ] && echo "ok: nginx serves what the user-data wrote"
[ "$failed" = 0 ] || echo "not ok: nginx does not serve what the user-data wrote"
nginx -t || failed=1
exit "$failed"
