/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-target-exports.c - requests of any range on `changed` and `digest`, and writes in between
 *
 * Sixteen bytes a request: u8 operation, 3 bytes that are not used, be32 length, be64 offset.
 */
#include "fake-journal.h"
#include "target-exports.h"
#include "target-open.h"

#include "bytes.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = DIRTY_CHUNK_BYTES, CHUNKS = 70, SIZE = 69 * CHUNK + 100, LIMIT = 64 * 4096 };
enum { MAX_REQUESTS = 16, MAX_LENGTH = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static DirtyMap *
new_map(void)
{
    g_autofree char *path = g_strdup("/tmp/colod-fuzz-map-XXXXXX");
    int fd = g_mkstemp(path);
    DirtyMap *map;

    g_assert(fd >= 0);
    (void)close(fd);
    map = dirty_map_open(path, SIZE, NULL);
    g_assert(map);
    (void)g_unlink(path);
    return map;
}

static void
digest_of(FakeStore *disk, uint64_t chunk, uint8_t ret_digest[CHUNK_DIGEST_BYTES])
{
    chunk_digest(fake_store_bytes(disk) + chunk * CHUNK, MIN(CHUNK, SIZE - chunk * CHUNK),
                 ret_digest);
}

static void
check_digest(Target *target, FakeStore *disk, size_t len, uint64_t offset)
{
    g_autofree uint8_t *buf = g_malloc(len + 1);
    uint8_t want[CHUNK_DIGEST_BYTES];
    Fault fault = FAULT_NONE;
    int r = export_digest_read(target, buf, len, offset, &fault);
    uint64_t size = CHUNKS * CHUNK_DIGEST_BYTES;
    bool fits = offset <= size && len <= size - offset && offset % 16 + len <= 1024;

    if ((r == 0) != fits || (r < 0 && (r != -EINVAL || fault != FAULT_REFUSED)))
        abort();
    for (size_t i = 0; r == 0 && i < len; i++) {
        if (i == 0 || (offset + i) % CHUNK_DIGEST_BYTES == 0)
            digest_of(disk, (offset + i) / CHUNK_DIGEST_BYTES, want);
        if (buf[i] != want[(offset + i) % CHUNK_DIGEST_BYTES])
            abort();
    }
}

static void
check_changed(Target *target, size_t len, uint64_t offset)
{
    g_autofree uint8_t *buf = g_malloc(len + 1);
    Fault fault = FAULT_NONE;
    int r = export_changed_read(target, buf, len, offset, &fault);
    uint64_t size = (CHUNKS + 7) / 8;

    if ((r == 0) != (offset <= size && len <= size - offset))
        abort();
    for (size_t i = 0; r == 0 && i < len * 8; i++) {
        uint64_t chunk = offset * 8 + i;
        bool marked = chunk < CHUNKS && dirty_map_is_marked(target_map(target), chunk * CHUNK, 1);

        if ((buf[i / 8] >> i % 8 & 1) != marked)
            abort();
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    DiskMeta meta;
    FakeStore *disk = fake_store_new(SIZE, true, NULL);
    View view = view_of(data, size);
    uint32_t op, len;
    uint64_t offset;

    disk_meta_init(&meta, SIZE);
    meta.state = DISK_UPTODATE;
    meta.generation = 1;

    Target *target =
        target_assemble(fake_store_base(disk), fake_store_base(fake_store_new(LIMIT, true, NULL)),
                        fake_store_base(fake_store_new(LIMIT, true, NULL)),
                        &fake_journal_new(&meta, NULL)->base, &meta, NULL, NULL);
    Fault fault;

    target_take_map(target, new_map());
    dirty_map_clear(target_map(target), 0, SIZE);
    for (int i = 0; i < MAX_REQUESTS && view_get_be32(&view, &op) && view_get_be32(&view, &len) &&
                    view_get_be64(&view, &offset);
         i++) {
        len %= MAX_LENGTH;
        if (op >> 24 & 1)
            check_digest(target, disk, len, offset);
        else if (op >> 24 & 2)
            check_changed(target, len, offset);
        else
            (void)layers_zero(target_layers(target), SIDE_ACTIVE, len, offset, false, &fault);
    }
    target_free(target);
    return 0;
}
