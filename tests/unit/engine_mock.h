/* tests/unit/engine_mock.h - a backend that can tell whether it was used right.
 *
 * The KV of a token is its id, its position and its layer.  A step checks that all before `first`
 * is there, in every layer.  A drawn token is a hash of the whole history *as read back from the
 * blocks*, and the history that came with the job must be the same: any mistake in block tables,
 * sharing, eviction, import or order stops the test.  Steps can be held in the middle, and failed.
 */
#ifndef RANKSERVE_TESTS_ENGINE_MOCK_H
#define RANKSERVE_TESTS_ENGINE_MOCK_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/hash.h"
#include "common/mem.h"
#include "engine/backend.h"

enum { MOCK_LAYERS = 3, MOCK_VOCAB = 64, MOCK_CELL = 8 };

/* Shared by all engines of a test. */
static struct {
    _Atomic uint32_t step_tokens_max, chunk_max, seqs_max;   /* out: the largest seen */
    _Atomic int fail_steps, fail_samples;            /* that many next ones fail */
    _Atomic bool stepping;
    _Atomic uint32_t priorities;                     /* out: how often they were set */
    _Atomic pthread_t stepped_by;                    /* out: the last step */
    _Atomic uint32_t pieces;                         /* of memory that there are still to touch */
    _Atomic uint32_t touches, touch_blocks;          /* out: calls; what the last one was for */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint32_t hold_layer;                             /* steps stop before it; 0: they do not */
} mock = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };

struct mock_backend {
    struct kv_shape shape;
    uint32_t blocks, logits_max;
    uint32_t *cells;                  /* (layer, position of block, 4): K id pos, V ~id layer */
    const struct step *step;
    int low_priority;
};

static inline void mock_hold(uint32_t layer)
{
    pthread_mutex_lock(&mock.lock);
    mock.hold_layer = layer;
    pthread_cond_broadcast(&mock.moved);
    pthread_mutex_unlock(&mock.lock);
}

static inline void mock_pass(uint32_t layer)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    pthread_mutex_lock(&mock.lock);
    while (mock.hold_layer && layer >= mock.hold_layer)
        CHECK(pthread_cond_timedwait(&mock.moved, &mock.lock, &until) == 0);
    pthread_mutex_unlock(&mock.lock);
}

static inline uint32_t *mock_cell(struct mock_backend *m, const uint32_t *blocks, uint32_t layer,
                           uint32_t position)
{
    uint32_t size = m->shape.block_tokens, block = blocks[position / size];
    CHECK(block < m->blocks && layer < MOCK_LAYERS);
    return m->cells + 4 * (((size_t)layer * m->blocks + block) * size + position % size);
}

static inline void mock_check(struct mock_backend *m, const uint32_t *blocks, uint32_t layer,
                       uint32_t position)
{
    const uint32_t *c = mock_cell(m, blocks, layer, position);
    CHECK(c[1] == position + 1 && c[2] == ~c[0] && c[3] == layer);
}

static inline enum err mock_open(void **self, const struct backend_config *c, struct kv_shape *out,
                          struct why *why)
{
    (void)why;
    struct mock_backend *m = mem_alloc(sizeof *m);
    m->shape = (struct kv_shape){
        .block_tokens = c->block_tokens, .layers = MOCK_LAYERS, .token_bytes = 2 * MOCK_CELL,
    };
    m->blocks = (uint32_t)(c->kv_bytes / (2 * MOCK_CELL * MOCK_LAYERS * c->block_tokens));
    m->shape.block_count = m->blocks;
    m->logits_max = c->step_seqs_max;
    m->cells = mem_array((size_t)MOCK_LAYERS * m->blocks * c->block_tokens, 16);
    *out = m->shape;
    *self = m;
    return OK;
}

static inline void mock_close(void *self)
{
    struct mock_backend *m = self;
    free(m->cells);
    free(m);
}

static inline void mock_seq(struct mock_backend *m, const struct step *s, const struct step_seq *q,
                     uint32_t layer)
{
    for (uint32_t p = 0; p < q->first; p++) mock_check(m, q->blocks, layer, p);
    for (uint32_t i = 0; i < q->count; i++) {
        uint32_t *c = mock_cell(m, q->blocks, layer, q->first + i);
        c[0] = (uint32_t)s->ids[q->row + i];
        c[1] = q->first + i + 1;
        c[2] = ~c[0];
        c[3] = layer;
    }
}

/* Engines race for it only in the stress test, which does not look. */
static inline void mock_largest(_Atomic uint32_t *largest, uint32_t n)
{
    if (n > atomic_load(largest)) atomic_store(largest, n);
}

static inline bool mock_fails(_Atomic int *left)
{
    if (atomic_load(left) == 0) return false;
    atomic_fetch_sub(left, 1);
    return true;
}

static inline void mock_check_step(const struct mock_backend *m, const struct step *s)
{
    mock_largest(&mock.step_tokens_max, s->token_count);
    mock_largest(&mock.seqs_max, s->seq_count);
    CHECK(s->logit_count <= m->logits_max);
    for (uint32_t i = 1; i < s->logit_count; i++) CHECK(s->logit_rows[i - 1] < s->logit_rows[i]);
    uint32_t row = 0;
    for (uint32_t i = 0; i < s->seq_count; row += s->seqs[i++].count) {
        CHECK(s->seqs[i].row == row && s->seqs[i].count >= 1);
        mock_largest(&mock.chunk_max, s->seqs[i].count);
    }
    CHECK(row == s->token_count);
}

