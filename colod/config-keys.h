/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config-keys.h - the table of configuration keys and the reading of one value (module-private) */
#pragma once

#include "config.h"

#include <stddef.h>

typedef enum ConfigType {
    CONFIG_TYPE_STRING,  /* char *: any text without control characters */
    CONFIG_TYPE_PATH,    /* char *: absolute path */
    CONFIG_TYPE_IMAGE,   /* char *: absolute path, or the URI of an NBD export */
    CONFIG_TYPE_UUID,    /* char *: lower-cased */
    CONFIG_TYPE_HOST,    /* char *: DNS name, at most 63 bytes */
    CONFIG_TYPE_PLACE,   /* char *: numeric address or DNS name */
    CONFIG_TYPE_IFNAME,  /* char *: network interface */
    CONFIG_TYPE_CHOICE,  /* char *: one of `choices` */
    CONFIG_TYPE_ENUM,    /* an enum whose values are the indexes of `choices` */
    CONFIG_TYPE_UINT,    /* unsigned, min..max */
    CONFIG_TYPE_BOOL,    /* bool: true or false */
    CONFIG_TYPE_MAC,     /* uint8_t[6]: unicast */
    CONFIG_TYPE_ADDRESS, /* char * at `offset`, uint16_t port at `port_offset` */
    CONFIG_TYPE_LIST,    /* char **: separated by semicolons */
} ConfigType;

typedef struct ConfigKey {
    const char *group; /* CONFIG_GROUP_NIC stands for nic0 .. nic7, so does _DISK */
    const char *key;
    ConfigType type;
    size_t offset;        /* into Config; into ConfigNic or ConfigDisk */
    size_t port_offset;   /* CONFIG_TYPE_ADDRESS */
    const char *standard; /* default, as one would write it; NULL: none */
    bool required;
    unsigned min, max;          /* CONFIG_TYPE_UINT */
    const char *const *choices; /* NULL-terminated */
    const char *doc;            /* what it is, for messages: a noun phrase */
} ConfigKey;

#define CONFIG_GROUP_NIC "nic"
#define CONFIG_GROUP_DISK "disk"

/* The host's name ends up in ArbiterAnswer.owner, char[64]. */
enum { CONFIG_HOST_MAX = 63 };

extern const ConfigKey config_keys[];
extern const size_t config_n_keys;

/** NULL: no such key. @group as in the table: "nic" for a NIC, "disk" for a disk. */
const ConfigKey *config_key_find(const char *group, const char *key);

/**
 * Reads @text as a value of @key into @target (the Config, ConfigNic or ConfigDisk).
 *
 * Return: NULL, or what is wrong and what to do (`what; remedy`), newly allocated; nothing is
 * written then. Not for CONFIG_TYPE_LIST.
 */
char *config_key_parse(const ConfigKey *key, const char *text, void *target);

/** NULL, or what is wrong with @text as free text of the configuration. */
char *config_check_text(const char *text);

/** Edit distance, for "did you mean": bounded work, G_MAXUINT if either is over 32 bytes. */
unsigned config_distance(const char *a, const char *b);

/** config_load() on text already read: what the fuzzer drives. @file: for messages. */
Config *config_parse(const char *vm_name, const char *file, const char *text, gsize length,
                     GError **error);
