/* ctl/sim_trace.c - workloads of the simulator: traces in Mooncake's format, and synthetic mixes.
 *
 * A line of a trace: {"timestamp": ms, "input_length": n, "output_length": m, "hash_ids": [...]},
 * one id per 512 tokens, equal ids for equal prefixes.  Keys are made from the ids by kv/key.c.
 */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/mem.h"
#include "common/splitmix.h"
#include "ctl/ctl.h"
#include "ctl/sim.h"
#include "kv/key.h"

enum {
    TRACE_BLOCK_TOKENS = 512,
    TRACE_TOKENS_MAX = 1 << 24,
    TRACE_BLOCKS_MAX = 1 << 26,       /* of all lines together */
    TRACE_BYTES_MAX = 1 << 30,
};

struct builder {
    struct sim_load *load;
    size_t job_room, id_count, id_room;
};

static struct sim_job *add_job(struct builder *b, uint32_t blocks)
{
    struct sim_load *l = b->load;
    if (l->count == b->job_room) {
        b->job_room = b->job_room ? 2 * b->job_room : 1024;
        l->jobs = mem_resize(l->jobs, b->job_room, sizeof *l->jobs);
    }
    while (b->id_count + blocks > b->id_room) {
        b->id_room = b->id_room ? 2 * b->id_room : 65536;
        l->ids = mem_resize(l->ids, b->id_room, sizeof *l->ids);
    }
    struct sim_job *job = &l->jobs[l->count++];
    *job = (struct sim_job){ .block_count = blocks };
    b->id_count += blocks;
    return job;
}

static int by_arrival(const void *a, const void *b)
{
    const struct sim_job *x = a, *y = b;
    if (x->arrives_ns != y->arrives_ns) return x->arrives_ns < y->arrives_ns ? -1 : 1;
    return x->ids < y->ids ? -1 : 1;
}

/* Keys of all blocks; by arrival. */
static void finish(struct builder *b)
{
    struct sim_load *l = b->load;
    size_t at = 0;
    struct hash_secret secret = { 1, 2 };
    struct hash128 root = { 3, 4 };
    l->keys = mem_array(b->id_count + 1, sizeof *l->keys);
    for (uint32_t i = 0; i < l->count; i++) {
        struct sim_job *job = &l->jobs[i];
        job->keys = l->keys + at;
        job->ids = l->ids + at;
        for (uint32_t k = 0; k < job->block_count; k++, at++)
            l->keys[at] = kv_key_next(secret, k ? l->keys[at - 1] : root, &l->ids[at], 1);
    }
    qsort(l->jobs, l->count, sizeof *l->jobs, by_arrival);
}

/* A chain that is found is held, so that its own new blocks do not push it out. */
static uint32_t through_cache(struct kv_pool *pool, const struct sim_job *job, uint32_t *blocks)
{
    uint32_t found = 0, count = 0, parent = KV_BLOCK_NONE;
    for (; found < job->block_count; found++) {
        uint32_t b = kv_pool_find(pool, job->keys[found], parent, &job->ids[found]);
        if (b == KV_BLOCK_NONE) break;
        kv_pool_hold(pool, b);
        blocks[count++] = parent = b;
    }
    for (; count < job->block_count; count++) {
        uint32_t b = kv_pool_take(pool);
        if (b == KV_BLOCK_NONE) break;
        struct hash128 parent_key = count ? job->keys[count - 1] : (struct hash128){ 0 };
        parent = kv_pool_store(pool, b, parent, job->keys[count], parent_key, &job->ids[count]);
        blocks[count] = parent;
    }
    kv_pool_release(pool, blocks, count);
    return found;
}

static void reach(const struct sim_load *l, uint32_t cache_blocks, bool endless)
{
    struct kv_pool *pool = kv_pool_open(cache_blocks, 1, &(struct kv_pool_sink){ 0 });
    uint32_t *blocks = mem_array(cache_blocks, sizeof *blocks);
    for (uint32_t i = 0; i < l->count; i++) {
        struct sim_job *job = &l->jobs[i];
        uint32_t cacheable = (job->prompt_tokens - 1) / l->block_tokens;
        uint32_t found = through_cache(pool, job, blocks);
        *(endless ? &job->endless : &job->possible) = found < cacheable ? found : cacheable;
    }
    free(blocks);
    kv_pool_close(pool);
}

