/* ctl/sim_worker.c - one simulated worker: a real pool of blocks, prompts in turn, decode steps.
 *
 * A step computes up to chunk_tokens of the prompt in front and one token of everybody who decodes:
 *
 *     step = step_ns + step_seq_ns * decoding + the chunk's time
 *
 * Between two events of a worker that time is constant, and progress is counted in (parts of)
 * steps.  A prompt's blocks and room for its answer are taken when its turn comes; then a sequence
 * is never preempted.  Prompts wait in the order in which they came.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/mem.h"
#include "common/sampling.h"
#include "ctl/sim.h"

enum seq_state { PULLING, WAITING, PROMPT, SENDING, EXPECTING, DECODING };

struct seq {
    struct seq *next;
    struct req_id req;
    const struct sim_job *job;
    enum seq_state state;
    int32_t partner;                  /* of a prefill: who gets its KV; -1: it decodes here      */
    uint32_t *blocks;
    uint32_t pulled;                  /* leading blocks that came from another worker            */
    uint32_t block_count, stored;     /* held; how many of them, from the first, are stored      */
    double ends;                      /* DECODING: at this count of steps                        */
    uint64_t prompt_ns;               /* when its prompt's turn came */
};

enum { CHANGES_MAX = 512 };

struct sim_worker {
    struct sim_world *world;
    uint32_t rank, block_tokens;
    struct sim_engine e;
    struct kv_pool *pool;
    struct seq *seqs, **last;         /* all, in the order in which they came */
    uint32_t seq_count, decoding;
    struct seq *prompt;               /* the one being computed */
    double steps_left;                /* of its prompt */
    double chunk_ns;                  /* of each of these steps */
    double steps;                     /* done so far, in all */
    double step_ns;                   /* of the present mix; 0: idle */
    uint64_t at_ns;                   /* up to when steps are counted */
    uint64_t link_free_ns;
    double busy_ns;
    uint64_t key_count;               /* the truth about what is stored */
    struct hash128 xored;
    struct kv_change changes[CHANGES_MAX];
    uint32_t change_count, changes_said;
};

/* -- what it tells rank 0 --------------------------------------------------------------------- */

static void flush(struct sim_worker *w)
{
    if (w->change_count == 0) return;
    world_say_blocks(w->world, w->rank, w->changes, w->change_count);
    w->changes_said += w->change_count;
    w->change_count = 0;
    if (w->changes_said < CHANGES_MAX) return;
    w->changes_said = 0;
    world_say_truth(w->world, w->rank, w->key_count, w->xored);
}

static void change(struct sim_worker *w, struct hash128 key, struct hash128 parent, bool stored)
{
    if (w->change_count == CHANGES_MAX) flush(w);
    w->changes[w->change_count++] = (struct kv_change){ key, parent, stored };
    w->key_count += stored ? 1 : (uint64_t)-1;
    w->xored.lo ^= key.lo;
    w->xored.hi ^= key.hi;
}

static void on_stored(void *ctx, struct hash128 key, struct hash128 parent)
{
    change(ctx, key, parent, true);
}

static void on_dropped(void *ctx, struct hash128 key)
{
    change(ctx, key, (struct hash128){ 0 }, false);
}

static void say(struct sim_worker *w, enum sched_event_type type, struct req_id req)
{
    flush(w);
    world_say(w->world, w->rank, (struct sched_event){ .type = type, .req = req,
                                                       .worker = (int32_t)w->rank,
                                                       .finish = FINISH_LENGTH,
                                                       .err = ERR_FULL });
}

/* -- sequences -------------------------------------------------------------------------------- */

struct sim_worker *worker_open(struct sim_world *m, uint32_t rank, const struct sim_engine *e,
                               uint32_t block_tokens)
{
    struct sim_worker *w = mem_alloc(sizeof *w);
    w->world = m;
    w->rank = rank;
    w->block_tokens = block_tokens;
    w->e = *e;
    w->last = &w->seqs;
    struct kv_pool_sink sink = { w, on_stored, on_dropped };
    w->pool = kv_pool_open(e->cache_tokens / block_tokens, 1, &sink);
    w->at_ns = world_now(m);
    return w;
}

void worker_close(struct sim_worker *w, bool dead)
{
    while (w->seqs) {
        CHECK(dead);
        struct seq *q = w->seqs;
        w->seqs = q->next;
        free(q->blocks);
        free(q);
    }
    kv_pool_check(w->pool);
    CHECK(dead || kv_pool_counts(w->pool).held == 0);
    kv_pool_close(w->pool);
    free(w);
}

static struct seq *find(struct sim_worker *w, struct req_id req)
{
    struct seq *q = w->seqs;
    while (q && !req_id_equal(q->req, req)) q = q->next;
    return q;
}

