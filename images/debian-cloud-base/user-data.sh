#!/bin/sh
# The default user-data: runs as root at boot, by cloud-init on EC2 and by the fetcher elsewhere.
set -eu

mkdir -p /run/phantom-greeting
date +%s >>/run/phantom-greeting/runs # one line: user-data never runs twice in one boot
echo "Hello from Phantom."
