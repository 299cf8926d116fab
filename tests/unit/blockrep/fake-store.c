/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-store.c - a store in memory that fails, tears and forgets on demand */
#include "fake-store.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { SECTOR = 512, HOLE_BYTES = 4096 };

typedef struct Failure {
    int skip, error; /* error 0: none */
} Failure;

struct FakeStore {
    Store base;
    FakePower *power;
    uint8_t *now, *medium; /* with the cache; what is stable */
    pthread_mutex_t mutex; /* failures, gate */
    pthread_cond_t opened;
    bool shut;
    unsigned waiting;
    Failure read, write, flush;
};

void
fake_power_init(FakePower *power, long left, guint32 seed)
{
    *power = (FakePower){.left = left, .rand = g_rand_new_with_seed(seed)};
    (void)pthread_mutex_init(&power->mutex, NULL);
}

void
fake_power_clear(FakePower *power)
{
    (void)pthread_mutex_destroy(&power->mutex);
    g_rand_free(power->rand);
}

PowerState
fake_power_change(FakePower *power)
{
    PowerState state = POWER_ON;

    if (!power)
        return state;
    (void)pthread_mutex_lock(&power->mutex);
    if (power->is_off) {
        state = POWER_OFF;
    } else {
        power->changes++;
        if (power->left > 0 && --power->left == 0) {
            power->is_off = true;
            state = POWER_FAILS;
        }
    }
    (void)pthread_mutex_unlock(&power->mutex);
    return state;
}

bool
fake_power_is_off(FakePower *power)
{
    (void)pthread_mutex_lock(&power->mutex);

    bool is_off = power->is_off;

    (void)pthread_mutex_unlock(&power->mutex);
    return is_off;
}

static FakeStore *
of(Store *store)
{
    return (FakeStore *)store;
}

/* At the door of each call: waits, and says whether this one is to fail. */
static int
enter(FakeStore *store, Failure *failure)
{
    int error = 0;

    (void)pthread_mutex_lock(&store->mutex);
    store->waiting++;
    while (store->shut)
        (void)pthread_cond_wait(&store->opened, &store->mutex);
    store->waiting--;
    if (failure->error && failure->skip-- == 0) {
        error = failure->error;
        failure->error = 0;
    }
    (void)pthread_mutex_unlock(&store->mutex);
    return -error;
}

static int
fake_read(Store *store, void *buf, size_t len, uint64_t offset)
{
    int r = enter(of(store), &of(store)->read);

    if (r < 0)
        return r;
    if (!store_has(store, len, offset))
        return -EINVAL;
    memcpy(buf, of(store)->now + offset, len);
    return 0;
}

/* How much of a write is there when the power fails in it: up to a sector's end. */
static uint64_t
torn(FakePower *power, uint64_t len, uint64_t offset)
{
    len = (uint64_t)g_rand_int_range(power->rand, 0, (gint32)len + 1);

    uint64_t over = (offset + len) % SECTOR;

    return len > over ? len - over : 0;
}

/* @buf NULL: zeros. */
static int
put(Store *store, const uint8_t *buf, uint64_t len, uint64_t offset)
{
    int r = enter(of(store), &of(store)->write);

    if (r < 0)
        return r;
    if (!store_has(store, len, offset))
        return -EINVAL;
    (void)pthread_mutex_lock(&of(store)->mutex); /* against a flush, which takes all */

    PowerState power = fake_power_change(of(store)->power);

    if (power != POWER_ON) {
        len = power == POWER_FAILS ? torn(of(store)->power, len, offset) : 0;
        r = -EIO;
    }
    if (buf)
        memcpy(of(store)->now + offset, buf, len);
    else
        memset(of(store)->now + offset, 0, len);
    (void)pthread_mutex_unlock(&of(store)->mutex);
    return r;
}

static int
fake_write(Store *store, const void *buf, size_t len, uint64_t offset)
{
    return put(store, buf, len, offset);
}

static int
fake_zero(Store *store, uint64_t len, uint64_t offset, G_GNUC_UNUSED bool unmap)
{
    return put(store, NULL, len, offset);
}

static int
fake_flush(Store *store)
{
    int r = enter(of(store), &of(store)->flush);

    if (r < 0)
        return r;
    (void)pthread_mutex_lock(&of(store)->mutex);
    if (fake_power_change(of(store)->power) == POWER_ON)
        memcpy(of(store)->medium, of(store)->now, store->size_bytes);
    else
        r = -EIO;
    (void)pthread_mutex_unlock(&of(store)->mutex);
    return r;
}

