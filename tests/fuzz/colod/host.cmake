# SPDX-License-Identifier: LGPL-2.1-or-later
colo_fuzz_target(fuzz-config colod_host)
colo_fuzz_target(fuzz-state colod_host)
colo_fuzz_target(fuzz-control colod_host)
