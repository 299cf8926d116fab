/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* capture.h - the packets of a capture file, with their interface */
#pragma once

#include <gio/gio.h>
#include <stdbool.h>
#include <stdint.h>

/* Capture: a pcap or pcapng file being read, by libpcap. One thread. */
typedef struct Capture Capture;

typedef struct CapturePacket {
    int64_t time_ns;      /* since the Unix epoch */
    const uint8_t *bytes; /* valid until the next call */
    uint32_t len;
    uint32_t interface; /* 0 in pcap files */
    uint64_t number;    /* from 1, as other tools count */
} CapturePacket;

/** Opens @path. Errors (G_IO_ERROR) name the file and what is wrong with it. */
Capture *capture_open(const char *path, GError **error);
void capture_free(Capture *capture);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Capture, capture_free)

/** Reads the next packet.
 *
 * Return: true and the packet, or true and *@ret_packet NULL at the end; false and an error that
 * names file and packet: cut by the snap length, broken, not Ethernet.
 */
gboolean capture_next(Capture *capture, const CapturePacket **ret_packet, GError **error);

/** How much of the file was read, 0 to 1. */
double capture_progress(const Capture *capture);