void sim_load_reach(struct sim_load *l, uint32_t cache_blocks)
{
    uint64_t all = 1;
    for (uint32_t i = 0; i < l->count; i++) all += l->jobs[i].block_count;
    reach(l, cache_blocks, false);
    reach(l, all < KV_BLOCK_COUNT_MAX ? (uint32_t)all : KV_BLOCK_COUNT_MAX, true);
}

void sim_load_release(struct sim_load *l)
{
    free(l->jobs);
    free(l->keys);
    free(l->ids);
    *l = (struct sim_load){ 0 };
}

/* -- traces ----------------------------------------------------------------------------------- */

static bool whole_number(const json_t *object, const char *name, json_int_t most, json_int_t *out)
{
    const json_t *v = json_object_get(object, name);
    if (!json_is_integer(v)) return false;
    *out = json_integer_value(v);
    return *out >= 0 && *out <= most;
}

static enum err add_line(struct builder *b, const json_t *line, const char *path, uint32_t number,
                         struct why *why)
{
    json_int_t when, input, output;
    if (!json_is_object(line) || !whole_number(line, "timestamp", (json_int_t)1 << 40, &when)
        || !whole_number(line, "input_length", TRACE_TOKENS_MAX, &input) || input == 0
        || !whole_number(line, "output_length", TRACE_TOKENS_MAX, &output))
        return why_set(why, ERR_FORMAT, "%s:%u: timestamp, input_length and output_length must be "
                       "whole numbers, the second at least 1", path, number);
    const json_t *ids = json_object_get(line, "hash_ids");
    size_t blocks = (size_t)input / TRACE_BLOCK_TOKENS;
    if (!json_is_array(ids) || json_array_size(ids) < blocks)
        return why_set(why, ERR_FORMAT, "%s:%u: hash_ids must have an entry per %d tokens", path,
                       number, TRACE_BLOCK_TOKENS);
    if (b->id_count + blocks > TRACE_BLOCKS_MAX)
        return why_set(why, ERR_LIMIT, "%s:%u: more than %d blocks", path, number,
                       TRACE_BLOCKS_MAX);
    size_t first = b->id_count;
    for (size_t i = 0; i < blocks; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0
            || json_integer_value(id) > INT32_MAX)
            return why_set(why, ERR_FORMAT, "%s:%u: hash_ids[%zu] is not a whole number", path,
                           number, i);
    }
    struct sim_job *job = add_job(b, (uint32_t)blocks);
    job->arrives_ns = (uint64_t)when * 1000000;
    job->prompt_tokens = (uint32_t)input;
    job->output_tokens = output > 0 ? (uint32_t)output : 1;
    for (size_t i = 0; i < blocks; i++)
        b->load->ids[first + i] = (int32_t)json_integer_value(json_array_get(ids, i));
    return OK;
}

enum err sim_load_trace(const char *path, struct sim_load *out, struct why *why)
{
    struct buf text = { 0 };
    struct builder b = { .load = out };
    *out = (struct sim_load){ .block_tokens = TRACE_BLOCK_TOKENS };
    enum err e = read_file(path, TRACE_BYTES_MAX, &text, why);
    uint32_t number = 0;
    for (char *at = text.data; e == OK && at && at < text.data + text.size;) {
        size_t bytes = strcspn(at, "\n");
        number++;
        if (bytes > 0 && strspn(at, " \r\t") < bytes) {
            json_error_t bad;
            json_t *line = json_loadb(at, bytes, JSON_REJECT_DUPLICATES, &bad);
            if (line) e = add_line(&b, line, path, number, why);
            else e = why_set(why, ERR_FORMAT, "%s:%u: %s", path, number, bad.text);
            json_decref(line);
        }
        at += bytes + 1;
    }
    if (e == OK && out->count == 0) e = why_set(why, ERR_FORMAT, "%s: no requests in it", path);
    buf_release(&text);
    if (e == OK) finish(&b);
    else sim_load_release(out);
    return e;
}

