/* wire/link.c - frames in and out of the link's byte stream, and the checks every body must pass.
 *
 * Nothing here blocks or knows a socket.  Every count that a peer wrote is bounded before it is
 * multiplied, and a body's length must be exactly what its counts say.
 * The meaning of each message is in link.h; who sends what when, in gateway/link_client.c and
 * mpi's rank 0.
 */
#include "wire/link.h"

#include <math.h>
#include <string.h>

#include "common/private_file.h"

/* Frames are read in place, as structs: the frame at the front of the reader must be aligned. */
enum { FRAME_ALIGN = 8, READER_BYTES_MAX = 4 * LINK_BYTES_MAX };

void link_head_set(struct link_head *h, enum link_type type, uint64_t stream, size_t bytes)
{
    CHECK(bytes >= sizeof *h && bytes <= LINK_BYTES_MAX);
    *h = (struct link_head){
        .magic = LINK_MAGIC,
        .version = LINK_VERSION,
        .type = (uint16_t)type,
        .bytes = (uint32_t)bytes,
        .stream = stream,
    };
}

/* -- the secret ------------------------------------------------------------------------------- */

static struct hash128 proof(const uint8_t key[16], const char *who, const uint8_t first[16],
                            const uint8_t second[16])
{
    struct hash_secret secret;
    memcpy(&secret, key, sizeof secret);
    uint8_t text[3 + 16 + 16];
    size_t at = strlen(who);
    memcpy(text, who, at);
    memcpy(text + at, first, 16);
    memcpy(text + at + 16, second, 16);
    return hash_sip128(secret, text, at + 32);
}

struct hash128 link_proof_of_job(const uint8_t secret[SECRET_BYTES], const uint8_t gateway[16],
                                 const uint8_t job[16])
{
    return proof(secret, "job", gateway, job);
}

