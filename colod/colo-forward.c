/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-forward.c - parser of the primary-to-secondary direction of QEMU's migration stream */
/*
 * Theory of operation
 *
 * The stream of an x-colo migration, as QEMU 11.1 writes it (docs/qemu-compat.md):
 *
 *   "QEVM" be32 3
 *   07 CONFIGURATION: be32 length, machine name; perhaps subsections (05)
 *   08 COMMANDs: OPEN_RETURN_PATH, PING
 *   01 START of "ram": MEM_SIZE record with the list of blocks, EOS; footer
 *   02 PARTs of it: page records, EOS; footer
 *   08 COMMAND SWITCHOVER_START
 *   03 END of it; footer
 *   04 FULL, the device state: tells no length, so it is opaque until colo_forward_set_ready()
 *   and then for each checkpoint
 *   REQUEST, SEND, 03 END of "ram" with the delta, footer, 00, SIZE be64, that many bytes (the
 * tail)
 *
 * Each state has a function and takes one item of known length; a split item is gathered. What lies
 * between items (page contents, names nobody needs, the tail) is skipped in one step, so that the
 * cost is per page record. Nothing is allocated, and no number in the stream sizes anything.
 *
 * What we do not know, or what must be off (xbzrle, compression, multifd, mapped-ram, postcopy,
 * virtio-mem's early device sections), is an error: such a stream could be read in two ways, and
 * the gate must know where a checkpoint ends.
 */
#include "colo-stream.h"
#include "colo-gather.h"

/* Section types, QEMU migration/savevm.h. */
enum {
    SECTION_EOF = 0x00,
    SECTION_START = 0x01,
    SECTION_PART = 0x02,
    SECTION_END = 0x03,
    SECTION_FULL = 0x04,
    SECTION_SUBSECTION = 0x05,
    SECTION_CONFIGURATION = 0x07,
    SECTION_COMMAND = 0x08,
    SECTION_FOOTER = 0x7e,
};

/* RAM_SAVE_FLAG_*, QEMU migration/ram.h. */
enum {
    FLAG_ZERO = 0x02,
    FLAG_MEM_SIZE = 0x04,
    FLAG_PAGE = 0x08,
    FLAG_EOS = 0x10,
    FLAG_CONTINUE = 0x20,
    FLAGS_MASK = 0xfff,
};

enum {
    PAGE_BYTES = 4096,
    STREAM_VERSION = 3,
    RAM_VERSION = 4,
    MACHINE_NAME_MAX_BYTES = 255,
    SUBSECTION_NAME_MAX_BYTES = 64,
    /* Section and record heads. */
    HEADER_BYTES = 8,
    COMMAND_BYTES = 4,
    RECORD_BYTES = 8,
    SECTION_ID_BYTES = 4,
    FOOTER_BYTES = 1 + SECTION_ID_BYTES,
    INSTANCE_VERSION_BYTES = 8,
    SUBSECTION_VERSION_BYTES = 4,
    BLOCK_LENGTH_BYTES = 8,
    SIZE_BYTES = 8,
};

typedef enum ForwardState {
    STATE_HEADER,
    STATE_CONFIGURATION, /* type byte */
    STATE_MACHINE_LENGTH,
    STATE_SECTION, /* type byte of the initial migration; the first after 07 may be a subsection */
    STATE_SUBSECTION_LENGTH,
    STATE_SUBSECTION_HEAD,
    STATE_COMMAND,
    STATE_START_ID,
    STATE_START_LENGTH,
    STATE_START_NAME,
    STATE_SECTION_ID,   /* of PART and END */
    STATE_RECORD,       /* addr | flags */
    STATE_RECORD_NAME,  /* length of a block's name in a page record */
    STATE_BLOCK_LENGTH, /* length of a block's name in MEM_SIZE */
    STATE_BLOCK,        /* its name and length */
    STATE_FOOTER,
    STATE_OPAQUE,
    STATE_REQUEST,
    STATE_SEND,
    STATE_DELTA, /* type byte */
    STATE_DELTA_EOF,
    STATE_SIZE,
    STATE_SIZE_VALUE,
    STATE_TAIL_END,
} ForwardState;

struct ColoForward {
    ForwardState state;
    size_t need;         /* bytes of the item, if its state's are not fixed */
    uint64_t skip_bytes; /* before the item */
    uint64_t offset;     /* consumed */
    ColoGather gather;
    GError *error; /* set: dead */

