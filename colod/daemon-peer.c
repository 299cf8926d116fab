/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-peer.c - messages to and from the peer's colod (docs/PROTOCOL.md, "Peer link") */
#include "daemon-private.h"

#include <arpa/inet.h>
#include <string.h>

enum {
    RETRY_CONNECT_MS = 300,
    REASON_MAX_BYTES = 2048, /* even escaped, as JSON, far from a message's bound */
};

/* ---- sending ---- */

static void
add_generation(json_object *body, const char *key, guint64 generation)
{
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, generation);

    json_object_object_add(body, key, json_object_new_string(text));
}

/* Reasons quote what others said, the peer and QEMU: neither how long they are nor where they were
 * cut off is to be trusted. */
static void
add_reason(json_object *body, const char *reason)
{
    g_autofree char *cut = g_strndup(reason, REASON_MAX_BYTES);
    g_autofree char *valid = g_utf8_make_valid(cut, -1);

    json_object_object_add(body, "reason", json_object_new_string(valid));
}

/* @body: taken. */
static void
send_body(Daemon *d, PeerMessageType type, json_object *body)
{
    peer_link_send(d->link, type, body);
    json_object_put(body);
}

void
daemon_send_generation(Daemon *d, PeerMessageType type, guint64 generation, const char *reason)
{
    json_object *body = json_object_new_object();

    add_generation(body, "generation", generation);
    if (reason != NULL)
        add_reason(body, reason);
    send_body(d, type, body);
}

static json_object *
known_addresses(Daemon *d)
{
    ProxyAddress addresses[PROXY_MAX_ADDRESSES];
    json_object *list = json_object_new_array();
    unsigned n = d->proxy ? proxy_get_addresses(d->proxy, addresses) : 0;

    for (unsigned i = 0; i < n; i++) {
        char text[INET6_ADDRSTRLEN];
        json_object *entry = json_object_new_object();

        if (inet_ntop(addresses[i].ipv6 ? AF_INET6 : AF_INET, addresses[i].bytes, text,
                      sizeof(text)) == NULL)
            continue;
        json_object_object_add(entry, "nic", json_object_new_int((int)addresses[i].nic));
        json_object_object_add(entry, "address", json_object_new_string(text));
        json_object_array_add(list, entry);
    }
    return list;
}

static const char *
saved_role(const Daemon *d)
{
    return d->facts.role_primary ? "primary" : "none";
}

static json_object *
known_disks(Daemon *d)
{
    json_object *disks = json_object_new_object();

    if (!pair_state_has_vm(d->state))
        daemon_disks_refresh_facts(d);
    json_object_object_add(disks, "unfit", json_object_new_boolean(d->facts.disks_unfit));
    add_generation(disks, "generation", d->facts.disk_generation);
    json_object_object_add(disks, "want_checkpoint",
                           json_object_new_boolean(daemon_disks_want_checkpoint(d)));
    return disks;
}

void
daemon_send_state(Daemon *d)
{
    json_object *body;

    if (d->link == NULL || !peer_link_is_up(d->link))
        return;
    body = json_object_new_object();
    json_object_object_add(body, "state", json_object_new_string(pair_state_name(d->state)));
    json_object_object_add(body, "role", json_object_new_string(saved_role(d)));
    add_generation(body, "generation", d->facts.generation);
    json_object_object_add(body, "initial_primary",
                           json_object_new_boolean(d->config->initial_role == CONFIG_ROLE_PRIMARY));
    json_object_object_add(body, "heartbeat_limit_ms",
                           json_object_new_int64(d->config->heartbeat_limit_ms));
    json_object_object_add(body, "addresses", known_addresses(d));
    if (d->facts.has_disks)
        json_object_object_add(body, "disks", known_disks(d));
    send_body(d, PEER_MESSAGE_STATE, body);
}

void
daemon_send_prepare(Daemon *d)
{
    json_object *body = json_object_new_object();

    add_generation(body, "generation", d->facts.generation);
    json_object_object_add(body, "qemu_version", json_object_new_string(d->qemu_version));
    json_object_object_add(body, "guest_digest", json_object_new_string(d->guest_digest));
    /* The secondary announces the guest's addresses after a failover: it must know them before. */
    json_object_object_add(body, "addresses", known_addresses(d));
    send_body(d, PEER_MESSAGE_PREPARE, body);
}

