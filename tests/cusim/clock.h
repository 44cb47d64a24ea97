/* tests/cusim/clock.h - what happened before what.
 *
 * Every stream and the host (all its threads together) has a slot; an operation is (slot, tick).
 * Operation `a` happened before the one that holds clock `c` when c->tick[slot of a] >= tick of a.
 * Clocks are computed when work is enqueued, so what is found does not depend on the order in which
 * it then runs.
 */
#ifndef CUSIM_CLOCK_H
#define CUSIM_CLOCK_H

#include "report.h"

enum { CLOCK_SLOTS = 192, HOST_SLOT = 0 };

struct clock {
    uint32_t tick[CLOCK_SLOTS];
};

/* A name for each operation ever enqueued; 0 is none. */
typedef uint32_t op_id;

int clock_new_slot(void);
void clock_give_slot(int slot);
void clock_join(struct clock *into, const struct clock *from);
/* Names the next operation of `slot` and ticks its clock.  `what` is copied. */
op_id clock_new_op(struct clock *clock, int slot, const char *what);
bool clock_before(op_id earlier, const struct clock *clock);
const char *clock_op_name(op_id op);

#endif
