# SPDX-License-Identifier: LGPL-2.1-or-later
colo_unit_test(test-peer-wire colod_peer)
colo_unit_test(test-peer-channel colod_peer)