/* ---- receiving ---- */

static const char *
get_string(json_object *body, const char *key)
{
    json_object *member;

    if (!json_object_object_get_ex(body, key, &member) ||
        !json_object_is_type(member, json_type_string))
        return NULL;
    return json_object_get_string(member);
}

static gboolean
get_bool(json_object *body, const char *key)
{
    json_object *member;

    return json_object_object_get_ex(body, key, &member) && json_object_get_boolean(member);
}

/* Our own where the peer says nothing of use. */
static unsigned
get_heartbeat_limit(const Daemon *d, json_object *body)
{
    const unsigned ours = d->config->heartbeat_limit_ms;
    json_object *member;

    if (!json_object_object_get_ex(body, "heartbeat_limit_ms", &member) ||
        !json_object_is_type(member, json_type_int))
        return ours;
    return (unsigned)CLAMP(json_object_get_int64(member), 0, (int64_t)ours);
}

static gboolean
get_generation(json_object *body, guint64 *ret_generation)
{
    const char *text = get_string(body, "generation");

    return text != NULL &&
           g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT64 - 2, ret_generation, NULL);
}

static void
learn_addresses(Daemon *d, json_object *body)
{
    json_object *list;

    if (d->proxy == NULL || !json_object_object_get_ex(body, "addresses", &list) ||
        !json_object_is_type(list, json_type_array))
        return;
    for (size_t i = 0; i < json_object_array_length(list) && i < PROXY_MAX_ADDRESSES; i++) {
        json_object *entry = json_object_array_get_idx(list, i), *nic;
        ProxyAddress address = {0};
        const char *text = get_string(entry, "address");

        if (text == NULL || !json_object_object_get_ex(entry, "nic", &nic))
            continue;
        address.nic = (unsigned)json_object_get_int(nic);
        address.ipv6 = strchr(text, ':') != NULL;
        if (address.nic < d->config->n_nics &&
            inet_pton(address.ipv6 ? AF_INET6 : AF_INET, text, address.bytes) == 1)
            proxy_add_address(d->proxy, &address);
    }
}

/* FALSE: malformed. */
static gboolean
learn_disks(Daemon *d, json_object *body)
{
    json_object *disks;

    d->facts.peer_disks_unfit = FALSE;
    d->facts.peer_disk_generation = 0;
    if (!json_object_object_get_ex(body, "disks", &disks))
        return TRUE;
    if (!json_object_is_type(disks, json_type_object) ||
        !get_generation(disks, &d->facts.peer_disk_generation))
        return FALSE;
    d->facts.peer_disks_unfit = get_bool(disks, "unfit");
    if (get_bool(disks, "want_checkpoint"))
        daemon_checkpoint(d, CAUSE_OVERLAY);
    return TRUE;
}

static gboolean
on_state(Daemon *d, json_object *body, guint64 generation)
{
    const PairState state = pair_state_from_name(get_string(body, "state"));
    const gboolean first = !d->peer_said_state;

    if (state == PAIR_N_STATES || !learn_disks(d, body))
        return FALSE;
    d->peer_said_state = TRUE;
    d->facts.peer_up = TRUE;
    d->facts.peer_state = state;
    d->facts.peer_generation = generation;
    d->facts.peer_role_primary = g_strcmp0(get_string(body, "role"), "primary") == 0;
    d->facts.peer_initial_primary = get_bool(body, "initial_primary");
    d->lease_ms = get_heartbeat_limit(d, body);
    if (pair_state_has_vm(state))
        d->facts.peer_gave_up = FALSE;
    learn_addresses(d, body);
    if (state == PAIR_MIGRATING)
        daemon_peer_migrates(d);
    daemon_follow_generation(d, generation);
    daemon_event(d, first ? PAIR_EVENT_PEER_UP : PAIR_EVENT_PEER_STATE);
    return TRUE;
}

