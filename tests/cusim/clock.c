/* tests/cusim/clock.c - see clock.h.
 *
 * Operations are kept for ever, 16 bytes each, in chunks that never move, so that the device thread
 * may read while a host thread adds.  Names are interned: a job repeats few of them.
 */
#include "clock.h"

enum { CHUNK = 1 << 16, CHUNKS = 1 << 12, NAMES = 1 << 12 };

struct op_record {
    const char *name;
    uint32_t tick, slot;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct op_record *chunks[CHUNKS];
static uint32_t op_count = 1;
static int slot_count = HOST_SLOT + 1, given[CLOCK_SLOTS], given_count;
static uint32_t last_tick[CLOCK_SLOTS];
static const char *names[NAMES];

static struct op_record *record(op_id op)
{
    return &chunks[op / CHUNK][op % CHUNK];
}

int clock_new_slot(void)
{
    if (given_count) return given[--given_count];
    report_if(slot_count == CLOCK_SLOTS, NOT_MODELLED, "more than %d streams and graph branches",
              CLOCK_SLOTS);
    return slot_count++;
}

/* Ticks go on where they were, so what the slot's former owner did stays in order with itself. */
void clock_give_slot(int slot) { given[given_count++] = slot; }

void clock_join(struct clock *into, const struct clock *from)
{
    for (int i = 0; i < slot_count; i++) {
        if (into->tick[i] < from->tick[i]) into->tick[i] = from->tick[i];
    }
}

static const char *intern(const char *what)
{
    uint32_t h = 2166136261u;
    for (const char *p = what; *p; p++) h = (h ^ (unsigned char)*p) * 16777619u;
    for (uint32_t i = 0; i < NAMES; i++) {
        const char **name = &names[(h + i) % NAMES];
        if (!*name) *name = strdup(what);
        if (!strcmp(*name, what)) return *name;
    }
    return "(one of many operations)";
}

op_id clock_new_op(struct clock *clock, int slot, const char *what)
{
    HOLD(&lock);
    op_id op = op_count++;
    report_if(op / CHUNK >= CHUNKS, NOT_MODELLED, "more than %d operations", CHUNK * CHUNKS);
    if (!chunks[op / CHUNK]) chunks[op / CHUNK] = must_alloc(CHUNK * sizeof(struct op_record));
    clock->tick[slot] = ++last_tick[slot];
    *record(op) = (struct op_record){intern(what), clock->tick[slot], (uint32_t)slot};
    return op;
}

bool clock_before(op_id earlier, const struct clock *clock)
{
    if (!earlier) return true;
    const struct op_record *r = record(earlier);
    return clock->tick[r->slot] >= r->tick;
}

const char *clock_op_name(op_id op)
{
    return op ? record(op)->name : "nothing";
}