static struct seq *add(struct sim_worker *w, struct req_id req, enum seq_state state, int32_t to)
{
    CHECK(!find(w, req));
    struct seq *q = mem_alloc(sizeof *q);
    *q = (struct seq){ .req = req, .job = world_job(w->world, req), .state = state, .partner = to };
    *w->last = q;
    w->last = &q->next;
    w->seq_count++;
    return q;
}

/* Takes what is cached of its prompt and new blocks for the rest; false, nothing taken: no room. */
static bool take_blocks(struct sim_worker *w, struct seq *q, uint32_t output)
{
    const struct sim_job *job = q->job;
    uint32_t need = (job->prompt_tokens + output + w->block_tokens - 1) / w->block_tokens;
    uint32_t cacheable = (job->prompt_tokens - 1) / w->block_tokens, parent = KV_BLOCK_NONE;
    q->blocks = mem_array(need, sizeof *q->blocks);
    q->block_count = 0;
    while (q->block_count < cacheable && q->block_count < job->block_count) {
        uint32_t i = q->block_count;
        uint32_t b = kv_pool_find(w->pool, job->keys[i], parent, &job->ids[i]);
        if (b == KV_BLOCK_NONE) break;
        kv_pool_hold(w->pool, b);
        q->blocks[q->block_count++] = parent = b;
    }
    q->stored = q->block_count;
    struct kv_pool_counts c = kv_pool_counts(w->pool);
    if (c.free + c.cached < need - q->block_count) {
        kv_pool_release(w->pool, q->blocks, q->block_count);
        free(q->blocks);
        q->blocks = NULL;
        q->block_count = 0;
        return false;
    }
    while (q->block_count < need) q->blocks[q->block_count++] = kv_pool_take(w->pool);
    return true;
}

static void store_blocks(struct sim_worker *w, struct seq *q, uint32_t count)
{
    const struct sim_job *job = q->job;
    for (uint32_t i = q->stored; i < count; i++) {
        uint32_t parent = i ? q->blocks[i - 1] : KV_BLOCK_NONE;
        struct hash128 parent_key = i ? job->keys[i - 1] : (struct hash128){ 0 };
        uint32_t b = kv_pool_store(w->pool, q->blocks[i], parent, job->keys[i], parent_key,
                                   &job->ids[i]);
        CHECK(b != KV_BLOCK_NONE);    /* no two keys are equal here */
        q->blocks[i] = b;
        q->stored = i + 1;
    }
}

static void drop(struct sim_worker *w, struct seq *q)
{
    struct seq **at = &w->seqs;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    if (w->last == &q->next) w->last = at;
    if (q == w->prompt) w->prompt = NULL;
    if (q->state == DECODING) w->decoding--;
    kv_pool_release(w->pool, q->blocks, q->block_count);
    w->seq_count--;
    say(w, EV_GONE, q->req);
    free(q->blocks);
    free(q);
}

/* -- time ------------------------------------------------------------------------------------- */

/* Counts the steps up to now. */
static void advance(struct sim_worker *w)
{
    uint64_t now = world_now(w->world);
    if (w->step_ns > 0) {
        double done = (double)(now - w->at_ns) / w->step_ns;
        w->steps += done;
        if (w->prompt) {
            w->steps_left -= done;
            w->busy_ns += (double)(now - w->at_ns);
        }
    }
    w->at_ns = now;
}

static void start_prompt(struct sim_worker *w)
{
    struct seq *q = w->seqs;
    while (q && q->state != WAITING) q = q->next;
    if (!q || w->prompt) return;
    if (w->decoding >= w->e.seqs) return;
    if (!take_blocks(w, q, q->partner < 0 ? q->job->output_tokens : 0)) return;
    store_blocks(w, q, q->pulled);
    double cached = (double)q->stored * w->block_tokens, left = q->job->prompt_tokens - cached;
    double ns = left * (w->e.prefill_token_ns
                        + w->e.prefill_context_ns * (cached + left / 2) / 1024);
    w->prompt = q;
    w->steps_left = ceil(left / w->e.chunk_tokens);
    w->chunk_ns = ns / w->steps_left;
    q->state = PROMPT;
    q->prompt_ns = world_now(w->world);
    world_note_cached(w->world, q->req, q->stored);
}

static void begin_decode(struct sim_worker *w, struct seq *q)
{
    q->state = DECODING;
    q->ends = w->steps + q->job->output_tokens - 1;
    w->decoding++;
}

static void end_prompt(struct sim_worker *w)
{
    struct seq *q = w->prompt;
    w->prompt = NULL;
    store_blocks(w, q, q->job->block_count);
    say(w, EV_FIRST, q->req);
    if (q->job->output_tokens == 1) {
        say(w, EV_FINISHED, q->req);
        drop(w, q);
        return;
    }
    if (q->partner < 0) {
        begin_decode(w, q);
        return;
    }
    /* Layers go while later ones compute: the link works from the prompt's start. */
    uint64_t at = worker_send(w, q->prompt_ns, q->job->prompt_tokens * w->e.kv_token_bytes);
    q->state = SENDING;
    world_say_kv(w->world, w->rank, (uint32_t)q->partner, at, q->req);
}