static void
on_prepare(Daemon *d, json_object *body)
{
    const char *digest = get_string(body, "guest_digest");
    const char *version = get_string(body, "qemu_version");
    g_autofree char *refusal = NULL;

    if (g_strcmp0(digest, d->guest_digest) != 0)
        refusal =
            g_strdup("the VM is defined differently on the two hosts: compare [vm] and [nic] in "
                     "their configurations, kernel and initrd files, and the sizes of the disks");
    else if (!d->selftest_ok)
        refusal = g_strdup(d->selftest_done ? d->selftest_text : "self-test of QEMU is under way");
    if (refusal != NULL) {
        event_log_add(d->log, EVENT_WARNING, "prepare", "refused: %s", refusal);
        daemon_send_generation(d, PEER_MESSAGE_PREPARE_FAILED, d->facts.generation, refusal);
        return;
    }
    g_free(d->peer_qemu_version);
    d->peer_qemu_version = g_strdup(version);
    daemon_event(d, PAIR_EVENT_PEER_PREPARE);
    learn_addresses(d, body);
}

static void
on_prepare_failed(Daemon *d, json_object *body)
{
    const char *reason = get_string(body, "reason");

    daemon_set_detail(d, "%s cannot be secondary: %s", d->config->peer_host,
                      reason ? reason : "no reason given");
    daemon_event(d, PAIR_EVENT_PEER_PREPARE_FAILED);
}

static void
on_vm_dead(Daemon *d, json_object *body, guint64 generation)
{
    const char *reason = get_string(body, "reason");

    /* What the peer gave up is older than what it may have got since. */
    if (generation > d->facts.generation)
        return;
    event_log_add(d->log, EVENT_INFO, "peer-vm-dead",
                  "%s: no VM of generation %" G_GUINT64_FORMAT "%s%s", d->config->peer_host,
                  generation, reason && *reason ? ": " : "", reason ? reason : "");
    /* What the link said of its end was the consequence. */
    if (reason && g_str_has_prefix(reason, "disk ") && daemon_disks_problem(d) == NULL) {
        g_autofree char *problem = g_strdup_printf("%s, on host %s", reason, d->config->peer_host);

        daemon_disks_set_problem(d, problem);
    }
    d->facts.peer_gave_up = TRUE;
    d->facts.peer_role_primary = FALSE; /* it has saved that before it said so */
    daemon_event(d, PAIR_EVENT_PEER_VM_DEAD);
}

static void
on_discard(Daemon *d, json_object *body, guint64 generation)
{
    const char *reason = get_string(body, "reason");

    if (generation < d->facts.generation)
        return;
    daemon_set_detail(d, "the primary goes on alone%s%s", reason && *reason ? ": " : "",
                      reason ? reason : "");
    daemon_event(d, PAIR_EVENT_PEER_DISCARD);
}

static gboolean
dispatch(Daemon *d, PeerMessageType type, json_object *body, guint64 generation)
{
    switch (type) {
    case PEER_MESSAGE_STATE:
        return on_state(d, body, generation);
    case PEER_MESSAGE_PREPARE:
        d->facts.peer_generation = generation;
        on_prepare(d, body);
        return TRUE;
    case PEER_MESSAGE_PREPARED:
        daemon_event(d, PAIR_EVENT_PEER_PREPARED);
        return TRUE;
    case PEER_MESSAGE_PREPARE_FAILED:
        on_prepare_failed(d, body);
        return TRUE;
    case PEER_MESSAGE_VM_DEAD:
        on_vm_dead(d, body, generation);
        return TRUE;
    case PEER_MESSAGE_DISCARD:
        on_discard(d, body, generation);
        return TRUE;
    case PEER_MESSAGE_HAND_OVER:
        if (generation == d->facts.generation)
            daemon_event(d, PAIR_EVENT_PEER_HAND_OVER);
        return TRUE;
    case PEER_MESSAGE_PROPOSE:
        if (generation > d->facts.generation) {
            d->peer_proposal = generation;
            daemon_event(d, PAIR_EVENT_PEER_PROPOSE);
        }
        return TRUE;
    case PEER_MESSAGE_CONSENT:
        if (generation == d->claim)
            daemon_event(d, PAIR_EVENT_PEER_CONSENT);
        return TRUE;
    case PEER_MESSAGE_HELLO:
    case PEER_MESSAGE_WELCOME:
    case PEER_MESSAGE_REFUSED:
    case PEER_MESSAGE_HEARTBEAT:
    case PEER_MESSAGE_DATA_FORWARD:
    case PEER_MESSAGE_DATA_RETURN:
    case PEER_MESSAGE_ARM:
    case PEER_MESSAGE_END:
    case PEER_MESSAGE_COMMITTED:
    case PEER_MESSAGE_FRAME:
        break;
    }
    return FALSE;
}

