#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# test-man-pages.sh FILE... - man pages that groff has nothing to say about
command -v groff >/dev/null || { echo "skipped: groff is not installed"; exit 77; }
status=0
for page do
    said=$(groff -ww -man -Tutf8 "$page" 2>&1 >/dev/null)
    [ -z "$said" ] || { echo "$said"; status=1; }
done
exit $status
