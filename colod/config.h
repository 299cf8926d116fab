/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config.h - the configuration of one VM: /etc/colod/NAME.conf (colod.conf(5)) */
#pragma once

#include <glib.h>

#include <stdbool.h>
#include <stdint.h>

enum { CONFIG_MAX_NICS = 8, CONFIG_MAX_QUEUES = 8, CONFIG_MAX_DISKS = 8 };

typedef enum ConfigRole { CONFIG_ROLE_PRIMARY, CONFIG_ROLE_SECONDARY } ConfigRole;
typedef enum ConfigArbiter { CONFIG_ARBITER_MANUAL, CONFIG_ARBITER_FILE } ConfigArbiter;
typedef enum ConfigNetworkMode {
    CONFIG_NETWORK_BUFFERED,
    CONFIG_NETWORK_LOCKSTEP
} ConfigNetworkMode;
typedef enum ConfigPolicy {
    CONFIG_POLICY_SIZE,
    CONFIG_POLICY_FULL,
    CONFIG_POLICY_PASS
} ConfigPolicy;
typedef enum ConfigPort { CONFIG_PORT_TAP, CONFIG_PORT_STREAM } ConfigPort;

typedef struct ConfigNic {
    char *name; /* "nic0" */
    uint8_t mac[6];
    char *bridge;
    char *tap;   /* LAN tap's name; default colo-<vm><n>, cut to IFNAMSIZ */
    char *model; /* QEMU device model, default virtio-net-pci */
    ConfigPort port;
    unsigned
        queues; /* pairs of them, 1 … CONFIG_MAX_QUEUES; more than one: tap and virtio-net-pci */
} ConfigNic;

typedef struct ConfigDisk {
    char *name;   /* "disk0" */
    char *image;  /* raw file or block device */
    char *device; /* QEMU device model, default virtio-blk-pci */
    char *cache;  /* "none" or "writeback" */
    unsigned
        port; /* of this host's disk target and of the peer's; default: listen's + 1 + number */
    char *overlay; /* "files" or "memory" */
    unsigned overlay_limit_mib, window_mib;
    unsigned sync_rate_mib; /* MiB/s; 0: no limit */
    char *overlay_dir;      /* NULL: the VM's state directory */
} ConfigDisk;

/* Public and read-only after config_load(). Every key, default and range: colod.conf(5). */
typedef struct Config {
    char *vm_name; /* from the command line: [A-Za-z0-9_-]{1,32} */

    /* [vm] */
    char *uuid;
    char *qemu; /* path of qemu-system-x86_64 */
    char *machine;
    char *accel; /* "tcg" or "kvm" */
    unsigned memory_mib;
    unsigned cpus;
    char *cpu_model;                /* NULL: QEMU's default */
    char *kernel, *initrd, *append; /* NULL: none */
    char **extra_args;              /* NULL-terminated, never NULL */
    bool qmp_log;

    /* [nic0] .. [nic7] */
    ConfigNic nics[CONFIG_MAX_NICS];
    unsigned n_nics;

    /* [disk0] .. [disk7] */
    ConfigDisk disks[CONFIG_MAX_DISKS];
    unsigned n_disks;

    /* [network] */
    ConfigNetworkMode network_mode;
    unsigned hold_limit_mib;
    unsigned compare_timeout_ms;
    ConfigPolicy other_frames;
    bool adaptive;

    /* [checkpoint] */
    unsigned interval_ms; /* default: by network_mode */
    unsigned spacing_ms;
    unsigned message_timeout_ms;
    unsigned transfer_timeout_ms;
    unsigned migration_timeout_ms;
    unsigned tail_limit_mib;

    /* [host] */
    char *host;
    ConfigRole initial_role;

    /* [peer] */
    char *peer_host;
    char *listen_address;
    uint16_t listen_port;
    char *peer_address;
    uint16_t peer_port;
    char *disk_host; /* as the peer's certificate names it; default: peer_address */
    char *tls_ca, *tls_cert, *tls_key;
    unsigned heartbeat_ms, heartbeat_limit_ms, connect_timeout_ms;

    /* [arbiter] */
    ConfigArbiter arbiter;
    char *arbiter_path;
    unsigned arbiter_timeout_ms;

    /* [test] */
    bool test_hooks;
} Config;

#define CONFIG_ERROR (config_error_quark())
GQuark config_error_quark(void);
typedef enum ConfigError {
    CONFIG_ERROR_FILE,    /* cannot be read or is no key file */
    CONFIG_ERROR_UNKNOWN, /* unknown group or key */
    CONFIG_ERROR_VALUE,   /* missing, malformed or out of range */
} ConfigError;

/**
 * Reads and checks a configuration.
 *
 * Errors: every message has the form `FILE:LINE: [group] key: what is wrong; what to do`. Unknown
 * groups and keys are refused, with the nearest known name.
 */
Config *config_load(const char *vm_name, const char *path, GError **error);
void config_free(Config *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Config, config_free)

/**
 * A digest of all that both hosts must agree on for the guest to be the same VM (uuid, machine, cpu
 * model, cpus, memory, NIC models and MACs, disk models and sizes, append, digests of kernel and
 * initrd files, extra arguments). Return: lower-case hex SHA-256; NULL with an error if a file
 * cannot be read.
 */
char *config_guest_digest(const Config *config, GError **error);