static void
on_message(PeerLink *link, PeerMessageType type, json_object *body, gpointer user_data)
{
    Daemon *d = user_data;
    guint64 generation;

    if ((type != PEER_MESSAGE_STATE && !d->peer_said_state) || !get_generation(body, &generation) ||
        !dispatch(d, type, body, generation)) {
        g_autoptr(GError) error =
            g_error_new(PEER_ERROR, PEER_ERROR_PROTOCOL, "malformed or unexpected %s: %s",
                        peer_message_type_name(type), json_object_to_json_string(body));

        peer_link_fail(link, error);
    }
}

static void
on_up(PeerLink *link G_GNUC_UNUSED, const PeerInfo *peer, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_INFO, "peer-up",
                  "%s, colod %s, role %s, generation %" G_GUINT64_FORMAT, peer->host,
                  peer->software_version, peer->role, peer->generation);
    g_clear_pointer(&d->peer_dates, g_free);
    g_free(d->peer_software);
    d->peer_software = g_strdup(peer->software_version);
    d->streams_used = FALSE;
    d->peer_said_state = FALSE;
    daemon_send_state(d);
}

static void
on_down(PeerLink *link G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "peer-down", "%s", reason->message);
    d->peer_said_state = d->facts.peer_up = d->facts.peer_gave_up = FALSE;
    daemon_set_detail(d, "peer link: %s", reason->message);
    daemon_event(d, PAIR_EVENT_PEER_DOWN);
}

static void
on_refused(PeerLink *link G_GNUC_UNUSED, const char *who, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "peer-refused", "%s: %s", who, reason->message);
    /* Of the pair's own CA, so no stranger puts words into the status. */
    if (g_error_matches(reason, PEER_ERROR, PEER_ERROR_DATES)) {
        g_free(d->peer_dates);
        d->peer_dates = g_strdup(reason->message);
    }
}

static const char *
our_role(gpointer user_data)
{
    const Daemon *d = user_data;

    return pair_state_role(d->state);
}

static guint64
our_generation(gpointer user_data)
{
    const Daemon *d = user_data;

    return d->facts.generation;
}

static void
on_confirmed(PeerLink *link G_GNUC_UNUSED, int64_t confirmed_ns G_GNUC_UNUSED, gpointer user_data)
{
    daemon_network_renew_lease(user_data);
}

static const PeerLinkHandlers link_handlers = {
    .confirmed = on_confirmed,
    .up = on_up,
    .message = on_message,
    .down = on_down,
    .refused = on_refused,
    .our_role = our_role,
    .our_generation = our_generation,
};

void
daemon_renew_link(Daemon *d, const char *why)
{
    if (!d->streams_used || !peer_link_is_up(d->link))
        return;

    g_autoptr(GError) reason = g_error_new_literal(PEER_ERROR, PEER_ERROR_CLOSED, why);

    peer_link_fail(d->link, reason);
}

gboolean
daemon_start_link(Daemon *d, GError **error)
{
    const Config *c = d->config;
    const PeerLinkConfig config = {
        .vm_name = c->vm_name,
        .vm_uuid = c->uuid,
        .host = c->host,
        .peer_host = c->peer_host,
        .listen_address = c->listen_address,
        .listen_port = c->listen_port,
        .peer_address = c->peer_address,
        .peer_port = c->peer_port,
        .ca_file = c->tls_ca,
        .cert_file = c->tls_cert,
        .key_file = c->tls_key,
        .connect_timeout_ms = c->connect_timeout_ms,
        .heartbeat_ms = c->heartbeat_ms,
        .heartbeat_limit_ms = c->heartbeat_limit_ms,
        .retry_ms = RETRY_CONNECT_MS,
    };

    d->link = peer_link_new(&config, &link_handlers, d, error);
    return d->link != NULL;
}
