/* tests/cuda/world.h - sequences through a backend in steps of random shape; all logits kept.
 *
 * The same sequences run on the CPU's plain path and on CUDA (in emulation: tests/cusim), in many
 * schedules. Logits are taken from the backends' own buffers, behind a score job that fetches
 * them.
 */
#ifndef RANKSERVE_TESTS_CUDA_WORLD_H
#define RANKSERVE_TESTS_CUDA_WORLD_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "tiny_model.h"

enum { WORLD_SEQS = 3, WORLD_STEP = 768, WORLD_BLOCKS = 512, WORLD_TOKENS = 700 };

extern const struct backend backend_cuda;
const float *peek_cpu_logits(const void *self, uint32_t row);

struct world {
    const struct backend *table;
    const struct model *model;
    void *self;
    struct kv_shape shape;
    uint32_t lengths[WORLD_SEQS], done[WORLD_SEQS];
    uint32_t blocks[WORLD_SEQS][WORLD_TOKENS / 8 + 1];
    int32_t ids[WORLD_SEQS][WORLD_TOKENS + 1];
    float *logits[WORLD_SEQS];        /* (length, V) */
    uint64_t seed;
};

struct schedule {
    uint64_t seed;
    uint32_t chunk_max;               /* 0: each prompt in one step of its own */
    uint32_t tail;                    /* the last tokens come one a step       */
};

static inline struct backend_config world_config(const struct model *m, enum kv_type kv,
                                                 bool floats)
{
    return (struct backend_config){
        .model = m, .threads = 1, .isa = ISA_PLAIN, .float_activations = floats, .kv_type = kv,
        .block_tokens = 16, .step_tokens_max = WORLD_STEP, .step_seqs_max = 8,
        .seq_tokens_max = WORLD_TOKENS, .gpu_memory_utilization = 0.9f,
        .kv_bytes = (uint64_t)WORLD_BLOCKS * 16 * m->h.layers * kv_token_bytes(&m->h, KV_F32),
    };
}

static inline void world_open(struct world *w, const struct backend *table,
                              const struct backend_config *c, const uint32_t *lengths)
{
    *w = (struct world){ .table = table, .model = c->model };
    struct why why = { "" };
    if (table->open(&w->self, c, &w->shape, &why)) fail_msg("%s", why.text);
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        w->lengths[s] = lengths[s];
        w->logits[s] = mem_array(lengths[s] + 1, c->model->h.vocab * sizeof(float));
    }
}

/* New blocks and ids; what the pool held before is garbage to it. */
static inline void world_start(struct world *w, uint64_t block_seed)
{
    uint32_t free_blocks[WORLD_BLOCKS], left = WORLD_BLOCKS;
    uint64_t ids = 5;
    for (uint32_t i = 0; i < WORLD_BLOCKS; i++) free_blocks[i] = i;
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        w->done[s] = 0;
        for (uint32_t i = 0; i <= w->lengths[s]; i++)
            w->ids[s][i] = (int32_t)(tiny_random(&ids) % w->model->h.vocab);
        for (uint32_t i = 0; i * 16 < w->lengths[s]; i++) {
            uint32_t pick = (uint32_t)(tiny_random(&block_seed) % left);
            w->blocks[s][i] = free_blocks[pick];
            free_blocks[pick] = free_blocks[--left];
        }
    }
}

static inline void world_close(struct world *w)
{
    w->table->close(w->self);
    for (uint32_t s = 0; s < WORLD_SEQS; s++) free(w->logits[s]);
}

/* The logits of row `row`, just fetched by a score job. */
static inline const float *world_logits(const struct world *w, uint32_t row)
{
    if (w->table == &backend_cpu) return peek_cpu_logits(w->self, row);
    const struct cuda *u = w->self;
    return u->logits_host + (uint64_t)(row % u->logit_rows_max) * (uint32_t)u->head.w.out;
}