    uint64_t tail_max_bytes;
    uint32_t ram_id;
    uint8_t section;     /* type of the section under way */
    bool may_subsection; /* only CONFIGURATION's subsections have come so far */
    bool ram_started, ram_over;
    bool mem_size_seen, block_named;
    bool in_colo;
    uint64_t blocks_left_bytes; /* of MEM_SIZE's total */
    unsigned record_flags;

    uint64_t pages, tail_bytes;
    uint64_t delta_start; /* offset behind VMSTATE_SEND */
    uint64_t delta_end;   /* offset behind the tail, between checkpoints */
};

typedef struct ForwardStep {
    uint8_t need; /* bytes of the item; 0: parser->need, or none at all */
    gboolean (*run)(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error);
} ForwardStep;

ColoForward *
colo_forward_new(uint64_t tail_max_bytes)
{
    ColoForward *parser = g_new0(ColoForward, 1);

    parser->tail_max_bytes = tail_max_bytes;
    return parser;
}

void
colo_forward_free(ColoForward *parser)
{
    if (!parser)
        return;
    g_clear_error(&parser->error);
    g_free(parser);
}

G_GNUC_PRINTF(5, 6)
static gboolean
fail(const ColoForward *parser, View item, ColoStreamError code, GError **error, const char *format,
     ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, COLO_STREAM_ERROR, code, "%s (offset %" G_GUINT64_FORMAT ")", text,
                parser->offset - item.len);
    return FALSE;
}

/* --- The initial migration ------------------------------------------------------------------ */

static gboolean
run_header(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
           GError **error)
{
    if (memcmp(item.data, "QEVM", 4) != 0 || be32_load(item.data + 4) != STREAM_VERSION)
        return fail(parser, item, COLO_STREAM_ERROR_MAGIC, error,
                    "not a QEMU migration stream of version 3");
    parser->state = STATE_CONFIGURATION;
    return TRUE;
}

static gboolean
run_configuration(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                  GError **error)
{
    if (item.data[0] != SECTION_CONFIGURATION)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error,
                    "section 0x%02x where CONFIGURATION was due", item.data[0]);
    parser->state = STATE_MACHINE_LENGTH;
    return TRUE;
}

static gboolean
run_machine_length(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                   GError **error)
{
    uint32_t length = be32_load(item.data);

    if (length == 0 || length > MACHINE_NAME_MAX_BYTES)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "machine name of %u bytes",
                    length);
    parser->skip_bytes = length;
    parser->may_subsection = true;
    parser->state = STATE_SECTION;
    return TRUE;
}

static gboolean
run_section(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
            GError **error)
{
    uint8_t type = item.data[0];
    bool may_subsection = parser->may_subsection;

    parser->section = type;
    parser->may_subsection = false;
    if (type == SECTION_SUBSECTION && may_subsection)
        parser->state = STATE_SUBSECTION_LENGTH;
    else if (type == SECTION_COMMAND)
        parser->state = STATE_COMMAND;
    else if (type == SECTION_START && !parser->ram_started)
        parser->state = STATE_START_ID;
    else if ((type == SECTION_PART || type == SECTION_END) && parser->ram_started &&
             !parser->ram_over)
        parser->state = STATE_SECTION_ID;
    else if (type == SECTION_FULL && parser->ram_over)
        parser->state = STATE_OPAQUE;
    else
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error, "section 0x%02x %s", type,
                    !parser->ram_started ? "before the RAM"
                    : parser->ram_over   ? "after the RAM"
                                         : "within the RAM");
    return TRUE;
}

static gboolean
run_subsection_length(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                      GError **error)
{
    if (item.data[0] == 0 || item.data[0] > SUBSECTION_NAME_MAX_BYTES)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "subsection name of %u bytes",
                    item.data[0]);
    parser->need = item.data[0] + SUBSECTION_VERSION_BYTES;
    parser->state = STATE_SUBSECTION_HEAD;
    return TRUE;
}

/* A subsection tells no length, so only those can pass whose length we know (QEMU
 * migration/savevm.c, vmstate_configuration). */
static gboolean
run_subsection_head(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                    GError **error)
{
    static const struct {
        const char *name;
        unsigned bytes;
    } known[] = {
        {"configuration/target-page-bits", 4},
        {"configuration/uuid", 16}, /* capability validate-uuid */
    };
    size_t length = item.len - SUBSECTION_VERSION_BYTES;

    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (strlen(known[i].name) != length || memcmp(known[i].name, item.data, length) != 0)
            continue;
        parser->skip_bytes = known[i].bytes;
        parser->may_subsection = true;
        parser->state = STATE_SECTION;
        return TRUE;
    }
    g_autofree char *name = g_strndup((const char *)item.data, length);
    g_autofree char *shown = g_strescape(name, NULL);

    return fail(parser, item, COLO_STREAM_ERROR_SECTION, error, "subsection %s of CONFIGURATION",
                shown);
}

