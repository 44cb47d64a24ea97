/* model/hparams.c - from a GGUF file to a checked model; see hparams.h.
 *
 * A family is a row of `families`; what its layers hold is the rows of `layer_slots`.  Every tensor
 * of the file must be one that we know: a weight left aside would mean wrong answers, not fewer.
 */
#include "model/hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "model/quant.h"

struct family {
    const char *name;                 /* general.architecture, and the prefix of its keys */
    enum rope_layout rope;
    bool qkv_bias;                    /* must be there; others may have them, and most do not */
    bool qk_norm;
};

/* Llama is also Llama 2, 3.x, SmolLM2 and Mistral; qwen2 is also Qwen2.5. */
static const struct family families[] = {
    { "llama", ROPE_PAIRS, false, false },
    { "qwen2", ROPE_HALVES, true, false },
    { "qwen3", ROPE_HALVES, false, true },
};
enum { FAMILY_COUNT = sizeof families / sizeof families[0] };

enum {
    DIM_MAX = 1 << 20,                /* of D and F; keeps every product of ours below 2^64 */
    HEADS_MAX = 4096,
    HEAD_DIM_MAX = 1024,
    DATA_ALIGNMENT = 4,               /* kernels read F32 and F16 where they lie */
    SAMPLE_BYTES = 64,
    SAMPLE_COUNT = 18,                /* of each tensor: first, last and 16 between */
};

enum need { ALWAYS, MAYBE, QKV_BIAS, QK_NORM };
enum side { ONE, D, Q, K, S, F };     /* sides of a shape: 1, D, H*S, K*S, S, F */

struct slot {
    const char *suffix;
    size_t at;                        /* in struct layer_weights */
    enum side out, in;                /* (OUT, IN); a vector has OUT == ONE */
    enum need need;
};

#define AT(member) offsetof(struct layer_weights, member)
static const struct slot layer_slots[] = {
    { "attn_norm.weight", AT(attn_norm), ONE, D, ALWAYS },
    { "attn_q.weight", AT(q), Q, D, ALWAYS },
    { "attn_k.weight", AT(k), K, D, ALWAYS },
    { "attn_v.weight", AT(v), K, D, ALWAYS },
    { "attn_q.bias", AT(q_bias), ONE, Q, QKV_BIAS },
    { "attn_k.bias", AT(k_bias), ONE, K, QKV_BIAS },
    { "attn_v.bias", AT(v_bias), ONE, K, QKV_BIAS },
    { "attn_q_norm.weight", AT(q_norm), ONE, S, QK_NORM },
    { "attn_k_norm.weight", AT(k_norm), ONE, S, QK_NORM },
    { "attn_output.weight", AT(o), D, Q, ALWAYS },
    { "attn_output.bias", AT(o_bias), ONE, D, MAYBE },
    { "ffn_norm.weight", AT(ffn_norm), ONE, D, ALWAYS },
    { "ffn_gate.weight", AT(gate), F, D, ALWAYS },
    { "ffn_up.weight", AT(up), F, D, ALWAYS },
    { "ffn_down.weight", AT(down), D, F, ALWAYS },
};
enum { SLOT_COUNT = sizeof layer_slots / sizeof layer_slots[0] };

struct loader {
    struct model *m;
    const struct gguf *g;
    const struct family *family;
    bool *used;                       /* one per tensor of the file */
    struct why *why;
};

struct key_name {
    char text[128];
};
static struct key_name key_of(const struct loader *l, const char *suffix)
{
    struct key_name k;
    snprintf(k.text, sizeof k.text, "%s.%s", l->family->name, suffix);
    return k;
}

/* Reads a key that is there or has a default (0: must be there), and checks 1 <= value <= max. */
static enum err read_u32(struct loader *l, const char *suffix, uint32_t fallback, uint32_t max,
                         uint32_t *out)
{
    struct key_name key = key_of(l, suffix);
    if (!gguf_has_key(l->g, key.text)) {
        if (!fallback) return why_set(l->why, ERR_FORMAT, "key %s is missing", key.text);
        *out = fallback;
        return OK;
    }
    if (gguf_array_count(l->g, key.text)) {
        return why_set(l->why, ERR_UNSUPPORTED, "key %s differs by layer; not supported yet",
                       key.text);
    }
    if (!gguf_get_u32(l->g, key.text, out)) {
        return why_set(l->why, ERR_FORMAT, "key %s is not a count", key.text);
    }
    if (*out < 1 || *out > max) {
        return why_set(l->why, ERR_LIMIT, "key %s is %" PRIu32 "; 1..%" PRIu32 " expected",
                       key.text, *out, max);
    }
    return OK;
}

