#!/bin/sh
# The head's user-data in the check of a whole cluster.
set -eu

phantom-ctl configure <<END
url = @phantom_url@
access_key = @phantom_access_key@
secret_key = @phantom_secret_key@
END

address=@address:head@
batch-cluster head <<END
[cluster]
secret = @cluster_secret@
address = $address
share = ${address%.*}.0/24
idle = 20

[@site@]
image = @image@
instance_type = @instance_type@
nodes = 2
END
