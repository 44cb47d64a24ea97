/* engine/cpu/threads.c - see threads.h.
 *
 * Each thread has a ticket, one word: the end of its share of the items, and the next of them.
 * Claiming is one fetch_add, and its result says what was claimed.  An operation cannot end before
 * its claimed items are done, so fn and ctx are stable while a claimed item is in hand, and who
 * wakes late finds either nothing or a later operation's item, never a stale one.
 */
#include "engine/cpu/threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/check.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/mem.h"

/* LONG is longer than an item of a phase, for which threads wait at its end: some 30 us.  Sleeping
 * and being woken takes as long, and more where the processor is a virtual one.  Where the others
 * are not running meanwhile, because another rank has its turn on the cores, who looks is in the
 * way, and in vain: when LUCK times as many long looks were in vain as not, they are short, but for
 * one in some, which shows whether that has changed. */
enum { LONG_LOOK_NS = 40000, SHORT_LOOK_NS = 8000, LUCK = 4, LUCK_MOST = 64, LONG_ONE_IN = 16 };
enum { ITEM_BITS = 22 };
#define ITEM_MASK ((UINT64_C(1) << ITEM_BITS) - 1)

struct worker {
    struct pool *pool;
    pthread_t thread;
    uint32_t index;
    int luck;                          /* below 0: looks are short, but for every so many */
    uint32_t short_looks;
};

struct share {
    _Alignas(64) _Atomic uint64_t ticket;
};

struct pool {
    uint32_t threads;
    int nice;
    struct worker *workers;            /* (threads); 0 is the caller, and no thread */
    struct share *shares;              /* (threads) */
    pool_fn *fn;
    void *ctx;
    uint32_t count;                    /* items */
    _Alignas(64) _Atomic uint32_t done;
    _Atomic bool caller_sleeps;
    _Alignas(64) _Atomic uint32_t bell;    /* changes with each operation; sleepers wait on it */
    _Atomic uint32_t sleepers;
    _Atomic bool closing;
};