struct hash128 link_proof_of_gateway(const uint8_t secret[SECRET_BYTES], const uint8_t job[16],
                                     const uint8_t gateway[16])
{
    return proof(secret + 16, "gw", job, gateway);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool secret_parse(const char *text, size_t bytes, uint8_t secret[SECRET_BYTES])
{
    while (bytes && (text[bytes - 1] == '\n' || text[bytes - 1] == '\r')) bytes--;
    if (bytes != 2 * SECRET_BYTES) return false;
    for (size_t i = 0; i < SECRET_BYTES; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        secret[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

struct hash_secret link_kv_secret(const uint8_t secret[SECRET_BYTES])
{
    struct hash_secret key;
    memcpy(&key, secret, sizeof key);
    struct hash128 derived = hash_sip128(key, "kv", 2);
    return (struct hash_secret){ .k0 = derived.lo, .k1 = derived.hi };
}

struct hash128 link_keys_proof(struct hash_secret kv_secret)
{
    return hash_sip128(kv_secret, "keys", 4);
}

enum err link_secret_read(const char *path, uint8_t secret[SECRET_BYTES], struct why *why)
{
    char text[2 * SECRET_BYTES + 8];
    size_t got;
    enum err e = private_file_read("secret file", path, text, sizeof text, &got, why);
    if (e && e != ERR_LIMIT) return e;
    if (e || !secret_parse(text, got, secret)) {
        return why_set(why, ERR_FORMAT, "secret file %s: needs %d hex digits", path,
                       2 * SECRET_BYTES);
    }
    return OK;
}

/* -- frames out of bytes ---------------------------------------------------------------------- */

void link_reader_release(struct link_reader *r)
{
    buf_release(&r->in);
    r->taken = 0;
}

static void reader_compact(struct link_reader *r)
{
    if (!r->taken) return;
    r->in.size -= r->taken;
    memmove(r->in.data, r->in.data + r->taken, r->in.size);
    r->taken = 0;
}

enum err link_reader_feed(struct link_reader *r, const void *data, size_t bytes)
{
    reader_compact(r);
    if (bytes > READER_BYTES_MAX - r->in.size) return ERR_LIMIT;
    return buf_add(&r->in, data, bytes) ? OK : ERR_LIMIT;
}

enum err link_reader_next(struct link_reader *r, const struct link_head **out)
{
    *out = NULL;
    if (r->in.size - r->taken < sizeof(struct link_head)) return OK;
    if (r->taken % FRAME_ALIGN) reader_compact(r);
    const struct link_head *h = (const void *)(r->in.data + r->taken);
    if (h->magic != LINK_MAGIC || h->version != LINK_VERSION) return ERR_FORMAT;
    if (h->type < LINK_HELLO || h->type >= LINK_TYPE_COUNT) return ERR_FORMAT;
    if (h->bytes < sizeof *h || h->bytes > LINK_BYTES_MAX) return ERR_FORMAT;
    if (h->bytes > r->in.size - r->taken) return OK;
    r->taken += h->bytes;
    *out = h;
    return OK;
}

/* -- bodies ----------------------------------------------------------------------------------- */

static bool is(const struct link_head *h, enum link_type type, size_t bytes)
{
    return h->type == type && h->bytes == bytes;
}

const struct link_hello *link_as_hello(const struct link_head *h)
{
    return is(h, LINK_HELLO, sizeof(struct link_hello)) ? (const void *)h : NULL;
}

const struct link_challenge *link_as_challenge(const struct link_head *h)
{
    return is(h, LINK_CHALLENGE, sizeof(struct link_challenge)) ? (const void *)h : NULL;
}

const struct link_proof *link_as_proof(const struct link_head *h)
{
    return is(h, LINK_PROOF, sizeof(struct link_proof)) ? (const void *)h : NULL;
}

const struct link_welcome *link_as_welcome(const struct link_head *h)
{
    const struct link_welcome *w = (const void *)h;
    if (!is(h, LINK_WELCOME, sizeof *w)) return NULL;
    if (!w->max_model_len || w->max_model_len > SEQ_TOKENS_MAX) return NULL;
    if (!w->block_tokens || w->block_tokens > KV_BLOCK_TOKENS_MAX) return NULL;
    if (!w->vocab || w->vocab > VOCAB_MAX) return NULL;
    return memchr(w->job_id, '\0', sizeof w->job_id) ? w : NULL;
}

static bool within(float x, float low, float high)
{
    return isfinite(x) && x >= low && x <= high;
}

static bool sampling_fits(const struct sampling *p)
{
    return within(p->temperature, 0, 1e6f) && within(p->top_p, 0, 1) && within(p->min_p, 0, 1) &&
           within(p->repetition_penalty, 0, 1e6f) && p->repetition_penalty > 0 &&
           within(p->presence_penalty, -2, 2) && within(p->frequency_penalty, -2, 2) &&
           p->max_tokens >= 1 && p->max_tokens <= SEQ_TOKENS_MAX &&
           p->top_count <= TOP_LOGPROBS_MAX && p->prompt_top_count <= TOP_LOGPROBS_MAX &&
           p->stop_id_count <= STOP_IDS_MAX && p->eos_id_count <= p->stop_id_count &&
           p->bias_count <= LOGIT_BIAS_MAX;
}

size_t link_request_bytes(uint32_t bias_count, uint32_t key_count, uint32_t id_count)
{
    return sizeof(struct link_request) + bias_count * sizeof(struct logit_bias) +
           key_count * sizeof(struct hash128) + id_count * sizeof(int32_t);
}

const struct logit_bias *link_request_bias(const struct link_request *r)
{
    return (const void *)(r + 1);
}

const struct hash128 *link_request_keys(const struct link_request *r)
{
    return (const void *)(link_request_bias(r) + r->params.bias_count);
}

const int32_t *link_request_ids(const struct link_request *r)
{
    return (const void *)(link_request_keys(r) + r->key_count);
}

const struct link_request *link_as_request(const struct link_head *h)
{
    const struct link_request *r = (const void *)h;
    if (h->type != LINK_REQUEST || h->bytes < sizeof *r || !h->stream) return NULL;
    if (!r->id_count || r->id_count > SEQ_TOKENS_MAX || r->key_count > r->id_count) return NULL;
    if (!sampling_fits(&r->params)) return NULL;
    if (h->bytes != link_request_bytes(r->params.bias_count, r->key_count, r->id_count)) {
        return NULL;
    }
    const struct logit_bias *bias = link_request_bias(r);
    for (uint32_t i = 0; i < r->params.bias_count; i++) {
        if (bias[i].id < 0 || !within(bias[i].bias, -100, 100)) return NULL;
    }
    const int32_t *ids = link_request_ids(r);
    for (uint32_t i = 0; i < r->id_count; i++) {
        if (ids[i] < 0) return NULL;
    }
    return r;
}

bool link_record_next(const struct link_tokens *t, size_t *at, struct token_record *out,
                      const void **top)
{
    size_t room = t->head.bytes - sizeof *t;
    if (*at > room || room - *at < sizeof *out) return false;
    const char *from = (const char *)(t + 1) + *at;
    memcpy(out, from, sizeof *out);
    size_t bytes = sizeof *out + out->top_count * sizeof(struct top_logprob);
    if (bytes > room - *at) return false;
    *top = from + sizeof *out;
    *at += bytes;
    return true;
}

const struct link_tokens *link_as_tokens(const struct link_head *h)
{
    const struct link_tokens *t = (const void *)h;
    if (h->type != LINK_TOKENS && h->type != LINK_SCORES) return NULL;
    if (h->bytes < sizeof *t || !h->stream) return NULL;
    struct token_record record;
    const void *top;
    size_t at = 0;
    uint32_t count = 0;
    while (link_record_next(t, &at, &record, &top)) {
        if (record.finish >= FINISH_COUNT || record.top_count > TOP_LOGPROBS_MAX) return NULL;
        if (record.id < 0 || record.position >= SEQ_TOKENS_MAX) return NULL;
        count++;
    }
    return count == t->count && at == h->bytes - sizeof *t ? t : NULL;
}

const struct link_end *link_as_end(const struct link_head *h)
{
    const struct link_end *e = (const void *)h;
    if (!is(h, LINK_END, sizeof *e) || !h->stream) return NULL;
    return e->code < LINK_CODE_COUNT && e->finish < FINISH_COUNT ? e : NULL;
}

const struct link_policy *link_as_policy(const struct link_head *h)
{
    const struct link_policy *p = (const void *)h;
    return is(h, LINK_POLICY, sizeof *p) && cache_policy_valid(&p->policy) ? p : NULL;
}

const struct link_state *link_as_state(const struct link_head *h)
{
    const struct link_state *s = (const void *)h;
    if (!is(h, LINK_STATE, sizeof *s)) return NULL;
    return s->state >= JOB_STARTING && s->state <= JOB_DRAINING ? s : NULL;
}
