#!/bin/sh
# The default user-data: a machine without a cluster waits. That of a head is in README.md.
set -eu

echo "no cluster is named: this machine is neither head nor worker"
