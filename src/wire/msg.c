/* wire/msg.c - checks what arrives between ranks before anybody reads it; see msg.h.
 *
 * Every msg_as_* first asks msg_type_of, which holds the head against the received length, and then
 * holds each count against what is left.  After that the pointers it gives can be trusted.
 */
#include "wire/msg.h"

#include <math.h>
#include <string.h>

#include "common/check.h"

static const char *const type_names[MSG_TYPE_COUNT] = {
    [MSG_RUN] = "RUN",         [MSG_EXPECT] = "EXPECT", [MSG_PREFILL] = "PREFILL",
    [MSG_CANCEL] = "CANCEL",   [MSG_LOST] = "LOST",     [MSG_PING] = "PING",
    [MSG_EXIT] = "EXIT",       [MSG_READY] = "READY",   [MSG_KV] = "KV",
    [MSG_KVEND] = "KVEND",     [MSG_UP] = "UP",         [MSG_TOKENS] = "TOKENS",
    [MSG_SCORES] = "SCORES",   [MSG_REFUSE] = "REFUSE", [MSG_GONE] = "GONE",
    [MSG_BLOCKS] = "BLOCKS",   [MSG_STATS] = "STATS",   [MSG_FATAL] = "FATAL",
    [MSG_SNAPSHOT] = "SNAPSHOT", [MSG_PULL] = "PULL",   [MSG_POLICY] = "POLICY",
    [MSG_LANE] = "LANE",
    [MSG_ROLE] = "ROLE",       [MSG_SLOT] = "SLOT",
};

const char *msg_type_name(enum msg_type t)
{
    return t > 0 && t < MSG_TYPE_COUNT ? type_names[t] : "?";
}

void msg_head_set(struct msg_head *h, enum msg_type type, size_t bytes)
{
    CHECK(bytes >= sizeof *h && bytes <= KV_MSG_BYTES_MAX);
    *h = (struct msg_head){ .magic = MSG_MAGIC, .version = MSG_VERSION, .type = (uint16_t)type,
                            .bytes = (uint32_t)bytes };
}

enum msg_type msg_type_of(const void *data, size_t bytes)
{
    const struct msg_head *h = data;
    if (bytes < sizeof *h || h->bytes != bytes) return 0;
    if (h->magic != MSG_MAGIC || h->version != MSG_VERSION) return 0;
    if (h->type == 0 || h->type >= MSG_TYPE_COUNT) return 0;
    if (bytes > (h->type == MSG_KV ? KV_MSG_BYTES_MAX : MSG_BYTES_MAX)) return 0;
    return h->type;
}

/* A message of one of two types with exactly this many bytes, or NULL. */
static const void *exact(const void *data, size_t bytes, size_t want, enum msg_type a,
                         enum msg_type b)
{
    enum msg_type t = msg_type_of(data, bytes);
    return t && (t == a || t == b) && bytes == want ? data : NULL;
}

size_t msg_seq_bytes(uint32_t bias_count, uint32_t id_count)
{
    return sizeof(struct msg_seq) + bias_count * sizeof(struct logit_bias) +
           id_count * sizeof(int32_t);
}

const struct logit_bias *msg_seq_bias(const struct msg_seq *m)
{
    return (const void *)(m + 1);
}

const int32_t *msg_seq_ids(const struct msg_seq *m)
{
    return (const void *)(msg_seq_bias(m) + m->params.bias_count);
}

static bool sampling_fits(const struct sampling *p)
{
    if (!isfinite(p->temperature) || p->temperature < 0) return false;
    if (!isfinite(p->top_p) || !isfinite(p->min_p)) return false;
    if (!isfinite(p->repetition_penalty) || p->repetition_penalty <= 0) return false;
    if (!isfinite(p->presence_penalty) || !isfinite(p->frequency_penalty)) return false;
    if (p->max_tokens == 0 || p->bias_count > LOGIT_BIAS_MAX) return false;
    if (p->stop_id_count > STOP_IDS_MAX || p->eos_id_count > p->stop_id_count) return false;
    return p->top_count <= TOP_LOGPROBS_MAX && p->prompt_top_count <= TOP_LOGPROBS_MAX;
}

