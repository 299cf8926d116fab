# SPDX-License-Identifier: LGPL-2.1-or-later
colo_unit_test(test-pair-fsm colod_pair)
colo_unit_test(test-checkpoint-policy colod_pair)
colo_unit_test(test-explain colod_explain)
colo_unit_test(test-pair-world colod_pair)
colo_unit_test(test-vm colod_vm)