static void futex_wait(_Atomic uint32_t *at, uint32_t seen)
{
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at, int count)
{
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static uint32_t ticket_next(uint64_t t)
{
    return (uint32_t)(t & ITEM_MASK);
}

static uint32_t ticket_end(uint64_t t)
{
    return (uint32_t)(t >> ITEM_BITS & ITEM_MASK);
}

/* Claims and runs the items of a share until none is left. */
static void work_on(struct pool *p, struct share *share, uint32_t worker)
{
    for (;;) {
        uint64_t t = atomic_load(&share->ticket);
        if (ticket_next(t) >= ticket_end(t)) return;
        t = atomic_fetch_add(&share->ticket, 1);
        if (ticket_next(t) >= ticket_end(t)) return;
        uint32_t count = p->count;
        p->fn(p->ctx, ticket_next(t), worker);
        if (atomic_fetch_add(&p->done, 1) + 1 == count && atomic_load(&p->caller_sleeps)) {
            futex_wake(&p->done, 1);
        }
    }
}

/* Its own share first, then what the others have left. */
static void work(struct pool *p, uint32_t worker)
{
    for (uint32_t i = 0; i < p->threads; i++) {
        work_on(p, &p->shares[(worker + i) % p->threads], worker);
    }
}

static bool has_work(const struct pool *p)
{
    for (uint32_t i = 0; i < p->threads; i++) {
        uint64_t t = atomic_load(&p->shares[i].ticket);
        if (ticket_next(t) < ticket_end(t)) return true;
    }
    return atomic_load(&p->closing);
}

static bool has_ended(const struct pool *p)
{
    return atomic_load(&p->done) == p->count;
}

static void learn(struct worker *w, bool lucky)
{
    w->luck += lucky ? LUCK : -1;
    if (w->luck > LUCK_MOST) w->luck = LUCK_MOST;
    if (w->luck < -LUCK_MOST) w->luck = -LUCK_MOST;
}

/* Awake for a while; true: it has come. */
static bool look(struct worker *w, bool (*has_come)(const struct pool *))
{
    bool is_long = w->luck >= 0 || ++w->short_looks % LONG_ONE_IN == 0;
    uint64_t began = clock_now_ns(), looked = 0, most = is_long ? LONG_LOOK_NS : SHORT_LOOK_NS;
    while (looked < most) {
        for (int i = 0; i < 16; i++) {
            if (has_come(w->pool)) {
                if (looked >= SHORT_LOOK_NS) learn(w, true);
                return true;
            }
            relax();
        }
        looked = clock_now_ns() - began;
    }
    if (is_long) learn(w, false);
    return false;
}

static void wait_for_work(struct worker *w)
{
    struct pool *p = w->pool;
    if (look(w, has_work)) return;
    uint32_t bell = atomic_load(&p->bell);
    atomic_fetch_add(&p->sleepers, 1);
    if (!has_work(p)) futex_wait(&p->bell, bell);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    pool_lower_priority(w->pool->nice);
    while (!atomic_load(&w->pool->closing)) {
        work(w->pool, w->index);
        wait_for_work(w);
    }
    return NULL;
}

/* On Linux it is the calling thread's own.  A refusal only costs fairness. */
void pool_lower_priority(int nice)
{
    if (nice <= 0) return;
    id_t self = (id_t)syscall(SYS_gettid);
    errno = 0;
    int now = getpriority(PRIO_PROCESS, self);
    if (errno == 0) setpriority(PRIO_PROCESS, self, now + nice);
}

struct pool *pool_open(uint32_t threads, int nice)
{
    CHECK(threads >= 1 && threads <= THREAD_COUNT_MAX);
    struct pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p) die("out of memory: thread pool");
    *p = (struct pool){ .threads = threads, .nice = nice };
    p->workers = mem_array(threads, sizeof *p->workers);
    p->shares = aligned_alloc(64, threads * sizeof *p->shares);
    if (!p->shares) die("out of memory: thread pool");
    memset(p->shares, 0, threads * sizeof *p->shares);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);     /* signals are the main thread's */
    for (uint32_t i = 0; i < threads; i++) {
        struct worker *w = &p->workers[i];
        *w = (struct worker){ .pool = p, .index = i };
        if (i > 0 && pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            die("cannot start compute thread %u of %u", i + 1, threads);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p;
}

void pool_close(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->closing, true);
    atomic_fetch_add(&p->bell, 1);
    futex_wake(&p->bell, INT_MAX);
    for (uint32_t i = 1; i < p->threads; i++) pthread_join(p->workers[i].thread, NULL);
    free(p->workers);
    free(p->shares);
    free(p);
}

uint32_t pool_threads(const struct pool *p)
{
    return p->threads;
}

static void wait_for_end(struct pool *p, uint32_t count)
{
    if (look(&p->workers[0], has_ended)) return;
    atomic_store(&p->caller_sleeps, true);
    for (;;) {
        uint32_t done = atomic_load(&p->done);
        if (done == count) break;
        futex_wait(&p->done, done);
    }
    atomic_store(&p->caller_sleeps, false);
}

void pool_run(struct pool *p, pool_fn *fn, void *ctx, uint32_t count)
{
    CHECK(count < ITEM_MASK - 2 * THREAD_COUNT_MAX);
    if (p->threads == 1 || count <= 1) {
        for (uint32_t i = 0; i < count; i++) fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->count = count;
    atomic_store(&p->done, 0);
    for (uint32_t i = 0; i < p->threads; i++) {
        uint64_t from = (uint64_t)count * i / p->threads;
        uint64_t end = (uint64_t)count * (i + 1) / p->threads;
        atomic_store(&p->shares[i].ticket, end << ITEM_BITS | from);
    }
    atomic_fetch_add(&p->bell, 1);
    if (atomic_load(&p->sleepers)) futex_wake(&p->bell, INT_MAX);
    work(p, 0);
    wait_for_end(p, count);
}