static gboolean
run_command(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
            GError **error)
{
    /* enum qemu_vm_cmd, QEMU migration/savevm.c; the others belong to postcopy, and one of them
     * (PACKAGED) is followed by more than its length says. */
    static const struct {
        uint16_t command, bytes;
    } known[] = {
        {1, 0},  /* OPEN_RETURN_PATH */
        {2, 4},  /* PING */
        {9, 0},  /* ENABLE_COLO, before QEMU 11 */
        {11, 0}, /* SWITCHOVER_START */
    };
    unsigned command = be16_load(item.data);
    unsigned bytes = be16_load(item.data + 2);

    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (known[i].command != command)
            continue;
        if (known[i].bytes != bytes)
            return fail(parser, item, COLO_STREAM_ERROR_SIZE, error,
                        "command %u with %u bytes, %u are due", command, bytes, known[i].bytes);
        parser->skip_bytes = bytes;
        parser->state = STATE_SECTION;
        return TRUE;
    }
    return fail(parser, item, COLO_STREAM_ERROR_SECTION, error, "command %u is not for COLO",
                command);
}

static gboolean
run_start_id(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
             GError **error G_GNUC_UNUSED)
{
    parser->ram_id = be32_load(item.data);
    parser->state = STATE_START_LENGTH;
    return TRUE;
}

static gboolean
run_start_length(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                 GError **error)
{
    if (item.data[0] == 0)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "section name of 0 bytes");
    parser->need = item.data[0] + INSTANCE_VERSION_BYTES;
    parser->state = STATE_START_NAME;
    return TRUE;
}

static gboolean
run_start_name(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
               GError **error)
{
    static const uint8_t ram[] = {'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, RAM_VERSION};

    if (item.len != sizeof(ram) || memcmp(item.data, ram, sizeof(ram)) != 0)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error,
                    "a live section that is not \"ram\", instance 0, version %u", RAM_VERSION);
    parser->ram_started = true;
    parser->state = STATE_RECORD;
    return TRUE;
}

/* --- RAM, in the initial migration and in a delta -------------------------------------------- */

static gboolean
run_section_id(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
               GError **error)
{
    uint32_t id = be32_load(item.data);

    if (id != parser->ram_id)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error,
                    "section id %u where the RAM's %u was due", id, parser->ram_id);
    parser->state = STATE_RECORD;
    return TRUE;
}

static gboolean
start_mem_size(ColoForward *parser, View item, uint64_t total_bytes, GError **error)
{
    if (parser->section != SECTION_START || parser->mem_size_seen)
        return fail(parser, item, COLO_STREAM_ERROR_FLAGS, error, "MEM_SIZE out of place");
    if (total_bytes == 0)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "MEM_SIZE of no RAM");
    parser->mem_size_seen = true;
    parser->blocks_left_bytes = total_bytes;
    parser->state = STATE_BLOCK_LENGTH;
    return TRUE;
}

static void
skip_page(ColoForward *parser, unsigned name_bytes)
{
    parser->skip_bytes = name_bytes + (parser->record_flags & FLAG_ZERO ? 1u : PAGE_BYTES);
    parser->pages++;
    parser->state = STATE_RECORD;
}

static gboolean
run_record(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
           GError **error)
{
    uint64_t record = be64_load(item.data);
    unsigned flags = record & FLAGS_MASK;
    unsigned kind = flags & ~(unsigned)FLAG_CONTINUE;

    parser->record_flags = flags;
    if (record == FLAG_EOS && (parser->section != SECTION_START || parser->mem_size_seen)) {
        parser->state = STATE_FOOTER;
        return TRUE;
    }
    if (flags == FLAG_MEM_SIZE)
        return start_mem_size(parser, item, record - FLAG_MEM_SIZE, error);
    if (kind != FLAG_ZERO && kind != FLAG_PAGE)
        return fail(parser, item, COLO_STREAM_ERROR_FLAGS, error,
                    "page flags 0x%03x (xbzrle 0x40, compression 0x100 and multifd 0x200 must be "
                    "off)",
                    flags);
    if (parser->section == SECTION_START || (flags & FLAG_CONTINUE && !parser->block_named))
        return fail(parser, item, COLO_STREAM_ERROR_FLAGS, error, "page flags 0x%03x out of place",
                    flags);
    if (flags & FLAG_CONTINUE)
        skip_page(parser, 0);
    else
        parser->state = STATE_RECORD_NAME;
    return TRUE;
}