static inline enum err mock_step(void *self, const struct step *s)
{
    struct mock_backend *m = self;
    m->step = s;
    mock_check_step(m, s);
    if (mock_fails(&mock.fail_steps)) return ERR_IO;
    mock.stepping = true;
    mock.stepped_by = pthread_self();
    for (uint32_t layer = 0; layer < MOCK_LAYERS; layer++) {
        mock_pass(layer);
        for (uint32_t i = 0; i < s->seq_count; i++) mock_seq(m, s, &s->seqs[i], layer);
        atomic_store_explicit(s->layers_done, layer + 1, memory_order_release);
        if (s->notify) s->notify(s->notify_ctx);
    }
    mock.stepping = false;
    return OK;
}

/* What the model says after these ids: the test's own copy of the truth. */
static inline int32_t mock_token(const int32_t *ids, uint32_t count, uint64_t seed)
{
    struct hash_secret key = { seed, count };
    return (int32_t)(hash_sip128(key, ids, count * sizeof *ids).lo % MOCK_VOCAB);
}

static inline float mock_score(const int32_t *ids, uint32_t position)
{
    struct hash_secret key = { 99, position };
    return -(float)(hash_sip128(key, ids, (position + 1) * sizeof *ids).lo % 1000);
}

/* History up to and with the row's token, as the blocks have it. */
static inline uint32_t mock_recall(struct mock_backend *m, uint32_t logit, int32_t *ids)
{
    const struct step *s = m->step;
    CHECK(logit < s->logit_count);
    uint32_t row = s->logit_rows[logit];
    const struct step_seq *q = s->seqs;
    while (row >= q->row + q->count) q++;
    uint32_t count = q->first + row - q->row + 1;
    for (uint32_t p = 0; p < count; p++) {
        for (uint32_t layer = 0; layer < MOCK_LAYERS; layer++) mock_check(m, q->blocks, layer, p);
        ids[p] = (int32_t)mock_cell(m, q->blocks, MOCK_LAYERS - 1, p)[0];
    }
    return count;
}

static inline void mock_tops(struct sample_job *j, uint16_t count)
{
    j->record.top_count = count;
    for (uint16_t i = 0; i < count; i++)
        j->top[i] = (struct top_logprob){ (int32_t)i, (float)j->record.position };
}

static inline enum err mock_sample(void *self, struct sample_job *jobs, uint32_t count)
{
    struct mock_backend *m = self;
    if (mock_fails(&mock.fail_samples)) return ERR_IO;
    int32_t ids[1024];
    for (struct sample_job *j = jobs; j < jobs + count; j++) {
        uint32_t n = mock_recall(m, j->logit, ids);
        if (j->score_only) {
            CHECK(n == j->position);
            ids[n] = j->score_id;
            j->record = (struct token_record){
                .position = n, .id = j->score_id, .logprob = mock_score(ids, n), .rank = 1,
            };
            mock_tops(j, j->score_top_count);
            continue;
        }
        CHECK(n == j->history_count && memcmp(ids, j->history, n * sizeof *ids) == 0);
        j->record = (struct token_record){
            .position = n, .id = mock_token(ids, n, j->params->seed),
        };
        mock_tops(j, j->params->flags & SAMPLING_LOGPROBS ? j->params->top_count : 0);
    }
    return OK;
}

/* Per layer K (count, id and position), then V (count). */
static inline void mock_kv_read(void *self, const uint32_t *blocks, uint32_t layer,
                                uint32_t layers, uint32_t first, uint32_t count, void *out)
{
    char *at = out;
    for (uint32_t l = layer; l < layer + layers; l++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t i = 0; i < count; i++, at += MOCK_CELL)
                memcpy(at, mock_cell(self, blocks, l, first + i) + 2 * half, MOCK_CELL);
}

static inline void mock_kv_write(void *self, const uint32_t *blocks, uint32_t layer,
                                 uint32_t layers, uint32_t first, uint32_t count, const void *in)
{
    const char *at = in;
    for (uint32_t l = layer; l < layer + layers; l++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t i = 0; i < count; i++, at += MOCK_CELL)
                memcpy(mock_cell(self, blocks, l, first + i) + 2 * half, at, MOCK_CELL);
}

/* Between two steps only, by the control thread. */
static inline void mock_set_priority(void *self, int low_priority)
{
    struct mock_backend *m = self;
    CHECK(!mock.stepping);
    m->low_priority = low_priority;
    mock.priorities++;
}

static inline bool mock_kv_touch(void *self, uint32_t blocks)
{
    const struct mock_backend *m = self;
    CHECK(blocks >= 1 && blocks <= m->blocks);
    mock.touch_blocks = blocks;
    mock.touches++;
    if (mock.pieces == 0) return false;
    mock.pieces--;
    return true;
}

static const struct backend backend_mock = {
    .name = "mock",
    .open = mock_open,
    .close = mock_close,
    .set_priority = mock_set_priority,
    .step = mock_step,
    .sample = mock_sample,
    .kv_read = mock_kv_read,
    .kv_write = mock_kv_write,
    .kv_touch = mock_kv_touch,
};

#endif
