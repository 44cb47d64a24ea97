/* perf/sched_bench.c - rank 0's index and decisions at full size.
 *
 *   sched_bench [FILE]                figures as JSON into FILE
 *
 * An index of 10 million blocks over 1,024 workers; prompts of 8,192 blocks: a system prompt that
 * many workers hold, a conversation that a few hold to different depths, then new blocks.  One row:
 * the lookup alone; then whole decisions (EV_REQUEST to ACT_RUN, the lookup included) with a
 * thousand requests in flight.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/splitmix.h"
#include "figures.h"
#include "kv/index.h"
#include "sched/sched.h"

enum {
    WORKERS = 1024, BLOCKS = 10000000, PROMPT_BLOCKS = 8192, PROMPTS = 64, SYSTEM_BLOCKS = 256,
    LIVE = 1000, SAMPLES = 20000, PER_STREAM = BLOCKS / WORKERS,
};

static uint64_t state = 1;

static uint64_t roll(void)
{
    return splitmix_next(&state);
}

struct bench {
    struct kv_index *index;
    struct hash128 keys[PROMPTS][PROMPT_BLOCKS];
    uint64_t ns[SAMPLES];
    uint32_t held[WORKERS + 1];
    struct figures figures;
};

static void store(struct bench *b, uint32_t rank, struct hash128 key)
{
    struct kv_change c = { .key = key, .stored = 1 };
    uint64_t seq = kv_index_next_seq(b->index, rank);
    CHECK(kv_index_apply(b->index, rank, 1, seq, &c, 1) == OK);
}

static void fill(struct bench *b)
{
    for (uint32_t rank = 1; rank <= WORKERS; rank++) kv_index_up(b->index, rank, 1, 1);
    struct hash128 shared[SYSTEM_BLOCKS];
    for (int i = 0; i < SYSTEM_BLOCKS; i++) {
        shared[i] = (struct hash128){ roll(), roll() };
        for (uint32_t rank = 1; rank <= WORKERS; rank += i < SYSTEM_BLOCKS / 2 ? 1 : 2)
            store(b, rank, shared[i]);
    }
    for (int p = 0; p < PROMPTS; p++) {
        for (int i = 0; i < PROMPT_BLOCKS; i++)
            b->keys[p][i] = i < SYSTEM_BLOCKS ? shared[i] : (struct hash128){ roll(), roll() };
        for (uint64_t n = 1 + roll() % 6; n > 0; n--) {
            uint32_t rank = 1 + 2 * (uint32_t)(roll() % (WORKERS / 2));
            uint32_t depth = (uint32_t)(roll() % PROMPT_BLOCKS);
            if (kv_index_match(b->index, b->keys[p], PROMPT_BLOCKS, b->held) > 0
                && b->held[rank] > SYSTEM_BLOCKS)
                continue;
            for (uint32_t i = SYSTEM_BLOCKS; i < depth; i++) store(b, rank, b->keys[p][i]);
        }
    }
    struct kv_index_stats s;
    for (kv_index_stats(b->index, &s); s.keys < BLOCKS; s.keys++)
        store(b, 1 + (uint32_t)(roll() % WORKERS), (struct hash128){ roll(), roll() });
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_row(struct bench *b, const char *what, uint32_t count)
{
    double sum = 0;
    qsort(b->ns, count, sizeof *b->ns, ascending);
    for (uint32_t i = 0; i < count; i++) sum += (double)b->ns[i];
    printf("%-28s mean %7.1f us   p50 %7.1f us   p99 %7.1f us\n", what, sum / count / 1e3,
           (double)b->ns[count / 2] / 1e3, (double)b->ns[count * 99 / 100] / 1e3);
    char name[64];
    snprintf(name, sizeof name, "%s_p50_us", what);
    for (char *c = name; *c; c++)
        if (*c == ',' || *c == ' ' || *c == '-') *c = '_';
    figure(&b->figures, name, (double)b->ns[count / 2] / 1e3);
}

static void bench_lookup(struct bench *b)
{
    for (uint32_t i = 0; i < SAMPLES; i++) {
        const struct hash128 *keys = b->keys[roll() % PROMPTS];
        uint64_t start = clock_now_ns();
        kv_index_match(b->index, keys, PROMPT_BLOCKS, b->held);
        b->ns[i] = clock_now_ns() - start;
    }
    print_row(b, "lookup", SAMPLES);
}

static uint64_t now_ns = 1;

static size_t step(struct sched *s, struct sched_event e, struct sched_action *out)
{
    return sched_step(s, now_ns += 1000000, &e, 1, out, SCHED_ACTIONS_MAX);
}

static void bench_decision(struct bench *b, enum sched_policy policy)
{
    static struct sched_action out[SCHED_ACTIONS_MAX];
    struct sched_config c = { .rank_count = WORKERS + 1, .queue_max = REQ_COUNT_MAX,
                              .block_tokens = 16, .policy = policy, .index = b->index };
    struct sched *s = sched_init(mem_alloc(sched_bytes(&c)), &c);
    struct sched_rates rates = { .prefill_token_ns = 62500, .prefill_context_ns = 500,
                                 .step_ns = 8e6, .step_seq_ns = 1e5, .kv_token_bytes = 262144,
                                 .link_bytes_s = 25e9 };
    for (int32_t rank = 1; rank <= WORKERS; rank++) {
        step(s, (struct sched_event){ .type = EV_WORKER_UP, .worker = rank, .role = ROLE_BOTH,
                                      .blocks = 100000, .seqs = 128, .max_tokens = 1 << 20 }, out);
        step(s, (struct sched_event){ .type = EV_RATES, .worker = rank, .rates = &rates }, out);
    }
    static struct { struct req_id id; int32_t worker; } live[LIVE];
    uint32_t placed = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint16_t slot = (uint16_t)(i % LIVE);
        if (i >= LIVE) {              /* the oldest one ends */
            struct sched_event e = { .req = live[slot].id, .worker = live[slot].worker };
            for (int k = 0; k < 3; k++) {
                e.type = (enum sched_event_type[]){ EV_FIRST, EV_FINISHED, EV_GONE }[k];
                if (e.worker == 0) e.type = EV_CANCEL;    /* it was still waiting */
                size_t n = step(s, e, out);
                for (size_t j = 0; j < n; j++) {
                    if (out[j].type != ACT_RUN) continue;
                    live[out[j].req.slot].id = out[j].req;
                    live[out[j].req.slot].worker = out[j].worker;
                }
            }
        }
        live[slot].id = (struct req_id){ .slot = slot, .generation = i + 1 };
        live[slot].worker = 0;
        struct sched_event e = {
            .type = EV_REQUEST, .req = live[slot].id, .prompt_tokens = PROMPT_BLOCKS * 16 + 1,
            .max_tokens = 500, .keys = b->keys[roll() % PROMPTS], .key_count = PROMPT_BLOCKS,
        };
        uint64_t start = clock_now_ns();
        size_t n = step(s, e, out);
        b->ns[i] = clock_now_ns() - start;
        for (size_t j = 0; j < n; j++) {
            if (out[j].type != ACT_RUN) continue;
            placed++;
            live[out[j].req.slot].id = out[j].req;
            live[out[j].req.slot].worker = out[j].worker;
        }
    }
    char name[64];
    snprintf(name, sizeof name, "decision %s", sched_policy_name(policy));
    print_row(b, name, SAMPLES);
    if (placed == 0) printf("  nothing was placed\n");
    free(s);
}

int main(int argc, char **argv)
{
    struct bench *b = mem_alloc(sizeof *b);
    b->figures = figures_open(argc > 1 ? argv[1] : NULL);
    b->index = kv_index_open(BLOCKS, WORKERS + 1);
    uint64_t start = clock_now_ns();
    fill(b);
    struct kv_index_stats s;
    kv_index_stats(b->index, &s);
    printf("%llu blocks of %d workers, %.1f bytes a block, %.2f M changes/s while filling\n",
           (unsigned long long)s.keys, WORKERS, (double)s.bytes / (double)s.keys,
           (double)s.changes / ((double)(clock_now_ns() - start) / 1e3));
    bench_lookup(b);
    for (int p = 0; p < POLICY_COUNT; p++) bench_decision(b, (enum sched_policy)p);
    start = clock_now_ns();
    kv_index_lost(b->index, 1);
    printf("a lost worker's entries go in %.1f us\n", (double)(clock_now_ns() - start) / 1e3);
    figures_close(&b->figures);
    kv_index_close(b->index);
    free(b);
    return 0;
}
