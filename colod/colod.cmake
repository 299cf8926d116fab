# SPDX-License-Identifier: LGPL-2.1-or-later
add_executable(colod main.c daemon.c daemon-state.c daemon-actions.c daemon-peer.c
    daemon-checkpoint.c daemon-control.c)
target_link_libraries(colod PRIVATE colod_gate colod_host colod_pair colod_peer colod_selftest colod_vm
    colo_proxy colo_qmp)
install(TARGETS colod RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})
