/* tests/cusim/transfer.c - the copies that are in flight over pinned memory.
 *
 * A copy to the device reads what the buffer held at the call.  When the host learns that the copy
 * is done, the buffer must still hold that: else it was written too early, and a GPU might have
 * read the new bytes.  A copy to the host writes a pattern at the call and the result when the
 * host learns. So both faults are found whenever the copy really ran.
 */
#include "memory.h"

enum { PATTERN = 0xa5 };

struct transfer {
    uint8_t *host, *bytes;
    size_t size;
    bool to_host, done;
    op_id op;
    struct transfer *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct transfer *in_flight, **in_flight_end = &in_flight;   /* in the order of the calls */

void transfers_forbid(const uint8_t *start, const uint8_t *end)
{
    HOLD(&lock);
    for (struct transfer *t = in_flight; t; t = t->next) {
        if (t->host < start || t->host >= end) continue;
        report(PINNED_BUFFER_IN_FLIGHT, "cudaFreeHost while '%s' may still run",
               clock_op_name(t->op));
    }
}

/* Ends one transfer, for the host's eyes. */
static void settle(struct transfer *t)
{
    if (t->to_host) {
        memcpy(t->host, t->bytes, t->size);
    } else {
        for (size_t i = 0; i < t->size; i++) {
            if (t->host[i] == t->bytes[i]) continue;
            report(PINNED_BUFFER_IN_FLIGHT,
                   "byte %zu of a pinned buffer was written while '%s' of %zu "
                   "bytes might still read it", i, clock_op_name(t->op), t->size);
        }
    }
}

/* A new copy over bytes of an older one that the host has not waited for. */
static void meet(struct transfer *old, const char *what, bool to_host, const struct clock *clock)
{
    if (!old->to_host && !to_host) return;
    report_if(!clock_before(old->op, clock), RACE_BETWEEN_STREAMS,
              "'%s' uses a pinned buffer of '%s', which may not have run", what,
              clock_op_name(old->op));
    report_if(old->to_host && !to_host, NOT_MODELLED,
              "'%s' reads a pinned buffer that '%s' fills, with no host in between", what,
              clock_op_name(old->op));
}

struct transfer *transfer_open(void *host, size_t bytes, bool to_host, op_id op,
                               const struct clock *clock)
{
    struct transfer *t = must_alloc(sizeof *t);
    *t = (struct transfer){.host = host, .size = bytes, .to_host = to_host, .op = op};
    t->bytes = must_alloc(bytes);
    HOLD(&lock);
    for (struct transfer *old = in_flight; old; old = old->next) {
        if (old->host >= t->host + bytes || t->host >= old->host + old->size) continue;
        meet(old, clock_op_name(op), to_host, clock);
        if (!old->to_host && to_host) {     /* in order; its bytes are compared here and now */
            settle(old);
            old->size = 0;
        }
    }
    if (to_host) memset(host, PATTERN, bytes);
    else memcpy(t->bytes, host, bytes);
    *in_flight_end = t;
    in_flight_end = &t->next;
    return t;
}

uint8_t *transfer_bytes(struct transfer *t) { return t->bytes; }
void transfer_done(struct transfer *t) { t->done = true; }

void transfers_settle(const struct clock *clock)
{
    HOLD(&lock);
    for (struct transfer **at = &in_flight; *at;) {
        struct transfer *t = *at;
        if (!t->done || !clock_before(t->op, clock)) {
            at = &t->next;
            continue;
        }
        settle(t);
        *at = t->next;
        if (in_flight_end == &t->next) in_flight_end = at;
        free(t->bytes);
        free(t);
    }
}
