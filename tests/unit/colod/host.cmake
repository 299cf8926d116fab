# SPDX-License-Identifier: LGPL-2.1-or-later
# Configuration, state file, arbiter, event log, control server and the CLI.
colo_unit_test(test-config colod_host)
target_compile_definitions(test-config PRIVATE
    SAMPLE_FILE="${PROJECT_SOURCE_DIR}/deploy/colod.conf.sample"
    MAN_PAGE="${PROJECT_SOURCE_DIR}/docs/man/colod.conf.5")
colo_unit_test(test-state-file colod_host)
colo_unit_test(test-event-log colod_host)
colo_unit_test(test-control-server colod_host)
colo_unit_test(test-arbiter colod_host)
target_link_options(test-arbiter PRIVATE -Wl,--wrap=link -Wl,--wrap=faccessat)
