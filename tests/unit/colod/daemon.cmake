# SPDX-License-Identifier: LGPL-2.1-or-later
colo_unit_test(test-pair-fsm colod_pair)
colo_unit_test(test-checkpoint-policy colod_pair)
colo_unit_test(test-explain colod_explain)
colo_unit_test(test-pair-world colod_pair)
colo_unit_test(test-vm colod_vm)
# The daemon's part of the disks, with disks and a daemon that the tests lead.
foreach(name test-daemon-disk test-daemon-disk-failover test-daemon-status)
    colo_unit_test(${name} colod_explain colod_frames colod_gate colod_host colod_pair colod_peer
        colod_selftest colod_vm colo_proxy colo_qmp colo_blockrep_disk)
    target_sources(${name} PRIVATE daemon-disk-rig.c daemon-disk-rig.h fake-disk.c fake-disk.h
        ${PROJECT_SOURCE_DIR}/colod/daemon-disk.c ${PROJECT_SOURCE_DIR}/colod/daemon-disk-life.c)
endforeach()
target_sources(test-daemon-status PRIVATE ${PROJECT_SOURCE_DIR}/colod/daemon-status.c)

if(TARGET colod AND TARGET colo)
    colo_python_test(test-colod test_colod.py COLOD=$<TARGET_FILE:colod> COLO=$<TARGET_FILE:colo>
        COLO_PKI=${PROJECT_SOURCE_DIR}/deploy/colo-pki)
endif()
