/* tests/cusim/stats.h - counters of each kernel, written as JSON when CUSIM_STATS names a file.
 *
 * An array of objects, one per kernel that ran: its name, its launches, warp and lane instructions,
 * mma instructions, branches that parted a warp, global bytes and 32-byte sectors, shared bytes and
 * wavefronts; `ideal` is the least that the same bytes could need.
 */
#ifndef CUSIM_STATS_H
#define CUSIM_STATS_H

#include "ptx.h"

/* NULL when nothing is counted. */
struct kernel_stats *stats_of(const struct kernel *k);
void stats_write(void);

#endif
