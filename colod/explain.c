/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* explain.c - why checkpoints happen: differences between the guests, grouped, with advice
 *
 * Differences are grouped by rule and by the service they belong to: the lower one of the two
 * ports, which is the well-known one in nearly all cases. The flow of each group's last one is an
 * example.
 */
#include "explain.h"

#include <errno.h>

#include "clock.h"

/* A divergence with copies of all that it points to. */
typedef struct Copy {
    DivergenceRecord record;
    guint8 *frames[2];
} Copy;

struct ExplainRecords {
    GPtrArray *copies; /* Copy */
};

typedef struct Group {
    CompareRule rule;
    FrameClass cls;
    guint16 port; /* 0: none */
    unsigned count;
    const DivergenceRecord *last;
} Group;

static void
copy_free(gpointer data)
{
    Copy *copy = data;

    g_free(copy->frames[0]);
    g_free(copy->frames[1]);
    g_free(copy);
}

ExplainRecords *
explain_records_new(void)
{
    ExplainRecords *records = g_new0(ExplainRecords, 1);

    records->copies = g_ptr_array_new_with_free_func(copy_free);
    return records;
}

void
explain_records_free(ExplainRecords *records)
{
    if (!records)
        return;
    g_ptr_array_unref(records->copies);
    g_free(records);
}

void
explain_records_add(ExplainRecords *records, const DivergenceRecord *record)
{
    Copy *copy = g_new0(Copy, 1);
    CompareDivergence *d = &copy->record.d;

    copy->record = *record;
    if (d->flow) {
        copy->record.flow = *record->d.flow;
        d->flow = &copy->record.flow;
    }
    d->primary_frame = copy->frames[0] = g_memdup2(d->primary_frame, d->primary_len);
    d->secondary_frame = copy->frames[1] = g_memdup2(d->secondary_frame, d->secondary_len);
    g_ptr_array_add(records->copies, copy);
}

unsigned
explain_records_count(const ExplainRecords *records)
{
    return records->copies->len;
}

/* --- Groups ---------------------------------------------------------------------------------- */

static Group
group_of(const DivergenceRecord *record)
{
    Group group = {.rule = record->d.rule, .cls = FRAME_N_CLASSES, .count = 1, .last = record};
    guint16 ports[2];

    if (!record->d.flow)
        return group;
    group.cls = frame_key_class(record->d.flow);
    if (group.cls == FRAME_TCP || group.cls == FRAME_UDP) {
        frame_key_ports(record->d.flow, ports);
        group.port = MIN(ports[0], ports[1]);
    }
    return group;
}

static void
count(GArray *groups, const DivergenceRecord *record)
{
    const Group group = group_of(record);

    for (guint i = 0; i < groups->len; i++) {
        Group *known = &g_array_index(groups, Group, i);

        if (known->rule == group.rule && known->cls == group.cls && known->port == group.port) {
            known->count++;
            known->last = record;
            return;
        }
    }
    g_array_append_val(groups, group);
}

static gint
by_count(gconstpointer a, gconstpointer b)
{
    const Group *x = a, *y = b;

    return (x->count < y->count) - (x->count > y->count);
}

static char *
what(const Group *group)
{
    if (group->cls == FRAME_N_CLASSES)
        return g_strdup("all flows");
    if (group->port)
        return g_strdup_printf("%s port %u", frame_class_name(group->cls), group->port);
    return g_strdup(frame_class_name(group->cls));
}

/* What to change, by the service: its content is different in two equal guests by design. */
static const char *
advice_for_port(guint16 port)
{
    switch (port) {
    case 53:
        return "DNS queries have random ids and ports: let the guest use a resolver of its own "
               "(a cache) so that they are few";
    case 123:
        return "NTP tells the time, which the two guests read at different moments: give the "
               "guest a clock from the host (kvm-clock, ptp_kvm) and stop its NTP client";
    case 22:
    case 443:
    case 853:
    case 993:
    case 8443:
        return "each TLS or SSH handshake draws random numbers, so each new connection costs a "
               "checkpoint: keep connections open, or end TLS before the guest";
    default:
        return NULL;
    }
}

