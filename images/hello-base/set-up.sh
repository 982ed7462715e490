#!/bin/sh
# Runs as root inside the image while it is built, in libguestfs's appliance and never on the host.
set -eu

sed -n 's/^PRETTY_NAME=/hello-base is made from /p' /etc/os-release

# The greeting's language, which the default user-data reads
mkdir -p /etc/hello-base
echo "Guten Tag von Phantom." >/etc/hello-base/greeting
