/* engine/null_backend.c - see null_backend.h. */
#include "engine/null_backend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/mem.h"

enum {
    HISTORY_HASHED = 64,              /* ids of the history that a token depends on */
    SLEEP_NS_MIN = 50000,             /* shorter waits are added up, to the last */
    LATE_NS_MAX = 40000,              /* what of a sleep's lateness is made up for */
    PACE_US_MAX = 60 * 1000 * 1000,
};

struct null_backend {
    struct kv_shape shape;
    uint32_t vocab;
    uint64_t step_ns, token_ns;
    uint64_t late_ns;                 /* how much later than asked a sleep ends, on average */
};

static uint64_t pace_ns(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    errno = 0;
    unsigned long us = strtoul(text, &end, 10);
    if (errno || *end || *text == '-' || us > PACE_US_MAX)
        die("%s is \"%s\", must be microseconds, 0 to %d", name, text, PACE_US_MAX);
    return us * 1000;
}

static enum err null_open(void **self, const struct backend_config *c, struct kv_shape *shape_out,
                          struct why *why)
{
    const struct model *m = c->model;
    uint64_t file_bytes = 0;
    if (m && m->file) gguf_image(m->file, &file_bytes);
    struct kv_shape s = {
        .block_tokens = c->block_tokens,
        .layers = m ? m->h.layers : 1,
        .token_bytes = m ? kv_token_bytes(&m->h, c->kv_type) : 64,
    };
    if (s.block_tokens < 1 || s.block_tokens > KV_BLOCK_TOKENS_MAX)
        return why_set(why, ERR_LIMIT, "block-size is %u, must be 1 to %d", s.block_tokens,
                       KV_BLOCK_TOKENS_MAX);
    uint64_t blocks = c->kv_bytes / (s.block_tokens * s.layers * s.token_bytes);
    if (blocks < 1) return why_set(why, ERR_LIMIT, "the KV cache is smaller than one block");
    s.block_count = blocks < KV_BLOCK_COUNT_MAX ? (uint32_t)blocks : KV_BLOCK_COUNT_MAX;
    struct null_backend *n = mem_alloc(sizeof *n);
    n->shape = s;
    n->vocab = m ? m->h.vocab : 32000;
    n->step_ns = pace_ns("RANKSERVE_NULL_STEP_US", file_bytes / 20);
    n->token_ns = pace_ns("RANKSERVE_NULL_TOKEN_US", file_bytes / 64);
    *shape_out = s;
    *self = n;
    return OK;
}

static void null_close(void *self)
{
    free(self);
}

/* A timer and a wake-up take tens of microseconds, which no engine would: the sleep ends so much
 * before `due`, and what is left of it passes awake. */
static void sleep_until(struct null_backend *n, uint64_t due)
{
    uint64_t asked = due - n->late_ns, now = clock_now_ns();
    if (asked > now) {
        struct timespec t = { (time_t)(asked / NS_PER_S), (long)(asked % NS_PER_S) };
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
        now = clock_now_ns();
        uint64_t late = now - asked < LATE_NS_MAX ? now - asked : LATE_NS_MAX;
        n->late_ns = (7 * n->late_ns + late) / 8;
    }
    while (now < due) now = clock_now_ns();
}

static enum err null_step(void *self, const struct step *s)
{
    struct null_backend *n = self;
    uint64_t total = n->step_ns + s->token_count * n->token_ns, start = clock_now_ns();
    for (uint32_t i = 1; i <= n->shape.layers; i++) {
        uint64_t due = start + total * i / n->shape.layers;
        uint64_t short_wait = i < n->shape.layers ? SLEEP_NS_MIN : 0;
        if (due > clock_now_ns() + short_wait) sleep_until(n, due);
        atomic_store_explicit(s->layers_done, i, memory_order_release);
        if (s->notify) s->notify(s->notify_ctx);
    }
    return OK;
}

static int32_t token_after(const struct null_backend *n, const struct sample_job *j)
{
    uint32_t first = j->history_count > HISTORY_HASHED ? j->history_count - HISTORY_HASHED : 0;
    struct hash_secret key = { j->params->seed, j->history_count };
    struct hash128 h = hash_sip128(key, j->history + first,
                                   (j->history_count - first) * sizeof *j->history);
    return (int32_t)(h.lo % n->vocab);
}

static enum err null_sample(void *self, struct sample_job *jobs, uint32_t count)
{
    const struct null_backend *n = self;
    for (struct sample_job *j = jobs; j < jobs + count; j++) {
        bool asked = j->score_only || j->params->flags & SAMPLING_LOGPROBS;
        uint16_t tops = j->score_only ? j->score_top_count : j->params->top_count;
        if (!asked) tops = 0;
        if (tops > n->vocab) tops = (uint16_t)n->vocab;
        j->record = (struct token_record){
            .position = j->score_only ? j->position : j->history_count,
            .id = j->score_only ? j->score_id : token_after(n, j),
            .logprob = -1,
            .rank = asked ? 1 : 0,
            .top_count = tops,
        };
        for (uint32_t i = 0; i < tops; i++)
            j->top[i] = (struct top_logprob){
                .id = (int32_t)(((uint32_t)j->record.id + i) % n->vocab),
                .logprob = -1.0f - (float)i,
            };
    }
    return OK;
}

static void null_kv_read(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                         uint32_t first, uint32_t count, void *out)
{
    const struct null_backend *n = self;
    (void)blocks, (void)layer, (void)first;
    memset(out, 0, layers * count * n->shape.token_bytes);
}

static void null_kv_write(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                          uint32_t first, uint32_t count, const void *in)
{
    (void)self, (void)blocks, (void)layer, (void)layers, (void)first, (void)count, (void)in;
}

static uint64_t null_packed_bytes(const struct model *m, enum isa isa)
{
    (void)m, (void)isa;
    return 0;
}

static void null_pack(const struct model *m, enum isa isa, void *out, uint32_t part,
                      uint32_t parts)
{
    (void)m, (void)isa, (void)out, (void)part, (void)parts;
}

const struct backend backend_null = {
    .name = "null",
    .open = null_open,
    .close = null_close,
    .step = null_step,
    .sample = null_sample,
    .kv_read = null_kv_read,
    .kv_write = null_kv_write,
    .packed_bytes = null_packed_bytes,
    .pack = null_pack,
};