static bool
is_zero(const uint8_t *p, uint64_t len)
{
    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

/* A hole is an aligned block of zeros. */
static int
fake_extent(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    uint64_t end = offset + len, at = offset;

    for (; at < end; at += HOLE_BYTES - at % HOLE_BYTES) {
        uint64_t block = at / HOLE_BYTES * HOLE_BYTES;
        bool hole = is_zero(of(store)->now + block, MIN(HOLE_BYTES, store->size_bytes - block));

        if (at == offset)
            *ret_hole = hole;
        else if (hole != *ret_hole)
            break;
    }
    *ret_len = MIN(at, end) - offset;
    return 0;
}

static int
fake_discard_all(Store *store)
{
    if (fake_power_change(of(store)->power) != POWER_ON)
        return -EIO;
    (void)pthread_mutex_lock(&of(store)->mutex);
    memset(of(store)->now, 0xdd, store->size_bytes);
    memset(of(store)->medium, 0xdd, store->size_bytes);
    (void)pthread_mutex_unlock(&of(store)->mutex);
    return 0;
}

static void
fake_free(Store *store)
{
    (void)pthread_mutex_destroy(&of(store)->mutex);
    (void)pthread_cond_destroy(&of(store)->opened);
    g_free(of(store)->now);
    g_free(of(store)->medium);
    g_free(store);
}

static const StoreOps fake_ops = {
    .read = fake_read,
    .write = fake_write,
    .zero = fake_zero,
    .flush = fake_flush,
    .extent = fake_extent,
    .discard_all = fake_discard_all,
    .free = fake_free,
};

FakeStore *
fake_store_new(uint64_t size_bytes, bool durable, FakePower *power)
{
    FakeStore *store = g_new0(FakeStore, 1);

    store->base = (Store){.ops = &fake_ops, .size_bytes = size_bytes, .durable = durable};
    store->power = power;
    store->now = g_malloc0(size_bytes);
    store->medium = g_malloc0(size_bytes);
    (void)pthread_mutex_init(&store->mutex, NULL);
    (void)pthread_cond_init(&store->opened, NULL);
    return store;
}

Store *
fake_store_base(FakeStore *store)
{
    return &store->base;
}

uint8_t *
fake_store_bytes(FakeStore *store)
{
    return store->now;
}

static void
set_failure(FakeStore *store, Failure *failure, int skip, int error)
{
    (void)pthread_mutex_lock(&store->mutex);
    *failure = (Failure){.skip = skip, .error = error};
    (void)pthread_mutex_unlock(&store->mutex);
}

void
fake_store_fail_read(FakeStore *store, int skip, int error)
{
    set_failure(store, &store->read, skip, error);
}

void
fake_store_fail_write(FakeStore *store, int skip, int error)
{
    set_failure(store, &store->write, skip, error);
}

void
fake_store_fail_flush(FakeStore *store, int skip, int error)
{
    set_failure(store, &store->flush, skip, error);
}

void
fake_store_shut(FakeStore *store)
{
    (void)pthread_mutex_lock(&store->mutex);
    store->shut = true;
    (void)pthread_mutex_unlock(&store->mutex);
}

void
fake_store_open(FakeStore *store)
{
    (void)pthread_mutex_lock(&store->mutex);
    store->shut = false;
    (void)pthread_cond_broadcast(&store->opened);
    (void)pthread_mutex_unlock(&store->mutex);
}

unsigned
fake_store_waiting(FakeStore *store)
{
    (void)pthread_mutex_lock(&store->mutex);

    unsigned waiting = store->waiting;

    (void)pthread_mutex_unlock(&store->mutex);
    return waiting;
}

FakeStore *
fake_store_after_crash(FakeStore *store, FakePower *power)
{
    FakeStore *after = fake_store_new(store->base.size_bytes, true, power);

    for (uint64_t at = 0; at < store->base.size_bytes; at += SECTOR) {
        uint64_t len = MIN(SECTOR, store->base.size_bytes - at);
        const uint8_t *from = g_rand_boolean(store->power->rand) ? store->now : store->medium;

        memcpy(after->now + at, from + at, len);
        memcpy(after->medium + at, from + at, len);
    }
    return after;
}
