/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-store.c - a rewriter's connections in a file, for the next daemon of the same VM */
/*
 * Theory of operation
 *
 * A VM outlives its daemon, and the daemon that adopts it is to translate what the one before
 * translated. So each connection that another rewriter could take over (rewriter_export()) is also
 * in a file in the VM's run directory, which is a tmpfs: a shared mapping, so what is stored is
 * there for the next process however this one ends.
 *
 * Slot i is entry i of the rewriter's table, so nothing is to be looked for or kept account of. It
 * is written when what would be exported changes: in a handshake, and when the timestamp offset is
 * raised; a segment of an open connection changes nothing else, and costs a comparison. A commit
 * counts the generation in the header up, and all slots are void.
 *
 * A process may be killed between any two stores. Those before have happened then, as the kernel
 * and the CPUs have one order for a thread's own stores; only the compiler must keep to it. So a
 * slot has room for two records, and one word that tells which of them counts, of which
 * generation it is, and a check of its bytes: a record is written where it does not count, and then
 * the word. The check is for what is not a kill: a file that somebody else has written to.
 *
 * What is mapped is reserved for all connections, what is there in the file grows by steps:
 * allocated by fallocate(2), as a store to a page that the file system has no room for would be a
 * SIGBUS. Without room connections are not saved (counted), and all goes on. It is tried again
 * after the next commit. Nothing makes a published file shorter.
 *
 * The file is made under another name and renamed when it is whole; a daemon that is killed while
 * it loads leaves the file that it was loading. It names the VM by the host's boot and QEMU's pid
 * and start time, pid last; a file of another VM, or of none yet, is never loaded.
 */
#include "rewriter-store.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fd.h"
#include "keyed-hash.h"
#include "rewriter-record.h"

enum {
    STEP_SLOTS = 1024, /* 192 KiB, some 20 µs on a tmpfs */
    LIVE_BITS = 2,
};

/* As it is in the file: big endian. */
typedef struct StoreHeader {
    uint8_t magic[8];
    uint8_t version[4];
    uint8_t slot_bytes[4];
    uint8_t slots_max[4];
    _Atomic uint32_t generation;
    char boot_id[40];
    uint8_t start_ticks[8];
    _Atomic uint64_t pid;
} StoreHeader;

typedef struct Slot {
    uint8_t records[2][REWRITER_RECORD_BYTES];
    _Atomic uint64_t word;
} Slot;

static_assert(sizeof(Slot) == REWRITER_SLOT_BYTES, "three lines");
static_assert(offsetof(Slot, word) == REWRITER_SLOT_AT_WORD, "the reader's places");
static_assert(offsetof(StoreHeader, version) == REWRITER_STORE_AT_VERSION, "");
static_assert(offsetof(StoreHeader, slot_bytes) == REWRITER_STORE_AT_SLOT_BYTES, "");
static_assert(offsetof(StoreHeader, slots_max) == REWRITER_STORE_AT_SLOTS_MAX, "");
static_assert(offsetof(StoreHeader, generation) == REWRITER_STORE_AT_GENERATION, "");
static_assert(offsetof(StoreHeader, boot_id) == REWRITER_STORE_AT_BOOT_ID, "");
static_assert(offsetof(StoreHeader, start_ticks) == REWRITER_STORE_AT_START_TICKS, "");
static_assert(offsetof(StoreHeader, pid) == REWRITER_STORE_AT_PID, "");
static_assert(sizeof(((RewriterVm *)0)->boot_id) == sizeof(((StoreHeader *)0)->boot_id), "");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "a lock would be ours");

struct RewriterStore {
    char *path, *new_path;
    int fd;
    StoreHeader *header; /* the mapping */
    Slot *slots;
    uint32_t slots_max, slots_there;
    bool published, full;
    uint64_t unsaved;
};

uint32_t
rewriter_slot_check(const uint8_t *record)
{
    static const HashKey key = {{0, 0}}; /* against accidents */
    uint64_t words[(REWRITER_RECORD_BYTES + 7) / 8] = {0};

    memcpy(words, record, REWRITER_RECORD_BYTES);
    return (uint32_t)(keyed_hash(&key, words, sizeof(words) / sizeof(words[0])) >> 34);
}

static size_t
bytes_of(uint32_t n_slots)
{
    return REWRITER_STORE_HEADER_BYTES + (size_t)n_slots * sizeof(Slot);
}

