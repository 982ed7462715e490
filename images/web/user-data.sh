#!/bin/sh
# The default user-data: runs as root at each boot. Give your own at launch, with your own pages.
set -eu

cat >/srv/web/index.html.new <<PAGE
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Hello</title>
<h1>Hello from Phantom</h1>
<p>This is $(uname -n).</p>
PAGE
mv /srv/web/index.html.new /srv/web/index.html

# Where the configuration changes too:
# cat >/etc/nginx/sites-available/default <<'SITE' ... SITE
# nginx -t && systemctl reload nginx