static gboolean
run_record_name(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                GError **error)
{
    if (item.data[0] == 0)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "block name of 0 bytes");
    parser->block_named = true;
    skip_page(parser, item.data[0]);
    return TRUE;
}

static gboolean
run_block_length(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED,
                 GError **error)
{
    if (item.data[0] == 0)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error, "block name of 0 bytes");
    parser->need = item.data[0] + BLOCK_LENGTH_BYTES;
    parser->state = STATE_BLOCK;
    return TRUE;
}

static gboolean
run_block(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED, GError **error)
{
    uint64_t bytes = be64_load(item.data + item.len - BLOCK_LENGTH_BYTES);

    /* QEMU's receiver counts down the same way: with postcopy, ignore-shared or mapped-ram there
     * would be more fields here, and the sum would not come out. */
    if (bytes == 0 || bytes > parser->blocks_left_bytes)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error,
                    "a block of %" G_GUINT64_FORMAT " bytes with %" G_GUINT64_FORMAT
                    " left of MEM_SIZE",
                    bytes, parser->blocks_left_bytes);
    parser->blocks_left_bytes -= bytes;
    parser->state = parser->blocks_left_bytes > 0 ? STATE_BLOCK_LENGTH : STATE_RECORD;
    return TRUE;
}

static gboolean
run_footer(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error)
{
    if (item.data[0] != SECTION_FOOTER || be32_load(item.data + 1) != parser->ram_id)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error, "no footer behind the RAM");
    parser->state = parser->in_colo ? STATE_DELTA_EOF : STATE_SECTION;
    if (!parser->in_colo && parser->section == SECTION_END) {
        parser->ram_over = true;
        *ret_event = COLO_FORWARD_DEVICE_STATE;
    }
    return TRUE;
}

/* --- Checkpoints ------------------------------------------------------------------------------ */

static gboolean
run_request(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error)
{
    if (!colo_message_check(item.data, COLO_MESSAGE_CHECKPOINT_REQUEST, parser->offset - item.len,
                            error))
        return FALSE;
    parser->state = STATE_SEND;
    *ret_event = COLO_FORWARD_REQUEST;
    return TRUE;
}

static gboolean
run_send(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error)
{
    if (!colo_message_check(item.data, COLO_MESSAGE_VMSTATE_SEND, parser->offset - item.len, error))
        return FALSE;
    parser->delta_start = parser->offset;
    parser->pages = parser->tail_bytes = 0;
    parser->state = STATE_DELTA;
    *ret_event = COLO_FORWARD_SEND;
    return TRUE;
}

static gboolean
run_delta(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED, GError **error)
{
    if (item.data[0] != SECTION_END)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error,
                    "section 0x%02x where the RAM delta was due", item.data[0]);
    parser->section = SECTION_END;
    parser->state = STATE_SECTION_ID;
    return TRUE;
}

static gboolean
run_delta_eof(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error)
{
    if (item.data[0] != SECTION_EOF)
        return fail(parser, item, COLO_STREAM_ERROR_SECTION, error,
                    "section 0x%02x behind the RAM delta", item.data[0]);
    parser->state = STATE_SIZE;
    *ret_event = COLO_FORWARD_RAM_END;
    return TRUE;
}

static gboolean
run_size(ColoForward *parser, View item, ColoForwardEvent *ret_event G_GNUC_UNUSED, GError **error)
{
    if (!colo_message_check(item.data, COLO_MESSAGE_VMSTATE_SIZE, parser->offset - item.len, error))
        return FALSE;
    parser->state = STATE_SIZE_VALUE;
    return TRUE;
}

static gboolean
run_size_value(ColoForward *parser, View item, ColoForwardEvent *ret_event, GError **error)
{
    uint64_t bytes = be64_load(item.data);

    if (bytes == 0 || bytes > parser->tail_max_bytes)
        return fail(parser, item, COLO_STREAM_ERROR_SIZE, error,
                    "VMSTATE_SIZE %" G_GUINT64_FORMAT ", 1 .. %" G_GUINT64_FORMAT " is accepted",
                    bytes, parser->tail_max_bytes);
    parser->tail_bytes = parser->skip_bytes = bytes;
    parser->state = STATE_TAIL_END;
    *ret_event = COLO_FORWARD_SIZE;
    return TRUE;
}

static gboolean
run_tail_end(ColoForward *parser, View item G_GNUC_UNUSED, ColoForwardEvent *ret_event,
             GError **error G_GNUC_UNUSED)
{
    parser->delta_end = parser->offset;
    parser->state = STATE_REQUEST;
    *ret_event = COLO_FORWARD_TAIL_END;
    return TRUE;
}