const struct msg_seq *msg_as_seq(const void *data, size_t bytes)
{
    enum msg_type t = msg_type_of(data, bytes);
    if (t != MSG_RUN && t != MSG_EXPECT && t != MSG_PREFILL) return NULL;
    if (bytes < sizeof(struct msg_seq)) return NULL;
    const struct msg_seq *m = data;
    if (m->req.generation == 0 || m->req.slot >= REQ_COUNT_MAX) return NULL;
    if (m->id_count == 0 || m->id_count > SEQ_TOKENS_MAX) return NULL;
    if (m->prompt_count == 0 || m->prompt_count > m->id_count) return NULL;
    if (m->pull_tokens >= m->id_count || m->req.attempt & PULL_BIT) return NULL;
    if (!sampling_fits(&m->params)) return NULL;
    return bytes == msg_seq_bytes(m->params.bias_count, m->id_count) ? m : NULL;
}

const struct msg_req *msg_as_req(const void *data, size_t bytes)
{
    const struct msg_req *m = exact(data, bytes, sizeof *m, MSG_CANCEL, MSG_GONE);
    return m && m->req.slot < REQ_COUNT_MAX ? m : NULL;
}

const struct msg_rank *msg_as_rank(const void *data, size_t bytes)
{
    const struct msg_rank *m = exact(data, bytes, sizeof *m, MSG_LOST, MSG_LOST);
    return m && m->rank >= 0 ? m : NULL;
}

const struct msg_ping *msg_as_ping(const void *data, size_t bytes)
{
    return exact(data, bytes, sizeof(struct msg_ping), MSG_PING, MSG_PING);
}

const struct msg_exit *msg_as_exit(const void *data, size_t bytes)
{
    return exact(data, bytes, sizeof(struct msg_exit), MSG_EXIT, MSG_EXIT);
}

const struct msg_policy *msg_as_policy(const void *data, size_t bytes)
{
    const struct msg_policy *m = exact(data, bytes, sizeof *m, MSG_POLICY, MSG_POLICY);
    return m && cache_policy_valid(&m->policy) ? m : NULL;
}

const struct msg_role *msg_as_role(const void *data, size_t bytes)
{
    const struct msg_role *m = exact(data, bytes, sizeof *m, MSG_ROLE, MSG_ROLE);
    return m && m->role >= ROLE_BOTH && m->role <= ROLE_DECODE && m->modest <= 1 ? m : NULL;
}

const struct msg_snapshot *msg_as_snapshot(const void *data, size_t bytes)
{
    return exact(data, bytes, sizeof(struct msg_snapshot), MSG_SNAPSHOT, MSG_SNAPSHOT);
}

const struct msg_ready *msg_as_ready(const void *data, size_t bytes)
{
    const struct msg_ready *m = exact(data, bytes, sizeof *m, MSG_READY, MSG_READY);
    return m && m->req.slot < REQ_COUNT_MAX && m->held_tokens <= SEQ_TOKENS_MAX ? m : NULL;
}

size_t msg_pull_bytes(uint32_t id_count)
{
    return sizeof(struct msg_pull) + id_count * sizeof(int32_t);
}

const int32_t *msg_pull_ids(const struct msg_pull *m)
{
    return (const void *)(m + 1);
}

const struct msg_pull *msg_as_pull(const void *data, size_t bytes)
{
    if (msg_type_of(data, bytes) != MSG_PULL || bytes < sizeof(struct msg_pull)) return NULL;
    const struct msg_pull *m = data;
    if (m->req.slot >= REQ_COUNT_MAX || m->req.generation == 0) return NULL;
    if (!(m->req.attempt & PULL_BIT)) return NULL;
    if (m->id_count == 0 || m->id_count > SEQ_TOKENS_MAX) return NULL;
    return m->held_tokens < m->id_count && bytes == msg_pull_bytes(m->id_count) ? m : NULL;
}

const struct msg_kv *msg_as_kv(const void *data, size_t bytes)
{
    if (msg_type_of(data, bytes) != MSG_KV || bytes < sizeof(struct msg_kv)) return NULL;
    const struct msg_kv *m = data;
    if (m->req.slot >= REQ_COUNT_MAX) return NULL;
    if (m->layers == 0 || m->layers > MODEL_LAYERS_MAX) return NULL;
    if (m->layer > MODEL_LAYERS_MAX - m->layers) return NULL;
    if (m->count == 0 || m->count > SEQ_TOKENS_MAX) return NULL;
    if (m->lane ? m->number == 0 || bytes != sizeof *m : m->number != 0) return NULL;
    return m->first <= SEQ_TOKENS_MAX - m->count ? m : NULL;
}

