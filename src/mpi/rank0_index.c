/* mpi/rank0_index.c - what workers hold (mpi/blocks.h), and the keys of a request's prompt.
 *
 * Keys come with the request when its gateway knows the scope that WELCOME names; else they are
 * computed here.  Nothing but their number is checked: whoever lies about them sends its own
 * request to a worker that finds less than was hoped for.
 */
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "kv/key.h"
#include "mpi/rank0.h"

void index_open(struct rank0 *z)
{
    uint64_t block_count = 0;
    for (int i = 1; i < z->job->size; i++) block_count += z->workers[i].about.blocks_total;
    blocks_in_open(&z->blocks, block_count, (uint32_t)z->job->size);
    for (int i = 1; i < z->job->size; i++)
        blocks_in_up(&z->blocks, (uint32_t)i, z->workers[i].about.head.epoch);
    sched_index(z->sched, z->blocks.index);
}

static void ask(struct rank0 *z, int rank)
{
    log_warn("index does not agree with worker=%d: asking for its keys", rank);
    struct msg_snapshot m;
    port_send_copy(z->port, rank, &m, MSG_SNAPSHOT, sizeof m);
}

void index_on_blocks(struct rank0 *z, int from, const struct msg_blocks *m)
{
    if (blocks_in_changes(&z->blocks, (uint32_t)from, m)) ask(z, from);
}

void index_on_stats(struct rank0 *z, int from, const struct msg_stats *m)
{
    if (blocks_in_check(&z->blocks, (uint32_t)from, m)) ask(z, from);
}

void index_lost(struct rank0 *z, int rank)
{
    blocks_in_lost(&z->blocks, (uint32_t)rank);
}

void index_fill_state(const struct rank0 *z, struct link_state *m)
{
    struct kv_index_stats s = { 0 };
    if (z->blocks.index) kv_index_stats(z->blocks.index, &s);
    m->index_blocks = s.keys;
    m->index_bytes = s.bytes;
    m->index_mismatches = z->blocks.mismatches + z->blocks.refused;
    m->index_checks = z->blocks.checks;
    struct shared_view_stats shared = { 0 };
    if (z->view) shared_view_stats(z->view, &shared);
    m->redis_connected = shared.connected;
    m->redis_announced = shared.announced;
    m->redis_dropped = shared.dropped;
    for (int i = 0; i < VIEW_ERROR_COUNT; i++) m->redis_errors += shared.errors[i];
    m->reuse_possible = z->reuse_possible;
    m->reuse_captured = z->reuse_captured;
}

enum err index_share(struct rank0 *z, struct why *why)
{
    const struct config *c = &z->job->config;
    uint64_t ttl = c->cache_ttl_ms ? (c->cache_ttl_ms + 999) / 1000 : VIEW_TTL_S;
    secret_random(&z->epoch, sizeof z->epoch);
    if (!*c->redis) return OK;
    if (!*c->kv_secret_file)
        log_warn("--redis without --kv-secret-file: only jobs with this link's secret share it");
    struct shared_view_config s = shared_view_settings(c);
    s.job = c->job_id;
    s.epoch = z->epoch;
    s.ttl_s = (uint32_t)(ttl < VIEW_TTL_S ? ttl : VIEW_TTL_S);
    return shared_view_open(&z->view, &s, why);
}

/* -- keys ------------------------------------------------------------------------------------- */

struct kv_scope index_scope(const struct rank0 *z)
{
    return (struct kv_scope){
        .model_digest = z->weights.model->digest, .kv_type = z->workers[1].about.kv_type,
        .block_tokens = (uint32_t)z->job->config.block_size,
    };
}

/* The last token is always computed, so a block that ends with it is never looked for. */
static uint32_t cacheable(const struct rank0 *z, uint32_t id_count)
{
    if (!z->job->config.enable_prefix_caching) return 0;
    return (id_count - 1) / (uint32_t)z->job->config.block_size;
}

bool index_keys_fit(const struct rank0 *z, const struct link_request *m)
{
    return m->key_count <= (m->id_count - 1) / (uint32_t)z->job->config.block_size;
}

void index_keys_of(struct rank0 *z, struct request *r, const struct link_request *m)
{
    if (m->params.flags & SAMPLING_PROMPT_LOGPROBS) return; /* reads nothing from the cache */
    uint32_t most = cacheable(z, m->id_count);
    r->key_count = m->key_count && m->key_count < most ? m->key_count : most;
    if (r->key_count == 0) return;
    r->keys = mem_array(r->key_count, sizeof *r->keys);
    if (m->key_count) {
        memcpy(r->keys, link_request_keys(m), r->key_count * sizeof *r->keys);
        return;
    }
    struct kv_scope scope = index_scope(z);
    kv_key_chain(z->job->kv_secret, &scope, m->cache_salt, link_request_ids(m), r->key_count,
                 r->keys);
}
