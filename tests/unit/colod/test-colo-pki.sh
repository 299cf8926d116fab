#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# test-colo-pki.sh COLO-PKI - what colo-pki makes can be used, and what it must not touch stays as it is
set -eu
pki=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
ca="$dir/an authority"

# refused ARGUMENT...: exit code 1, with a reason.
refused()
{
    code=0
    "$pki" "$@" 2>"$dir/said" || code=$?
    [ "$code" -eq 1 ] && grep -q '^colo-pki: ' "$dir/said" && return 0
    echo "colo-pki $*: exit code $code"
    cat "$dir/said"
    exit 1
}

longest=$(printf 'a%.0s' $(seq 63)) # colod.conf(5), [host] name
"$pki" init "$ca"
cp -R "$ca" "$dir/before"
refused init "$ca"

# The files of a host of this name would be the authority's.
refused host "$ca" ca
refused host "$ca" ca "$ca"
refused renew "$ca" ca "$ca"
refused host "$ca" "a$longest"
diff -r "$dir/before" "$ca"

for host in alpha "$longest"; do
    "$pki" host "$ca" "$host=192.0.2.1"
    "$pki" renew "$ca" "$host"
    openssl verify -CAfile "$ca/$host/ca.pem" "$ca/$host/$host.pem" >"$dir/said"
done
cmp "$dir/before/ca.pem" "$ca/ca.pem"