const struct msg_slot *msg_as_slot(const void *data, size_t bytes)
{
    return exact(data, bytes, sizeof(struct msg_slot), MSG_SLOT, MSG_SLOT);
}

const struct msg_kvend *msg_as_kvend(const void *data, size_t bytes)
{
    const struct msg_kvend *m = exact(data, bytes, sizeof *m, MSG_KVEND, MSG_KVEND);
    if (!m || m->req.slot >= REQ_COUNT_MAX) return NULL;
    return m->first_token >= 0 && m->finish < FINISH_COUNT ? m : NULL;
}

const struct msg_lane *msg_as_lane(const void *data, size_t bytes)
{
    const struct msg_lane *m = exact(data, bytes, sizeof *m, MSG_LANE, MSG_LANE);
    return m && m->lane && m->word && m->word < LANE_WORDS ? m : NULL;
}

const struct msg_up *msg_as_up(const void *data, size_t bytes)
{
    const struct msg_up *m = exact(data, bytes, sizeof *m, MSG_UP, MSG_UP);
    if (!m || m->blocks_total == 0 || m->blocks_total > KV_BLOCK_COUNT_MAX) return NULL;
    if (m->block_tokens == 0 || m->block_tokens > KV_BLOCK_TOKENS_MAX) return NULL;
    if (m->max_num_seqs == 0 || m->max_num_seqs > STEP_SEQS_MAX) return NULL;
    return m->max_model_len > 0 && m->max_model_len <= SEQ_TOKENS_MAX ? m : NULL;
}

bool msg_token_next(const struct msg_tokens *m, size_t *at, struct msg_token *out,
                    const void **top)
{
    const char *from = (const char *)(m + 1) + *at;
    size_t left = m->head.bytes - sizeof *m - *at;
    if (left < sizeof *out) return false;
    memcpy(out, from, sizeof *out);
    *top = from + sizeof *out;
    *at += sizeof *out + out->record.top_count * sizeof(struct top_logprob);
    return true;
}

const struct msg_tokens *msg_as_tokens(const void *data, size_t bytes)
{
    enum msg_type t = msg_type_of(data, bytes);
    if (t != MSG_TOKENS && t != MSG_SCORES) return NULL;
    if (bytes < sizeof(struct msg_tokens)) return NULL;
    const struct msg_tokens *m = data;
    size_t end = bytes - sizeof *m;
    size_t at = 0;
    for (uint32_t i = 0; i < m->count; i++) {
        struct msg_token one;
        if (end - at < sizeof one) return NULL;
        memcpy(&one, (const char *)(m + 1) + at, sizeof one);
        size_t tops = one.record.top_count * sizeof(struct top_logprob);
        at += sizeof one;
        if (one.req.slot >= REQ_COUNT_MAX || one.record.finish >= FINISH_COUNT) return NULL;
        if (one.record.top_count > TOP_LOGPROBS_MAX || end - at < tops) return NULL;
        at += tops;
    }
    return at == end ? m : NULL;
}

const struct msg_refuse *msg_as_refuse(const void *data, size_t bytes)
{
    const struct msg_refuse *m = exact(data, bytes, sizeof *m, MSG_REFUSE, MSG_REFUSE);
    return m && m->req.slot < REQ_COUNT_MAX && m->err < ERR_COUNT ? m : NULL;
}

const struct msg_blocks *msg_as_blocks(const void *data, size_t bytes)
{
    if (msg_type_of(data, bytes) != MSG_BLOCKS || bytes < sizeof(struct msg_blocks)) return NULL;
    const struct msg_blocks *m = data;
    if (m->stream_seq == 0 || m->flags & ~(uint32_t)BLOCKS_ALL) return NULL;
    uint64_t want = sizeof *m + (uint64_t)m->count * sizeof(struct block_change);
    return bytes == want ? m : NULL;
}

const struct msg_stats *msg_as_stats(const void *data, size_t bytes)
{
    return exact(data, bytes, sizeof(struct msg_stats), MSG_STATS, MSG_STATS);
}

const struct msg_fatal *msg_as_fatal(const void *data, size_t bytes)
{
    const struct msg_fatal *m = exact(data, bytes, sizeof *m, MSG_FATAL, MSG_FATAL);
    return m && memchr(m->text, '\0', sizeof m->text) ? m : NULL;
}