/* -- mixes ------------------------------------------------------------------------------------ */

/* In (0, 1). */
static double unit(uint64_t *random)
{
    return splitmix_unit(random) + 1e-17;
}

static uint32_t about(uint64_t *random, double mean)
{
    return (uint32_t)(1 - mean * log(unit(random)));
}

/* A second's requests, prompt and output tokens of one kind of work. */
struct kind {
    double per_s, prompt, output;
};

static struct sim_job *add_new(struct builder *b, uint64_t *random, const struct kind *k,
                               uint32_t number)
{
    struct sim_load *l = b->load;
    uint32_t tokens = about(random, k->prompt), blocks = tokens / l->block_tokens;
    if (blocks > 999) blocks = 999;
    size_t first = b->id_count;
    struct sim_job *job = add_job(b, blocks);
    job->prompt_tokens = tokens;
    job->output_tokens = about(random, k->output);
    for (uint32_t j = 0; j < blocks; j++) l->ids[first + j] = (int32_t)(number * 1000 + j);
    return job;
}

void sim_load_shift(uint64_t seed, uint32_t requests, uint32_t turns, uint32_t block_tokens,
                    struct sim_load *out)
{
    static const struct kind kinds[] = { { 22, 3600, 60 }, { 34, 160, 800 } };
    struct builder b = { .load = out };
    double t = 0, share = 0, both = kinds[0].per_s + kinds[1].per_s;
    *out = (struct sim_load){ .block_tokens = block_tokens };
    /* Turns of equal length in time. */
    double turn_s = 2 * requests / (turns * both);
    for (uint32_t i = 0; i < requests; i++) {
        share = t / 1e9 / turn_s;
        const struct kind *k = &kinds[(uint32_t)share % 2];
        t += -log(unit(&seed)) / k->per_s * 1e9;
        add_new(&b, &seed, k, i)->arrives_ns = (uint64_t)t;
    }
    finish(&b);
}

enum { TALKS = 64, SYSTEMS = 6 };

/* A conversation: a system prompt, then questions and answers, each turn the whole of it. */
struct talk {
    uint32_t system, number, tokens;
};

void sim_load_mix(uint64_t seed, uint32_t requests, double per_s, uint32_t block_tokens,
                  struct sim_load *out)
{
    struct talk talks[TALKS] = { 0 };
    struct builder b = { .load = out };
    *out = (struct sim_load){ .block_tokens = block_tokens };
    uint32_t next = SYSTEMS;
    double t = 0;
    uint32_t system_blocks[SYSTEMS];
    for (int i = 0; i < SYSTEMS; i++) system_blocks[i] = (uint32_t)(splitmix_next(&seed) % 40);
    for (uint32_t i = 0; i < requests; i++) {
        struct talk *k = &talks[splitmix_next(&seed) % TALKS];
        t += -log(unit(&seed)) / per_s * 1e9;
        if (k->tokens == 0 || k->tokens > 400 * block_tokens || splitmix_next(&seed) % 6 == 0) {
            uint32_t system = (uint32_t)(splitmix_next(&seed) % SYSTEMS);
            *k = (struct talk){ .system = system, .number = next++ };
            k->tokens = system_blocks[k->system] * block_tokens;
        }
        k->tokens += about(&seed, 12.0 * block_tokens);
        uint32_t blocks = k->tokens / block_tokens;
        size_t first = b.id_count;
        struct sim_job *job = add_job(&b, blocks);
        job->arrives_ns = (uint64_t)t;
        job->prompt_tokens = k->tokens;
        job->output_tokens = about(&seed, 60);
        for (uint32_t j = 0; j < blocks; j++) {
            uint32_t who = j < system_blocks[k->system] ? k->system : k->number;
            out->ids[first + j] = (int32_t)(who * 1000 + j);
        }
        k->tokens += job->output_tokens;
    }
    finish(&b);
}
