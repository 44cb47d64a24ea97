/* engine/cpu/threads.h - compute threads that claim work items.
 *
 * One operation at a time: pool_run hands out items 0 .. count-1 to whoever is awake, the caller
 * included, and returns when all are done.  Each thread begins with its own share of neighbouring
 * items, so that in phase after phase it finds the rows that it wrote in its cache, and reads
 * weights in one run; when that is done it claims what is left of the others' shares.
 * Waiting threads look for some microseconds, for longer where that was not in vain, then sleep.
 * A thread that the kernel does not run delays nobody: the others claim its share.
 */
#ifndef RANKSERVE_ENGINE_CPU_THREADS_H
#define RANKSERVE_ENGINE_CPU_THREADS_H

#include <stdint.h>

struct pool;

/* `threads` (>= 1) includes the caller of pool_run; `nice` is added to each thread's nice value. */
struct pool *pool_open(uint32_t threads, int nice);
/* No pool_run may be under way. */
void pool_close(struct pool *p);
uint32_t pool_threads(const struct pool *p);

/* Adds to the nice value of the calling thread (the caller of pool_run), as pool_open does for the
 * others. */
void pool_lower_priority(int nice);

/* `worker` is below pool_threads, and no two calls with the same worker overlap. */
typedef void pool_fn(void *ctx, uint32_t item, uint32_t worker);
void pool_run(struct pool *p, pool_fn *fn, void *ctx, uint32_t count);

#endif
