# SPDX-License-Identifier: LGPL-2.1-or-later
colo_fuzz_target(fuzz-peer-wire colod_peer)
