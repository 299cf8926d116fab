/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* store-nbd.h - a disk's image as a store, wherever it is */
#pragma once

#include "store.h"

typedef enum StoreAccess { STORE_READ, STORE_WRITE } StoreAccess;

/**
 * A raw file, a block device, or an NBD export (image.h). To write: a file is locked against
 * another process of ours; an export cannot be. Errors: see store_file_open().
 */
Store *store_open(const char *image, StoreAccess access, GError **error);
