#!/bin/sh
# The default user-data: runs as root at boot.
set -eu

mkdir -p /run/hello-base
cp /etc/hello-base/greeting /run/hello-base/greeting.new
mv /run/hello-base/greeting.new /run/hello-base/greeting
cat /run/hello-base/greeting