/* A positive finite number; fallback 0: must be there. */
static enum err read_f32(struct loader *l, const char *suffix, float fallback, float *out)
{
    struct key_name key = key_of(l, suffix);
    if (!gguf_has_key(l->g, key.text)) {
        if (!(fallback > 0)) return why_set(l->why, ERR_FORMAT, "key %s is missing", key.text);
        *out = fallback;
        return OK;
    }
    if (!gguf_get_f32(l->g, key.text, out) || !(*out > 0) || isinf(*out)) {
        return why_set(l->why, ERR_FORMAT, "key %s is not a positive number", key.text);
    }
    return OK;
}

static enum err find_family(struct loader *l)
{
    struct gguf_text name;
    if (!gguf_get_text(l->g, "general.architecture", &name)) {
        return why_set(l->why, ERR_FORMAT, "key general.architecture is missing");
    }
    char known[128] = "";
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        const char *own = families[i].name;
        if (name.bytes == strlen(own) && !memcmp(name.data, own, name.bytes)) {
            l->family = &families[i];
            return OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", own);
    }
    char shown[48];
    size_t n = name.bytes < sizeof shown - 1 ? (size_t)name.bytes : sizeof shown - 1;
    for (size_t i = 0; i < n; i++) {
        shown[i] = name.data[i] >= ' ' && name.data[i] <= '~' ? name.data[i] : '?';
    }
    shown[n] = '\0';
    return why_set(l->why, ERR_UNSUPPORTED, "architecture '%s' is not supported; these are: %s",
                   shown, known);
}

/* For people and JSON: printable ASCII only. */
static void read_name(struct loader *l)
{
    struct hparams *h = &l->m->h;
    struct gguf_text name;
    h->family = l->family->name;
    if (!gguf_get_text(l->g, "general.name", &name) || name.bytes == 0) {
        snprintf(h->name, sizeof h->name, "%s", h->family);
        return;
    }
    size_t n = name.bytes < sizeof h->name - 1 ? (size_t)name.bytes : sizeof h->name - 1;
    for (size_t i = 0; i < n; i++) {
        h->name[i] = name.data[i] >= ' ' && name.data[i] <= '~' ? name.data[i] : '?';
    }
    h->name[n] = '\0';
}

static enum err refuse_unsupported(struct loader *l)
{
    uint32_t count;
    if (gguf_tensor_count(l->g) == 0) {
        return why_set(l->why, ERR_FORMAT, "no tensors: a file of the vocabulary only");
    }
    if (gguf_get_u32(l->g, "split.count", &count) && count > 1) {
        return why_set(l->why, ERR_UNSUPPORTED,
                       "one of %" PRIu32 " parts of a split model; join them first", count);
    }
    if (gguf_get_u32(l->g, key_of(l, "expert_count").text, &count) && count > 0) {
        return why_set(l->why, ERR_UNSUPPORTED, "mixture of experts is not supported yet");
    }
    return OK;
}

static enum err read_head_dim(struct loader *l)
{
    struct hparams *h = &l->m->h;
    uint32_t value_dim, even = h->dim % h->heads ? 0 : h->dim / h->heads;
    enum err e = read_u32(l, "attention.key_length", even, HEAD_DIM_MAX, &h->head_dim);
    if (e == OK) e = read_u32(l, "attention.value_length", h->head_dim, HEAD_DIM_MAX, &value_dim);
    if (e != OK) return e;
    if (value_dim != h->head_dim) {
        return why_set(l->why, ERR_UNSUPPORTED,
                       "keys of %" PRIu32 " and values of %" PRIu32 " differ; not supported yet",
                       h->head_dim, value_dim);
    }
    if (h->head_dim % 2 || h->head_dim > HEAD_DIM_MAX) {
        return why_set(l->why, ERR_LIMIT, "head size %" PRIu32 "; an even one up to %d expected",
                       h->head_dim, HEAD_DIM_MAX);
    }
    h->attention_scale = (float)(1.0 / sqrt((double)h->head_dim));
    return OK;
}

