# SPDX-License-Identifier: LGPL-2.1-or-later
foreach(name fuzz-colo-forward fuzz-colo-return)
    colo_fuzz_target(${name} colod_gate)
endforeach()
