#!/bin/sh
# The default user-data: a worker without a cluster waits. Yours names the head and brings the
# cluster's munge key, as `base64 -w0 /etc/munge/munge.key` prints it on the head:
#
#   join-cluster head.example.org <<KEY
#   bXVuZ2Uga2V5IG9mIHRoZSBjbHVzdGVyLCAzMiBieXRlcyBvciBtb3Jl
#   KEY
set -eu

echo "no cluster is named: slurmd is not started"