static void end_decodes(struct sim_worker *w)
{
    for (struct seq *q = w->seqs, *next; q; q = next) {
        next = q->next;
        if (q->state != DECODING || q->ends > w->steps + 1e-6) continue;
        say(w, EV_FINISHED, q->req);
        drop(w, q);
    }
}

/* When the mix changes next, and how long a step is until then. */
static void plan(struct sim_worker *w)
{
    double steps = INFINITY;
    w->step_ns = 0;
    flush(w);
    if (w->prompt) steps = w->steps_left;
    if (w->decoding > 0)
        for (const struct seq *q = w->seqs; q; q = q->next)
            if (q->state == DECODING && q->ends - w->steps < steps) steps = q->ends - w->steps;
    if (steps == INFINITY) return;
    w->step_ns = w->e.step_ns + w->e.step_seq_ns * w->decoding + (w->prompt ? w->chunk_ns : 0);
    if (steps < 0) steps = 0;
    world_wake(w->world, w->rank, w->at_ns + (uint64_t)ceil(steps * w->step_ns));
}

void worker_turn(struct sim_worker *w)
{
    advance(w);
    if (w->prompt && w->steps_left <= 1e-6) end_prompt(w);
    if (w->decoding > 0) end_decodes(w);
    start_prompt(w);
    plan(w);
}

/* -- what it is told -------------------------------------------------------------------------- */

void worker_run(struct sim_worker *w, struct req_id req, int32_t partner, uint32_t pull_blocks)
{
    add(w, req, pull_blocks ? PULLING : WAITING, partner);
    if (!w->prompt) worker_turn(w);
}

const struct sim_job *worker_pulls(struct sim_worker *w, struct req_id req)
{
    struct seq *q = find(w, req);
    return q && q->state == PULLING ? q->job : NULL;
}

void worker_pulled(struct sim_worker *w, struct req_id req, uint32_t blocks)
{
    struct seq *q = find(w, req);
    CHECK(q && q->state == PULLING);
    q->state = WAITING;
    q->pulled = blocks;
    if (!w->prompt) worker_turn(w);
}

uint32_t worker_holds(struct sim_worker *w, const struct sim_job *job)
{
    uint32_t count = 0, parent = KV_BLOCK_NONE;
    for (; count < job->block_count; count++) {
        parent = kv_pool_find(w->pool, job->keys[count], parent, &job->ids[count]);
        if (parent == KV_BLOCK_NONE) break;
    }
    return count;
}

uint64_t worker_send(struct sim_worker *w, uint64_t from_ns, double bytes)
{
    uint64_t now = world_now(w->world);
    if (from_ns < w->link_free_ns) from_ns = w->link_free_ns;
    uint64_t at = from_ns + (uint64_t)(bytes / w->e.link_bytes_s * 1e9);
    if (at < now + 1000000) at = now + 1000000;
    w->link_free_ns = at;
    return at;
}

void worker_expect(struct sim_worker *w, struct req_id req)
{
    struct seq *q = add(w, req, EXPECTING, -1);
    if (take_blocks(w, q, q->job->output_tokens)) {
        flush(w);
        return;
    }
    say(w, EV_REFUSED, req);
    struct seq **at = &w->seqs;
    while (*at != q) at = &(*at)->next;
    *at = NULL;
    w->last = at;
    w->seq_count--;
    free(q);
}

void worker_cancel(struct sim_worker *w, struct req_id req)
{
    struct seq *q = find(w, req);
    if (!q) return;
    advance(w);
    drop(w, q);
    start_prompt(w);
    plan(w);
}

void worker_kv(struct sim_worker *w, struct req_id req)
{
    struct seq *q = find(w, req);
    if (!q) return;                   /* cancelled, or lost */
    advance(w);
    store_blocks(w, q, q->job->block_count);
    begin_decode(w, q);
    plan(w);
}

void worker_sent(struct sim_worker *w, struct req_id req)
{
    struct seq *q = find(w, req);
    if (!q) return;
    advance(w);
    drop(w, q);
    start_prompt(w);
    plan(w);
}

bool worker_is_empty(const struct sim_worker *w)
{
    return w->seq_count == 0 && kv_pool_counts(w->pool).held == 0;
}

double worker_busy_s(const struct sim_worker *w)
{
    return w->busy_ns / 1e9;
}

void worker_truth(const struct sim_worker *w, uint64_t *count, struct hash128 *xored)
{
    *count = w->key_count;
    *xored = w->xored;
}