/* The next step is there, or -errno. */
static int
grow(RewriterStore *store)
{
    uint32_t left = store->slots_max - store->slots_there;
    uint32_t there = store->slots_there + (left < STEP_SLOTS ? left : STEP_SLOTS);

    if (fallocate(store->fd, 0, 0, (off_t)bytes_of(there)) < 0)
        return -errno;
    store->slots_there = there;
    return 0;
}

static int
open_file(RewriterStore *store)
{
    (void)unlink(store->new_path); /* of a daemon that was killed with it */
    store->fd = open(store->new_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->fd < 0)
        return -errno;

    int r = grow(store);

    if (r < 0)
        return r;

    void *map =
        mmap(NULL, bytes_of(store->slots_max), PROT_READ | PROT_WRITE, MAP_SHARED, store->fd, 0);

    if (map == MAP_FAILED)
        return -errno;
    store->header = map;
    store->slots = (Slot *)((uint8_t *)map + REWRITER_STORE_HEADER_BYTES);
    return 0;
}

int
rewriter_store_new(const char *path, uint32_t slots_max, const RewriterVm *vm,
                   RewriterStore **ret_store)
{
    RewriterStore *store = calloc(1, sizeof(*store));
    int r = -ENOMEM;

    if (!store)
        return r;
    store->fd = -1;
    store->slots_max = slots_max;
    store->path = strdup(path);
    if (store->path && asprintf(&store->new_path, "%s.new", path) >= 0)
        r = open_file(store);
    if (r < 0) {
        rewriter_store_free(store);
        return r;
    }
    memcpy(store->header->magic, REWRITER_STORE_MAGIC, sizeof(store->header->magic));
    be32_store(store->header->version, REWRITER_STORE_VERSION);
    be32_store(store->header->slot_bytes, REWRITER_SLOT_BYTES);
    be32_store(store->header->slots_max, slots_max);
    if (vm)
        rewriter_store_set_vm(store, vm);
    *ret_store = store;
    return 0;
}

int
rewriter_store_publish(RewriterStore *store)
{
    if (rename(store->new_path, store->path) < 0)
        return -errno;
    store->published = true;
    return 0;
}

void
rewriter_store_set_vm(RewriterStore *store, const RewriterVm *vm)
{
    StoreHeader *header = store->header;

    memcpy(header->boot_id, vm->boot_id, sizeof(header->boot_id));
    be64_store(header->start_ticks, vm->start_ticks);
    atomic_store_explicit(&header->pid, htobe64(vm->pid), memory_order_release);
}

void
rewriter_store_free(RewriterStore *store)
{
    if (!store)
        return;
    if (store->header)
        (void)munmap(store->header, bytes_of(store->slots_max));
    if (store->fd >= 0 && !store->published)
        (void)unlink(store->new_path);
    fd_clear(&store->fd);
    free(store->new_path);
    free(store->path);
    free(store);
}

/* A word's store stays behind what comes before it, and before what comes after it. */
static void
store_word(Slot *slot, uint64_t word)
{
    atomic_store_explicit(&slot->word, htobe64(word), memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
}

static bool
is_there(RewriterStore *store, uint32_t index)
{
    while (index >= store->slots_there) {
        if (store->full || index >= store->slots_max)
            return false;
        store->full = grow(store) < 0;
    }
    return true;
}

void
rewriter_store_put(RewriterStore *store, uint32_t index, uint32_t generation,
                   const RewriterRecord *record)
{
    if (!is_there(store, index)) {
        store->unsaved++;
        return;
    }
    Slot *slot = &store->slots[index];
    uint64_t word = be64toh(atomic_load_explicit(&slot->word, memory_order_relaxed));
    unsigned other = (word & ((1 << LIVE_BITS) - 1)) == 1;

    rewriter_record_encode(slot->records[other], record);
    store_word(slot, ((uint64_t)generation << 32) |
                         ((uint64_t)rewriter_slot_check(slot->records[other]) << LIVE_BITS) |
                         (other + 1));
}

void
rewriter_store_drop(RewriterStore *store, uint32_t index)
{
    if (index < store->slots_there &&
        atomic_load_explicit(&store->slots[index].word, memory_order_relaxed))
        store_word(&store->slots[index], 0);
}

void
rewriter_store_begin(RewriterStore *store, uint32_t generation)
{
    atomic_store_explicit(&store->header->generation, htobe32(generation), memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    store->full = false;
}

uint64_t
rewriter_store_unsaved(const RewriterStore *store)
{
    return store->unsaved;
}
