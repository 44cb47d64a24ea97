/* perf/roofline.c - what this machine can do at most: reading memory, 8-bit dots, F32 FMA.
 *
 *   roofline [THREADS] [OUT.json]
 *
 * All threads at once, the best of many rounds: a peak that a neighbour lowered would flatter
 * every share of it.  Arithmetic is timed by the threads' own CPU time for the same reason, reading
 * by the wall clock.  The median is printed beside it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/mem.h"
#include "engine/backend.h"
#include "figures.h"
#include "peak.h"

enum { ROUNDS = 25 };
#define OPERATIONS 2e9                /* of one thread in a round, about */

struct probe {
    const char *name, *unit, *what;
    enum isa isa;                     /* what it needs             */
    uint64_t (*compute)(uint64_t rounds);
    uint64_t bytes;                   /* of a read probe; else 0   */
};

static const struct probe probes[] = {
    { "read_1gib", "GB/s", "reading 1 GiB", ISA_AVX2, NULL, UINT64_C(1) << 30 },
    { "read_92mib", "GB/s", "reading 92 MiB", ISA_AVX2, NULL, UINT64_C(92) << 20 },
    { "int8_avx2", "GOP/s", "8-bit dot, AVX2", ISA_AVX2, peak_int8_avx2, 0 },
    { "int4_avx2", "GOP/s", "4-bit by 8-bit dot, AVX2", ISA_AVX2, peak_int4_avx2, 0 },
    { "int8_avx512", "GOP/s", "8-bit dot, AVX-512 VNNI", ISA_AVX512, peak_int8_avx512, 0 },
    { "f32_avx2", "GFLOP/s", "F32 FMA, AVX2", ISA_AVX2, peak_f32_avx2, 0 },
    { "f32_avx512", "GFLOP/s", "F32 FMA, AVX-512", ISA_AVX512, peak_f32_avx512, 0 },
};
enum { PROBE_COUNT = sizeof probes / sizeof *probes };

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    const struct probe *probe;
    const uint8_t *memory;            /* this thread's part */
    uint64_t bytes, amount;
    uint64_t begin_ns, end_ns;
    double cpu_s;
};

static void *work(void *at)
{
    struct worker *w = at;
    pthread_barrier_wait(w->start);
    w->begin_ns = clock_now_ns();
    double cpu = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    /* A small region is read again and again, as the weights are by one step after another. */
    uint64_t again = w->probe->bytes ? (UINT64_C(1) << 30) / w->probe->bytes : 0;
    w->amount = 0;
    for (uint64_t i = 0; i < again; i++) w->amount += peak_read_avx2(w->memory, w->bytes);
    if (w->probe->compute) {
        double per_round = (double)w->probe->compute(1);
        w->amount = w->probe->compute((uint64_t)(OPERATIONS / per_round));
    }
    w->cpu_s = cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
    w->end_ns = clock_now_ns();
    return NULL;
}

/* One round on all threads: G of operations or bytes a second. */
static double one_round(const struct probe *p, struct worker *workers, uint32_t threads,
                        const uint8_t *memory)
{
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, threads);
    uint64_t begin = UINT64_MAX, end = 0, amount = 0;
    double compute = 0;
    for (uint32_t i = 0; i < threads; i++) {
        uint64_t share = p->bytes / threads / 4096 * 4096;
        workers[i] = (struct worker){ .start = &start, .probe = p, .memory = memory + i * share,
                                      .bytes = share };
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) die("no thread");
    }
    for (uint32_t i = 0; i < threads; i++) {
        struct worker *w = &workers[i];
        pthread_join(w->thread, NULL);
        if (w->begin_ns < begin) begin = w->begin_ns;
        if (w->end_ns > end) end = w->end_ns;
        amount += w->amount;
        compute += (double)w->amount / w->cpu_s / 1e9;
    }
    pthread_barrier_destroy(&start);
    return p->compute ? compute : (double)amount / (double)(end - begin);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static uint8_t *take_memory(uint64_t bytes)
{
    uint8_t *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) die("no memory for the read probe");
    madvise(m, bytes, MADV_HUGEPAGE);
    memset(m, 1, bytes);
    return m;
}

int main(int argc, char **argv)
{
    long threads = argc > 1 ? strtol(argv[1], NULL, 10) : 2;
    if (threads < 1 || threads > THREAD_COUNT_MAX) {
        die("usage: roofline [threads, 1 to %d] [out.json]", THREAD_COUNT_MAX);
    }
    struct figures out = figures_open(argc > 2 ? argv[2] : NULL);
    struct worker *workers = mem_array((size_t)threads, sizeof *workers);
    uint8_t *memory = take_memory(UINT64_C(1) << 30);
    figure(&out, "threads", (double)threads);
    printf("%-28s %10s %10s\n", "", "best", "median");
    for (int i = 0; i < PROBE_COUNT; i++) {
        const struct probe *p = &probes[i];
        double s[ROUNDS];
        if (p->isa > isa_best()) continue;
        for (int r = 0; r < ROUNDS; r++) s[r] = one_round(p, workers, (uint32_t)threads, memory);
        qsort(s, ROUNDS, sizeof *s, by_value);
        printf("%-28s %10.1f %10.1f %s\n", p->what, s[ROUNDS - 1], s[ROUNDS / 2], p->unit);
        figure(&out, p->name, s[ROUNDS - 1]);
    }
    figures_close(&out);
    free(workers);
    return 0;
}