/* One step of the given parts; every row's logits are kept. */
static inline void world_step(struct world *w, const struct step_seq *parts, const uint32_t *which,
                              uint32_t count, const int32_t *ids, uint32_t tokens)
{
    static uint32_t rows[WORLD_STEP];
    _Atomic uint32_t layers_done = 0;
    for (uint32_t i = 0; i < tokens; i++) rows[i] = i;
    struct step s = { .ids = ids, .token_count = tokens, .seq_count = count, .seqs = parts,
                      .logit_rows = rows, .logit_count = tokens, .layers_done = &layers_done };
    assert_int_equal(w->table->step(w->self, &s), OK);
    assert_int_equal(layers_done, w->shape.layers);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t t = 0; t < parts[i].count; t++) {
            uint32_t row = parts[i].row + t, position = parts[i].first + t;
            struct sample_job j = { .logit = row, .score_only = true, .position = position + 1,
                                    .score_id = w->ids[which[i]][position + 1] };
            assert_int_equal(w->table->sample(w->self, &j, 1), OK);
            uint32_t vocab = w->model->h.vocab;
            memcpy(w->logits[which[i]] + (uint64_t)position * vocab, world_logits(w, row),
                   vocab * sizeof(float));
        }
    }
}

static inline uint32_t world_chunk(const struct world *w, const struct schedule *c, uint32_t s,
                                   uint64_t *seed)
{
    uint32_t rest = w->lengths[s] - w->done[s];
    if (rest == 0) return 0;
    uint32_t body = rest > c->tail ? rest - c->tail : 0;
    if (body == 0) return 1;
    if (c->chunk_max == 0) return body;
    uint32_t n = 1 + (uint32_t)(tiny_random(seed) % c->chunk_max);
    return n < body ? n : body;
}

/* A step with chunks of some of the sequences; false: all are done. */
static inline bool world_advance(struct world *w, const struct schedule *c, uint64_t *seed)
{
    struct step_seq parts[WORLD_SEQS];
    static int32_t ids[WORLD_STEP];
    uint32_t which[WORLD_SEQS], count = 0, tokens = 0, left = 0;
    for (uint32_t i = 0, s = (uint32_t)(tiny_random(seed) % WORLD_SEQS); i < WORLD_SEQS; i++) {
        s = (s + 1) % WORLD_SEQS;
        left += w->lengths[s] - w->done[s];
        uint32_t n = world_chunk(w, c, s, seed);
        bool alone = c->chunk_max == 0 && n > 1;
        if (n == 0 || tokens + n > WORLD_STEP || (alone && count)) continue;
        if (c->chunk_max && tiny_random(seed) % 4 == 0) continue;
        parts[count] = (struct step_seq){ .first = w->done[s], .count = n, .row = tokens,
                                          .blocks = w->blocks[s] };
        memcpy(ids + tokens, w->ids[s] + w->done[s], n * sizeof *ids);
        which[count++] = s;
        tokens += n;
        w->done[s] += n;
        if (alone) break;
    }
    if (count) world_step(w, parts, which, count, ids, tokens);
    return left > 0;
}

static inline void world_run(struct world *w, const struct schedule *c)
{
    uint64_t seed = c->seed;
    world_start(w, c->seed);
    while (world_advance(w, c, &seed)) { }
}

/* The largest difference of a row's logits over that row's rms, over all rows. */
static inline double world_distance(const struct world *a, const struct world *b)
{
    uint32_t vocab = a->model->h.vocab;
    double worst = 0;
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        for (uint32_t t = 0; t < a->lengths[s]; t++) {
            const float *x = a->logits[s] + (uint64_t)t * vocab;
            const float *y = b->logits[s] + (uint64_t)t * vocab;
            double sum = 0, most = 0;
            for (uint32_t i = 0; i < vocab; i++) {
                double d = fabs((double)x[i] - (double)y[i]);
                sum += (double)x[i] * (double)x[i];
                if (!(d <= most)) most = d;
            }
            double relative = most / sqrt(sum / vocab);
            if (!(relative <= worst)) worst = relative;
        }
    }
    return worst;
}

static inline bool world_same_bits(const struct world *a, const float *const *logits)
{
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        size_t bytes = (size_t)a->lengths[s] * a->model->h.vocab * sizeof(float);
        if (memcmp(a->logits[s], logits[s], bytes)) return false;
    }
    return true;
}

#endif
