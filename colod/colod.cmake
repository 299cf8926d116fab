# SPDX-License-Identifier: LGPL-2.1-or-later
add_executable(colod main.c daemon.c daemon-state.c daemon-actions.c daemon-disk.c daemon-disk-life.c daemon-peer.c
    daemon-checkpoint.c daemon-control.c daemon-explain.c daemon-network.c daemon-status.c)
target_link_libraries(colod PRIVATE colod_explain colod_frames colod_gate colod_host colod_pair colod_peer
    colod_selftest colod_vm
    colo_proxy colo_qmp colo_blockrep_disk)
install(TARGETS colod RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})
# The table in ARCHITECTURE.md is the code's.
add_test(NAME fsm-table COMMAND ${PROJECT_SOURCE_DIR}/tests/unit/colod/check-fsm-table $<TARGET_FILE:colod>
    ${PROJECT_SOURCE_DIR}/docs/ARCHITECTURE.md)
set_tests_properties(fsm-table PROPERTIES TIMEOUT 20 LABELS unit)
add_test(NAME systemd-unit COMMAND ${PROJECT_SOURCE_DIR}/tests/unit/colod/check-systemd-unit
    ${PROJECT_BINARY_DIR}/deploy/colod@.service $<TARGET_FILE:colod>)
set_tests_properties(systemd-unit PROPERTIES TIMEOUT 60 LABELS unit)