static enum err read_sizes(struct loader *l)
{
    struct hparams *h = &l->m->h;
    uint32_t window;
    enum err e = read_u32(l, "block_count", 0, MODEL_LAYERS_MAX, &h->layers);
    if (e == OK) e = read_u32(l, "embedding_length", 0, DIM_MAX, &h->dim);
    if (e == OK) e = read_u32(l, "feed_forward_length", 0, DIM_MAX, &h->ffn_dim);
    if (e == OK) e = read_u32(l, "attention.head_count", 0, HEADS_MAX, &h->heads);
    if (e == OK) e = read_u32(l, "attention.head_count_kv", h->heads, HEADS_MAX, &h->kv_heads);
    if (e == OK) e = read_u32(l, "context_length", 0, INT32_MAX, &h->context);
    if (e == OK) e = read_f32(l, "attention.layer_norm_rms_epsilon", 0, &h->norm_eps);
    if (e != OK) return e;
    if (h->heads % h->kv_heads) {
        return why_set(l->why, ERR_FORMAT, "%" PRIu32 " heads do not share %" PRIu32 " kv heads",
                       h->heads, h->kv_heads);
    }
    /* Attention here always sees the whole sequence, which within the window is the same. */
    if (gguf_get_u32(l->g, key_of(l, "attention.sliding_window").text, &window) && window > 0 &&
        window < h->context) {
        h->context = window;
    }
    return read_head_dim(l);
}

/* What positions are divided by; 1 without scaling. */
static enum err read_rope_factor(struct loader *l, float *out)
{
    struct gguf_text type;
    if (!gguf_get_text(l->g, key_of(l, "rope.scaling.type").text, &type)) {
        return read_f32(l, "rope.scale_linear", 1, out);
    }
    *out = 1;
    if (type.bytes == 4 && !memcmp(type.data, "none", 4)) return OK;
    if (type.bytes == 6 && !memcmp(type.data, "linear", 6)) {
        return read_f32(l, "rope.scaling.factor", 1, out);
    }
    const char *known[] = { "yarn", "longrope" }, *name = "of an unknown kind";
    for (int i = 0; i < 2; i++) {
        if (type.bytes == strlen(known[i]) && !memcmp(type.data, known[i], type.bytes)) {
            name = known[i];
        }
    }
    return why_set(l->why, ERR_UNSUPPORTED, "rope scaling %s is not supported yet", name);
}

/* The names of a file's tensor types, each once: "F32, Q4_1, IQ4_NL (not supported)". */
static void list_types(const struct gguf *g, char *out, size_t bytes)
{
    bool listed[64] = { 0 };
    size_t used = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < gguf_tensor_count(g); i++) {
        enum tensor_type type = gguf_tensor_at(g, i)->type;
        if ((unsigned)type >= 64 || listed[type]) continue;
        listed[type] = true;
        int n = snprintf(out + used, bytes - used, "%s%s%s", used ? ", " : "",
                         tensor_type_name(type),
                         tensor_type_computable(type) ? "" : " (not supported)");
        if (n < 0 || (size_t)n >= bytes - used) return;
        used += (size_t)n;
    }
}

/* Marks a tensor as known and checks its shape (OUT, IN) and type. */
static enum err check_tensor(struct loader *l, const struct gguf_tensor *t, uint64_t out,
                             uint64_t in)
{
    l->used[t - gguf_tensor_at(l->g, 0)] = true;
    bool flat = t->dims[2] == 1 && t->dims[3] == 1;
    if (!flat || t->dims[0] != in || t->dims[1] != out) {
        if (out == 1 && t->dim_count == 1) {
            return why_set(l->why, ERR_FORMAT, "%.96s: %" PRIu64 " values, expected %" PRIu64,
                           t->name, t->dims[0], in);
        }
        return why_set(l->why, ERR_FORMAT,
                       "%.96s: shape (%" PRIu64 ", %" PRIu64 "%s), expected (%" PRIu64 ", %" PRIu64
                       ")", t->name, t->dims[1], t->dims[0], flat ? "" : ", more", out, in);
    }
    bool plain = t->type == TENSOR_F32 || t->type == TENSOR_F16 || t->type == TENSOR_BF16;
    if (out == 1 ? !plain : !tensor_type_computable(t->type)) {
        char types[256];
        list_types(l->g, types, sizeof types);
        return why_set(l->why, ERR_UNSUPPORTED,
                       "%.96s: type %s (%d) is not supported%s; the file's types: %s", t->name,
                       tensor_type_name(t->type), (int)t->type, out == 1 ? " for a vector" : "",
                       types);
    }
    if ((uintptr_t)t->data % DATA_ALIGNMENT) {
        return why_set(l->why, ERR_FORMAT, "%.96s: its data is not aligned to %d bytes", t->name,
                       DATA_ALIGNMENT);
    }
    return OK;
}

