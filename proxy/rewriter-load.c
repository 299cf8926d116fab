/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-load.c - the file of a daemon's rewriter, read by the next daemon
 *
 * The format is that of rewriter-store.c. It is read, not mapped: whatever somebody does to the
 * file meanwhile, there is no SIGBUS. A header that does not fit makes it another VM's file or none
 * of ours, and nothing is loaded; a slot that does not fit is left out, and the others count.
 */
#include "rewriter-load.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fd.h"
#include "rewriter-record.h"

enum { SLOTS_AT_ONCE = 64 };

const char *
rewriter_load_header(View v, const RewriterVm *vm, uint32_t *ret_generation)
{
    const uint8_t *magic = NULL, *boot_id = NULL;
    uint32_t version, slot_bytes, slots_max, generation;
    uint64_t start_ticks, pid;

    if (v.len < REWRITER_STORE_HEADER_BYTES || !view_take(&v, 8, &magic) ||
        !view_get_be32(&v, &version) || !view_get_be32(&v, &slot_bytes) ||
        !view_get_be32(&v, &slots_max) || !view_get_be32(&v, &generation) ||
        !view_take(&v, sizeof(vm->boot_id), &boot_id) || !view_get_be64(&v, &start_ticks) ||
        !view_get_be64(&v, &pid))
        return "it is cut short";
    if (memcmp(magic, REWRITER_STORE_MAGIC, 8) != 0)
        return "it is no file of connections";
    if (version != REWRITER_STORE_VERSION || slot_bytes != REWRITER_SLOT_BYTES)
        return "it is of another version of colod";
    if (pid == 0 || pid != vm->pid || start_ticks != vm->start_ticks ||
        memcmp(boot_id, vm->boot_id, sizeof(vm->boot_id)) != 0)
        return "it is of another VM";
    *ret_generation = generation;
    return NULL;
}

/* False: it is damaged. */
static bool
load_slot(View slot, uint32_t generation, Rewriter *rewriter, RewriterLoad *load)
{
    const uint8_t *records;
    RewriterRecord record;
    uint64_t word;

    if (!view_take(&slot, REWRITER_SLOT_AT_WORD, &records) || !view_get_be64(&slot, &word))
        return false;
    if (word == 0 || word >> 32 != generation)
        return true; /* never used, dropped, or void since a commit */

    unsigned live = word & 3;

    if (live != 1 && live != 2)
        return false;
    records += (live - 1) * REWRITER_RECORD_BYTES;
    if (rewriter_slot_check(records) != (uint32_t)word >> 2 ||
        !rewriter_record_decode(view_of(records, REWRITER_RECORD_BYTES), &record))
        return false;

    int r = rewriter_import(rewriter, &record);

    load->loaded += r == 0;
    load->beyond_max += r == -ENOBUFS;
    return r != -EINVAL;
}

void
rewriter_load_slots(View slots, uint32_t generation, Rewriter *rewriter, RewriterLoad *load)
{
    const uint8_t *slot;

    while (view_take(&slots, REWRITER_SLOT_BYTES, &slot))
        if (!load_slot(view_of(slot, REWRITER_SLOT_BYTES), generation, rewriter, load))
            load->damaged++;
}

static ssize_t
read_whole(int fd, void *buffer, size_t len, off_t at)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pread(fd, (uint8_t *)buffer + done, len - done, at + (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static void
refuse(RewriterLoad *load, const char *problem, int error)
{
    load->problem = problem;
    load->error = error;
}

static void
load_fd(int fd, const RewriterVm *vm, Rewriter *rewriter, RewriterLoad *load)
{
    const uint64_t most =
        REWRITER_STORE_HEADER_BYTES + (uint64_t)REWRITER_CONNECTIONS_LIMIT * REWRITER_SLOT_BYTES;
    uint8_t buffer[SLOTS_AT_ONCE * REWRITER_SLOT_BYTES];
    uint32_t generation = 0;
    struct stat st;
    ssize_t n;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        refuse(load, "it is no file", 0);
        return;
    }
    n = read_whole(fd, buffer, REWRITER_STORE_HEADER_BYTES, 0);
    if (n < 0) {
        refuse(load, "it cannot be read", (int)-n);
        return;
    }
    load->problem = rewriter_load_header(view_of(buffer, (size_t)n), vm, &generation);
    if (load->problem)
        return;
    if ((uint64_t)st.st_size > most ||
        (st.st_size - REWRITER_STORE_HEADER_BYTES) % REWRITER_SLOT_BYTES != 0) {
        refuse(load, "its length does not fit", 0);
        return;
    }
    for (off_t at = REWRITER_STORE_HEADER_BYTES; at < st.st_size; at += n) {
        n = read_whole(fd, buffer, sizeof(buffer), at);
        if (n < 0)
            refuse(load, "it cannot be read to its end", (int)-n);
        if (n < REWRITER_SLOT_BYTES)
            return;
        rewriter_load_slots(view_of(buffer, (size_t)n), generation, rewriter, load);
    }
}

void
rewriter_load(const char *path, const RewriterVm *vm, Rewriter *rewriter, RewriterLoad *ret_load)
{
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    *ret_load = (RewriterLoad){0};
    if (fd < 0)
        refuse(ret_load, errno == ENOENT ? "there is none" : "it cannot be opened", errno);
    else
        load_fd(fd, vm, rewriter, ret_load);
}
