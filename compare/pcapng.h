/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pcapng.h - what libpcap does not do: write pcapng with comments, tell interfaces apart */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* PcapngWriter: a file with one section (draft-ietf-opsawg-pcapng). Errors are kept and returned by
 * pcapng_writer_close(). */
typedef struct PcapngWriter PcapngWriter;

/** Creates @path. Return: 0 or a negative errno. */
int pcapng_writer_open(const char *path, PcapngWriter **ret_writer);
/** Adds an Ethernet interface with nanosecond times; they are numbered from 0. */
void pcapng_writer_add_interface(PcapngWriter *writer, const char *name);
/** @comment may be NULL. */
void pcapng_writer_add_packet(PcapngWriter *writer, uint32_t interface, int64_t time_ns,
                              const uint8_t *bytes, uint32_t len, const char *comment);
/** Return: 0, or the negative errno of the first write that failed. Frees @writer in any case. */
int pcapng_writer_close(PcapngWriter *writer);

/** Moves @file, at a block boundary, behind the next block that holds a packet.
 *
 * libpcap returns the packets of a pcapng file in order but not their interface; walking the blocks
 * beside it tells. @swapped is state of the walk, false at the start.
 * Return: 0 and the packet's interface; -ENODATA at the end; -EBADMSG if this is no pcapng.
 */
int pcapng_next_interface(FILE *file, bool *swapped, uint32_t *ret_interface);
/** True if @file starts like pcapng. Leaves it at its beginning. */
bool pcapng_detect(FILE *file);