static enum err read_rope_factors(struct loader *l, float factors[512])
{
    uint32_t half = l->m->h.rope_dims / 2;
    const struct gguf_tensor *t = gguf_tensor_find(l->g, "rope_freqs.weight");
    for (uint32_t i = 0; i < half; i++) factors[i] = 1;
    if (!t) return OK;
    enum err e = check_tensor(l, t, 1, half);
    if (e != OK) return e;
    tensor_dequantize(t->type, t->data, factors, half);
    for (uint32_t i = 0; i < half; i++) {
        if (!(factors[i] > 0) || isinf(factors[i])) {
            return why_set(l->why, ERR_FORMAT, "%s: value %" PRIu32 " is not positive", t->name, i);
        }
    }
    return OK;
}

static enum err read_rope(struct loader *l)
{
    struct hparams *h = &l->m->h;
    float base, linear, factors[512];
    h->rope = l->family->rope;
    enum err e = read_u32(l, "rope.dimension_count", h->head_dim, h->head_dim, &h->rope_dims);
    if (e == OK) e = read_f32(l, "rope.freq_base", 10000, &base);
    if (e == OK) e = read_rope_factor(l, &linear);
    if (e != OK) return e;
    if (h->rope_dims % 2) {
        return why_set(l->why, ERR_FORMAT, "%" PRIu32 " rotated dimensions; an even number "
                       "expected", h->rope_dims);
    }
    e = read_rope_factors(l, factors);
    if (e != OK) return e;
    for (uint32_t i = 0; i < h->rope_dims / 2; i++) {
        double turn = pow((double)base, -2.0 * i / h->rope_dims);
        h->rope_freq[i] = (float)(turn / (double)factors[i] / (double)linear);
    }
    return OK;
}

static uint64_t side_length(const struct hparams *h, enum side s)
{
    switch (s) {
    case ONE: return 1;
    case D: return h->dim;
    case Q: return (uint64_t)h->heads * h->head_dim;
    case K: return (uint64_t)h->kv_heads * h->head_dim;
    case S: return h->head_dim;
    case F: return h->ffn_dim;
    }
    CHECK(!"a side");
    return 0;
}

/* Finds and checks one tensor; *out stays NULL when it may be absent and is. */
static enum err find_tensor(struct loader *l, const char *name, bool required, uint64_t out,
                            uint64_t in, const struct gguf_tensor **found)
{
    *found = gguf_tensor_find(l->g, name);
    if (*found) return check_tensor(l, *found, out, in);
    if (!required) return OK;
    return why_set(l->why, ERR_FORMAT, "tensor %s is missing", name);
}

static enum err find_layer(struct loader *l, uint32_t layer)
{
    const struct family *f = l->family;
    for (size_t i = 0; i < SLOT_COUNT; i++) {
        const struct slot *s = &layer_slots[i];
        if (s->need == QK_NORM && !f->qk_norm) continue;
        bool required = s->need == ALWAYS || s->need == QK_NORM ||
                        (s->need == QKV_BIAS && f->qkv_bias);
        char name[64];
        snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, s->suffix);
        const struct gguf_tensor *t;
        enum err e = find_tensor(l, name, required, side_length(&l->m->h, s->out),
                                 side_length(&l->m->h, s->in), &t);
        if (e != OK) return e;
        memcpy((char *)&l->m->layers[layer] + s->at, &t, sizeof t);
    }
    return OK;
}

