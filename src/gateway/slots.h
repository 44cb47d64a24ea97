/* gateway/slots.h - a table whose entries are named by numbers that are never reused.
 *
 * A number is (serial, index): finding one is an array access and a comparison, and a number of the
 * past finds nothing.  An entry does not move while it is taken.
 */
#ifndef RANKSERVE_GATEWAY_SLOTS_H
#define RANKSERVE_GATEWAY_SLOTS_H

#include <stddef.h>
#include <stdint.h>

#include "common/mem.h"

enum { SLOTS_CHUNK = 256, SLOTS_CHUNKS = 128 };

struct slots {
    size_t bytes;                     /* of an entry */
    char *chunk[SLOTS_CHUNKS];
    uint64_t *number[SLOTS_CHUNKS];   /* 0: free */
    uint32_t *free_list, free_count, made;
    uint64_t serial;
};

void slots_open(struct slots *s, size_t entry_bytes);
void slots_close(struct slots *s);
/* A zeroed entry and its number; 0 when all are taken. */
uint64_t slots_take(struct slots *s, void **entry);
void *slots_find(const struct slots *s, uint64_t number);   /* NULL: not taken */
void slots_give(struct slots *s, uint64_t number);
/* Numbers of all entries in turn: start with *at = 0; 0 at the end. */
uint64_t slots_walk(const struct slots *s, uint32_t *at);

#endif