static const ForwardStep steps[] = {
    [STATE_HEADER] = {HEADER_BYTES, run_header},
    [STATE_CONFIGURATION] = {1, run_configuration},
    [STATE_MACHINE_LENGTH] = {4, run_machine_length},
    [STATE_SECTION] = {1, run_section},
    [STATE_SUBSECTION_LENGTH] = {1, run_subsection_length},
    [STATE_SUBSECTION_HEAD] = {0, run_subsection_head},
    [STATE_COMMAND] = {COMMAND_BYTES, run_command},
    [STATE_START_ID] = {SECTION_ID_BYTES, run_start_id},
    [STATE_START_LENGTH] = {1, run_start_length},
    [STATE_START_NAME] = {0, run_start_name},
    [STATE_SECTION_ID] = {SECTION_ID_BYTES, run_section_id},
    [STATE_RECORD] = {RECORD_BYTES, run_record},
    [STATE_RECORD_NAME] = {1, run_record_name},
    [STATE_BLOCK_LENGTH] = {1, run_block_length},
    [STATE_BLOCK] = {0, run_block},
    [STATE_FOOTER] = {FOOTER_BYTES, run_footer},
    [STATE_OPAQUE] = {0, NULL},
    [STATE_REQUEST] = {COLO_MESSAGE_BYTES, run_request},
    [STATE_SEND] = {COLO_MESSAGE_BYTES, run_send},
    [STATE_DELTA] = {1, run_delta},
    [STATE_DELTA_EOF] = {1, run_delta_eof},
    [STATE_SIZE] = {COLO_MESSAGE_BYTES, run_size},
    [STATE_SIZE_VALUE] = {SIZE_BYTES, run_size_value},
    [STATE_TAIL_END] = {0, run_tail_end},
};

/* Consumes what lies before the next item. False: more is needed. */
static bool
skip(ColoForward *parser, View *in)
{
    size_t part = parser->state == STATE_OPAQUE ? in->len : MIN(parser->skip_bytes, in->len);

    (void)view_skip(in, part);
    parser->offset += part;
    if (parser->state == STATE_OPAQUE)
        return false;
    parser->skip_bytes -= part;
    return parser->skip_bytes == 0;
}

/* The next item. False: more is needed. */
static bool
take_item(ColoForward *parser, View *in, View *ret_item)
{
    size_t need = steps[parser->state].need > 0 ? steps[parser->state].need : parser->need;

    if (parser->state == STATE_TAIL_END) {
        *ret_item = view_of(NULL, 0);
        return true;
    }

    size_t before = in->len;
    const uint8_t *bytes = colo_gather_take(&parser->gather, in, need);

    parser->offset += before - in->len;
    if (bytes)
        *ret_item = view_of(bytes, need);
    return bytes != NULL;
}

gboolean
colo_forward_parse(ColoForward *parser, View *in, ColoForwardEvent *ret_event, GError **error)
{
    ColoForwardEvent event = COLO_FORWARD_NONE;
    View item;

    while (!parser->error && event == COLO_FORWARD_NONE) {
        if (!skip(parser, in) || !take_item(parser, in, &item))
            break;
        (void)steps[parser->state].run(parser, item, &event, &parser->error);
    }
    if (parser->error) {
        g_propagate_error(error, g_error_copy(parser->error));
        return FALSE;
    }
    *ret_event = event;
    return TRUE;
}

gboolean
colo_forward_set_ready(ColoForward *parser, GError **error)
{
    if (parser->state != STATE_OPAQUE) {
        g_set_error(error, COLO_STREAM_ERROR, COLO_STREAM_ERROR_ORDER,
                    "CHECKPOINT_READY before the initial RAM was over (offset %" G_GUINT64_FORMAT
                    ")",
                    parser->offset);
        return FALSE;
    }
    parser->in_colo = true;
    parser->state = STATE_REQUEST;
    return TRUE;
}

uint64_t
colo_forward_pages(const ColoForward *parser)
{
    return parser->pages;
}

uint64_t
colo_forward_bytes(const ColoForward *parser)
{
    bool between = parser->state < STATE_DELTA && parser->state >= STATE_REQUEST;

    if (!parser->in_colo)
        return 0;
    return (between ? parser->delta_end : parser->offset) - parser->delta_start;
}

uint64_t
colo_forward_tail_bytes(const ColoForward *parser)
{
    return parser->tail_bytes;
}
