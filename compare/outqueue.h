/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* outqueue.h - released packets on their way to the output socket */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * OutQueue: chunks of framed packets, filled by any thread, written by one. A chunk starts at a
 * packet and holds whole packets, so a peer that comes after another one left starts with a whole
 * packet. If the thread that writes also fills, packets can be lent instead of copied: a chunk then
 * is a stretch of the buffer they were read into.
 */
typedef struct OutQueue OutQueue;
typedef struct OutChunk OutChunk;

OutQueue *outqueue_new(bool vnet_hdr);
void outqueue_free(OutQueue *queue);

/** Adds a packet to the caller's own *@chunk (NULL at first); a full one goes to the queue. Any
 * thread. False: no memory.
 */
bool outqueue_add(OutQueue *queue, OutChunk **chunk, const uint8_t *bytes, uint32_t len,
                  uint8_t vnet_hdr_len);
/** The same, but @bytes stay where they are, and valid, until outqueue_keep(); right before them
 * lies the header they came with, which is the one they leave with. May copy nevertheless, if they
 * are no longer one stretch with others. Only in the thread that writes.
 */
bool outqueue_lend(OutQueue *queue, OutChunk **chunk, const uint8_t *bytes, uint32_t len,
                   uint8_t vnet_hdr_len);
/** Copies what was lent and is not written yet. No lent chunk may be in anybody's hands. */
bool outqueue_keep(OutQueue *queue);
/** Puts what is in *@chunk on the queue. Any thread. */
void outqueue_push(OutQueue *queue, OutChunk **chunk);

/** Bytes on the queue. Any thread. */
size_t outqueue_bytes(const OutQueue *queue);

/** Writes to @fd as much as it takes. Return: 0 all written, -EAGAIN, or another negative errno. */
int outqueue_write(OutQueue *queue, int fd);
/** The peer is gone: a packet of which it got only a part is sent again to the next. */
void outqueue_rewind(OutQueue *queue);
