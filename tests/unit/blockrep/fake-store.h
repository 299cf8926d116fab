/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-store.h - a store in memory that fails, tears and forgets on demand */
#pragma once

#include "store.h"

#include <pthread.h>

/* One machine that loses power: shared by the stores and the journal it has. Any thread. */
typedef struct FakePower {
    long left; /* changes (writes, zeros, flushes, saves) until the power fails; 0: it does not */
    bool is_off;
    long changes; /* so far */
    GRand *rand;  /* what a change under way leaves, what of the cache reached the medium */
    pthread_mutex_t mutex;
} FakePower;

/** @left: 0: it does not fail. */
void fake_power_init(FakePower *power, long left, guint32 seed);
void fake_power_clear(FakePower *power);

typedef enum PowerState { POWER_ON, POWER_FAILS, POWER_OFF } PowerState;

/** One more change. POWER_FAILS: in the middle of this one. @power NULL: always on. */
PowerState fake_power_change(FakePower *power);
bool fake_power_is_off(FakePower *power);

typedef struct FakeStore FakeStore;

/** @size_bytes of zeros. @power: NULL: always on. Free with store_free(). */
FakeStore *fake_store_new(uint64_t size_bytes, bool durable, FakePower *power);
Store *fake_store_base(FakeStore *store);

/** What is in it now, cache included; the test may change it. */
uint8_t *fake_store_bytes(FakeStore *store);

/** The next reads (writes, flushes) after @skip of them fail with @error (positive errno), once. */
void fake_store_fail_read(FakeStore *store, int skip, int error);
void fake_store_fail_write(FakeStore *store, int skip, int error);
void fake_store_fail_flush(FakeStore *store, int skip, int error);

/** Every call waits while it is shut. */
void fake_store_shut(FakeStore *store);
void fake_store_open(FakeStore *store);
/** How many calls wait for that. */
unsigned fake_store_waiting(FakeStore *store);

/** What the medium has after the crash: of each sector that was not flushed, the old or the new
 * content. A new store with another power. */
FakeStore *fake_store_after_crash(FakeStore *store, FakePower *power);
