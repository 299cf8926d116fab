/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-numbered.c - the account of numbered datagrams (port 11) */
#include "guest-agent.h"

#include <stdio.h>
#include <string.h>

enum { NUMBERS_MAX = 1024 * 1024 }; /* of one run */

/* The account of a run of numbered datagrams. */
static struct {
    uint64_t run;
    uint64_t next; /* behind the highest number that came */
    uint64_t got;  /* different ones */
    uint64_t twice;
    uint64_t late;   /* after a higher one */
    uint64_t digest; /* of all that came, in their order */
    uint8_t seen[NUMBERS_MAX / 8];
} numbered;

static bool
was_seen(uint64_t number)
{
    return numbered.seen[number / 8] >> (number % 8) & 1;
}

static void
account_for(uint64_t run, uint64_t number)
{
    const char *what;
    bool again;

    if (run != numbered.run) {
        memset(&numbered, 0, sizeof(numbered));
        numbered.run = run;
    }
    again = was_seen(number);
    what = again ? "twice" : number < numbered.next ? "late" : "missing before";
    numbered.digest = splitmix64_at(numbered.digest ^ number);
    numbered.seen[number / 8] |= (uint8_t)(1 << number % 8);
    numbered.got += !again;
    numbered.twice += again;
    numbered.late += !again && number < numbered.next;
    if (number != numbered.next) {
        printf("numbered: run %llu %s %llu, expected %llu\n", (unsigned long long)run, what,
               (unsigned long long)number, (unsigned long long)numbered.next);
    }
    if (number >= numbered.next) {
        numbered.next = number + 1;
    }
}

int
print_account(char *text, size_t bytes)
{
    return snprintf(
        text, bytes, "run %llu next %llu got %llu missing %llu twice %llu late %llu digest %016llx",
        (unsigned long long)numbered.run, (unsigned long long)numbered.next,
        (unsigned long long)numbered.got, (unsigned long long)(numbered.next - numbered.got),
        (unsigned long long)numbered.twice, (unsigned long long)numbered.late,
        (unsigned long long)numbered.digest);
}

void
print_hole(uint64_t at, char *text, size_t bytes)
{
    const uint64_t next = numbered.next;
    uint64_t first = at;
    uint64_t end;

    while (first < next && was_seen(first)) {
        first++;
    }
    for (end = first; end < next && !was_seen(end); end++) {
    }
    if (first < next) {
        snprintf(text, bytes, "ok %llu %llu", (unsigned long long)first, (unsigned long long)end);
    } else {
        snprintf(text, bytes, "ok none");
    }
}

int
serve_numbered(char *text, size_t bytes)
{
    unsigned long long run;
    unsigned long long number;
    char account[LINE_BYTES];

    if (sscanf(text, "%llu %llu", &run, &number) != 2 || number >= NUMBERS_MAX) {
        return snprintf(text, bytes, "error RUN NUMBER is wanted\n");
    }
    account_for(run, number);
    print_account(account, sizeof(account));
    return snprintf(text, bytes, "number %llu %s\n", number, account);
}
