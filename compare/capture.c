/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* capture.c - the packets of a capture file, with their interface */
#include "capture.h"

#include <errno.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "clock.h"
#include "pcapng.h"

struct Capture {
    char *path;
    pcap_t *pcap;
    FILE *walk; /* pcapng only: the same file again, for the interfaces */
    bool walk_swapped;
    off_t size;
    CapturePacket packet;
};

static gboolean
open_walk(Capture *c, GError **error)
{
    struct stat st;

    c->walk = fopen(c->path, "rbe");
    if (!c->walk || fstat(fileno(c->walk), &st) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", c->path,
                    g_strerror(errno));
        return FALSE;
    }
    c->size = st.st_size;
    if (!pcapng_detect(c->walk)) {
        (void)fclose(c->walk);
        c->walk = NULL;
    }
    return TRUE;
}

static gboolean
open_pcap(Capture *c, GError **error)
{
    char why[PCAP_ERRBUF_SIZE] = "";

    c->pcap = pcap_open_offline_with_tstamp_precision(c->path, PCAP_TSTAMP_PRECISION_NANO, why);
    if (!c->pcap) {
        /* libpcap names the file in some of its messages. */
        const char *reason = g_str_has_prefix(why, c->path) ? why + strlen(c->path) + 2 : why;

        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s: %s", c->path, reason);
        return FALSE;
    }
    if (pcap_datalink(c->pcap) != DLT_EN10MB) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s: link type %s, not Ethernet",
                    c->path, pcap_datalink_val_to_description_or_dlt(pcap_datalink(c->pcap)));
        return FALSE;
    }
    return TRUE;
}

Capture *
capture_open(const char *path, GError **error)
{
    Capture *c = g_new0(Capture, 1);

    c->path = g_strdup(path);
    if (open_walk(c, error) && open_pcap(c, error))
        return c;
    capture_free(c);
    return NULL;
}

void
capture_free(Capture *c)
{
    if (!c)
        return;
    if (c->pcap)
        pcap_close(c->pcap);
    if (c->walk)
        (void)fclose(c->walk);
    g_free(c->path);
    g_free(c);
}

static gboolean
fill_packet(Capture *c, const struct pcap_pkthdr *header, const u_char *bytes, GError **error)
{
    c->packet.number++;
    if (header->caplen < header->len) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: packet %" G_GUINT64_FORMAT
                    ": only %u of %u bytes were captured; capture with a larger snap length",
                    c->path, c->packet.number, header->caplen, header->len);
        return FALSE;
    }
    if (c->walk && pcapng_next_interface(c->walk, &c->walk_swapped, &c->packet.interface) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: packet %" G_GUINT64_FORMAT ": the blocks of the file are damaged", c->path,
                    c->packet.number);
        return FALSE;
    }
    c->packet.time_ns = (int64_t)header->ts.tv_sec * NS_PER_S + header->ts.tv_usec;
    c->packet.bytes = bytes;
    c->packet.len = header->caplen;
    return TRUE;
}

gboolean
capture_next(Capture *c, const CapturePacket **ret_packet, GError **error)
{
    struct pcap_pkthdr *header;
    const u_char *bytes;
    int r = pcap_next_ex(c->pcap, &header, &bytes);

    if (r == PCAP_ERROR_BREAK) {
        *ret_packet = NULL;
        return TRUE;
    }
    if (r != 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: packet %" G_GUINT64_FORMAT ": %s", c->path, c->packet.number + 1,
                    pcap_geterr(c->pcap));
        return FALSE;
    }
    if (!fill_packet(c, header, bytes, error))
        return FALSE;
    *ret_packet = &c->packet;
    return TRUE;
}

double
capture_progress(const Capture *c)
{
    long at = ftell(pcap_file(c->pcap));

    return c->size > 0 && at >= 0 ? (double)at / (double)c->size : 1;
}