static enum err find_weights(struct loader *l)
{
    struct model *m = l->m;
    struct hparams *h = &m->h;
    const struct gguf_tensor *t = gguf_tensor_find(l->g, "token_embd.weight");
    if (!t) return why_set(l->why, ERR_FORMAT, "tensor token_embd.weight is missing");
    if (t->dims[1] > VOCAB_MAX) {
        return why_set(l->why, ERR_LIMIT, "vocabulary of %" PRIu64 " tokens; at most %d",
                       t->dims[1], VOCAB_MAX);
    }
    h->vocab = (uint32_t)t->dims[1];
    m->embedding = t;
    enum err e = check_tensor(l, t, h->vocab, h->dim);
    if (e == OK) e = find_tensor(l, "output_norm.weight", true, 1, h->dim, &m->output_norm);
    if (e == OK) e = find_tensor(l, "output.weight", false, h->vocab, h->dim, &m->output);
    h->tied_output = !m->output;
    if (!m->output) m->output = m->embedding;
    for (uint32_t i = 0; e == OK && i < h->layers; i++) e = find_layer(l, i);
    return e;
}

/* Old converters also stored the rotary frequencies, which follow from the keys. */
static bool is_redundant(const char *name)
{
    static const char tail[] = ".attn_rot_embd.weight";
    size_t n = strlen(name), t = sizeof tail - 1;
    return n > t && !strcmp(name + n - t, tail);
}

static enum err refuse_unused(struct loader *l)
{
    for (uint32_t i = 0; i < gguf_tensor_count(l->g); i++) {
        const char *name = gguf_tensor_at(l->g, i)->name;
        if (!l->used[i] && !is_redundant(name)) {
            return why_set(l->why, ERR_UNSUPPORTED,
                           "tensor %.96s: no place for it in a %s model of %" PRIu32 " layers",
                           name, l->family->name, l->m->h.layers);
        }
    }
    return OK;
}

static void add_u32(struct buf *b, uint32_t value)
{
    buf_add(b, &value, sizeof value);
}

static void add_samples(struct buf *b, const struct gguf_tensor *t)
{
    const uint8_t *data = t->data;
    if (t->bytes <= SAMPLE_BYTES) {
        buf_add(b, data, t->bytes);
        return;
    }
    uint64_t span = t->bytes - SAMPLE_BYTES, last = SAMPLE_COUNT - 1;
    for (uint64_t i = 0; i <= last; i++) {
        buf_add(b, data + (span / last * i + span % last * i / last), SAMPLE_BYTES);
    }
}

/* The name is left out: it changes no answer. */
static struct hash128 digest_of(const struct model *m)
{
    static const struct hash_secret public_secret = { UINT64_C(0x72616e6b73657276),
                                                      UINT64_C(0x6d6f64656c763031) };
    const struct hparams *h = &m->h;
    struct buf b = { 0 };
    buf_add(&b, h->family, strlen(h->family) + 1);
    const uint32_t counts[] = { h->layers, h->dim, h->heads, h->kv_heads, h->head_dim, h->ffn_dim,
                                h->vocab, h->context, (uint32_t)h->rope, h->rope_dims };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) add_u32(&b, counts[i]);
    buf_add(&b, &h->norm_eps, sizeof h->norm_eps);
    buf_add(&b, h->rope_freq, h->rope_dims / 2 * sizeof h->rope_freq[0]);
    for (uint32_t i = 0; i < gguf_tensor_count(m->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->file, i);
        buf_add(&b, t->name, strlen(t->name) + 1);
        add_u32(&b, (uint32_t)t->type);
        buf_add(&b, t->dims, sizeof t->dims);
        add_samples(&b, t);
    }
    struct hash128 digest = hash_sip128(public_secret, b.data, b.size);
    buf_release(&b);
    return digest;
}

static enum err load(struct loader *l)
{
    enum err e = find_family(l);
    if (e == OK) e = refuse_unsupported(l);
    if (e != OK) return e;
    read_name(l);
    e = read_sizes(l);
    if (e == OK) e = read_rope(l);
    if (e == OK) e = find_weights(l);
    if (e == OK) e = refuse_unused(l);
    if (e == OK) l->m->digest = digest_of(l->m);
    return e;
}

enum err model_open(struct model **out, const struct gguf *g, struct why *why)
{
    struct loader l = { .m = mem_alloc(sizeof *l.m), .g = g, .why = why };
    l.used = mem_array(gguf_tensor_count(g), sizeof *l.used);
    l.m->file = g;
    enum err e = load(&l);
    free(l.used);
    if (e == OK) {
        *out = l.m;
    } else {
        model_close(l.m);
    }
    return e;
}

void model_close(struct model *m)
{
    free(m);
}