static const char *
advice(const Group *group)
{
    switch (group->rule) {
    case COMPARE_RULE_TIMEOUT_PRIMARY:
    case COMPARE_RULE_TIMEOUT_SECONDARY:
        if (group->cls == FRAME_ARP || group->cls == FRAME_L2_OTHER || group->cls == FRAME_IP_OTHER)
            return "if these frames carry nothing of worth, other-frames=pass lets them leave "
                   "uncompared";
        if (group->cls == FRAME_TCP)
            return "one guest was silent: a slower or busier host, a timer or a full table of the "
                   "guest's (TIME_WAIT, if its TCPTimeWaitOverflow grows: raise "
                   "net.ipv4.tcp_max_tw_buckets), or a lost frame; if the host is only slow, raise "
                   "compare-timeout-ms";
        return "one guest was silent: a slower or busier host, a timer of the guest's, or a lost "
               "frame; if the host is only slow, raise compare-timeout-ms";
    case COMPARE_RULE_MEMORY:
    case COMPARE_RULE_FLOWS:
        return "a bound of the comparison was reached: the secondary does not keep up";
    case COMPARE_RULE_PAYLOAD:
    case COMPARE_RULE_SYN:
    case COMPARE_RULE_FIN:
    case COMPARE_RULE_RST:
    case COMPARE_RULE_FRAGMENT:
    case COMPARE_RULE_REORDER:
    case COMPARE_N_RULES:
        break;
    }
    return advice_for_port(group->port);
}

static json_object *
group_to_json(const Group *group, gint64 now_ns)
{
    const CompareDivergence *d = &group->last->d;
    json_object *object = json_object_new_object();
    g_autofree char *label = what(group);
    const char *hint = advice(group);
    char flow[160] = "";

    if (d->flow)
        frame_key_format(d->flow, flow, sizeof(flow));
    json_object_object_add(object, "what", json_object_new_string(label));
    json_object_object_add(object, "rule", json_object_new_string(compare_rule_name(d->rule)));
    json_object_object_add(object, "count", json_object_new_int64(group->count));
    json_object_object_add(
        object, "last_s",
        json_object_new_double((double)MAX(now_ns - d->time_ns, 0) / (double)NS_PER_S));
    json_object_object_add(object, "waited_ms",
                           json_object_new_double((double)d->waited_ns / (double)NS_PER_MS));
    json_object_object_add(object, "flow", json_object_new_string(flow));
    if (hint)
        json_object_object_add(object, "advice", json_object_new_string(hint));
    return object;
}

json_object *
explain_records_to_json(const ExplainRecords *records, gint64 now_ns)
{
    g_autoptr(GArray) groups = g_array_new(FALSE, FALSE, sizeof(Group));
    json_object *list = json_object_new_array();

    for (guint i = 0; i < records->copies->len; i++)
        count(groups, &((Copy *)g_ptr_array_index(records->copies, i))->record);
    g_array_sort(groups, by_count);
    for (guint i = 0; i < groups->len; i++)
        json_object_array_add(list, group_to_json(&g_array_index(groups, Group, i), now_ns));
    return list;
}

/* --- Captures -------------------------------------------------------------------------------- */

static gboolean
save_one(const DivergenceRecord *record, const char *dir, GError **error)
{
    g_autofree char *name = g_strdup_printf("%06" G_GUINT64_FORMAT "-%s.pcapng", record->number,
                                            compare_rule_name(record->d.rule));
    g_autofree char *path = g_build_filename(dir, name, NULL);
    PcapngWriter *writer = NULL;
    int r = pcapng_writer_open(path, &writer);

    if (r == 0) {
        pcapng_writer_add_interface(writer, "primary");
        pcapng_writer_add_interface(writer, "secondary");
        divergence_write_pcapng(&record->d, writer);
        r = pcapng_writer_close(writer);
    }
    if (r == 0)
        return TRUE;
    g_set_error(error, G_FILE_ERROR, (gint)g_file_error_from_errno(-r), "%s: %s", path,
                g_strerror(-r));
    return FALSE;
}

gboolean
explain_records_save(const ExplainRecords *records, const char *dir, GError **error)
{
    for (guint i = 0; i < records->copies->len; i++)
        if (!save_one(&((Copy *)g_ptr_array_index(records->copies, i))->record, dir, error))
            return FALSE;
    return TRUE;
}

/* --- Causes ---------------------------------------------------------------------------------- */

void
explain_causes_add(ExplainCauses *causes, CheckpointCause cause, gint64 now_ns)
{
    const unsigned slot = causes->n++ % EXPLAIN_RECENT;

    causes->recent[slot].ns = now_ns;
    causes->recent[slot].cause = cause;
}

json_object *
explain_causes_to_json(const ExplainCauses *causes, gint64 now_ns)
{
    json_object *object = json_object_new_object();
    gint64 counts[N_CAUSES] = {0};

    for (unsigned i = 0; i < MIN(causes->n, EXPLAIN_RECENT); i++)
        if (now_ns - causes->recent[i].ns <= EXPLAIN_WINDOW_S * NS_PER_S)
            counts[causes->recent[i].cause]++;
    for (int i = 0; i < N_CAUSES; i++)
        json_object_object_add(object, checkpoint_cause_name((CheckpointCause)i),
                               json_object_new_int64(counts[i]));
    return object;
}
