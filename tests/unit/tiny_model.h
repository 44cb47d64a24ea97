/* tests/unit/tiny_model.h - small models with random weights, for tests of backends.
 *
 *   struct tiny t;
 *   tiny_open(&t, &(struct tiny_plan){ .arch = "llama", .seed = 1, ... });   t.m is the model
 *   tiny_close(&t);
 */
#ifndef RANKSERVE_TESTS_TINY_MODEL_H
#define RANKSERVE_TESTS_TINY_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/splitmix.h"
#include "gguf_writer.h"
#include "model/hparams.h"
#include "model/quant.h"

struct tiny_plan {
    const char *arch;                 /* qwen2: biases; qwen3: q and k norms            */
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab;
    const enum tensor_type *types;    /* the matrices take them in turn                 */
    uint32_t type_count;
    uint64_t seed;
};

struct tiny {
    struct gguf_writer w;
    struct gguf *g;
    struct model *m;
};

static inline uint64_t tiny_random(uint64_t *seed)
{
    return splitmix_next(seed);
}

/* In [-1, 1). */
static inline float tiny_float(uint64_t *seed)
{
    return (float)(tiny_random(seed) >> 40) * 0x1p-23f - 1;
}

static inline void tiny_half(uint8_t *at, float value)
{
    uint16_t half = float_to_half(value);
    memcpy(at, &half, sizeof half);
}

/* Random blocks whose weights are of the size `scale`. */
static inline void tiny_fill(enum tensor_type type, uint8_t *out, size_t bytes, float scale,
                             uint64_t *seed)
{
    size_t block = tensor_block_bytes(type);
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)tiny_random(seed);
    for (size_t i = 0; i < bytes; i += block) {
        float part = scale * (1.5f + tiny_float(seed)) / 2;
        uint8_t *at = out + i;
        switch (type) {
        case TENSOR_F32: memcpy(at, &(float){ scale * tiny_float(seed) }, 4); break;
        case TENSOR_F16: tiny_half(at, scale * tiny_float(seed)); break;
        case TENSOR_BF16: {
            float value = scale * tiny_float(seed);
            memcpy(at, (uint8_t *)&value + 2, 2);
            break;
        }
        case TENSOR_Q4_0: tiny_half(at, part / 8); break;
        case TENSOR_Q5_0: tiny_half(at, part / 16); break;
        case TENSOR_Q8_0: tiny_half(at, part / 128); break;
        case TENSOR_Q4_1: tiny_half(at, part / 8), tiny_half(at + 2, -part); break;
        case TENSOR_Q5_1: tiny_half(at, part / 16), tiny_half(at + 2, -part); break;
        case TENSOR_Q4_K: tiny_half(at, part / 500), tiny_half(at + 2, part / 60); break;
        case TENSOR_Q5_K: tiny_half(at, part / 1000), tiny_half(at + 2, part / 60); break;
        case TENSOR_Q6_K: tiny_half(at + 208, part / 4000); break;
        }
    }
}

static inline void tiny_matrix(struct gguf_writer *w, const char *name, enum tensor_type type,
                               uint64_t out, uint64_t in, uint64_t *seed)
{
    size_t bytes = out * in / tensor_block_values(type) * tensor_block_bytes(type);
    uint8_t *data = mem_alloc(bytes);
    float scale = 2.5f;              /* over the square root of `in`: values keep their size */
    for (uint64_t i = in; i > 1; i /= 4) scale /= 2;
    tiny_fill(type, data, bytes, scale, seed);
    writer_tensor(w, name, type, 2, (uint64_t[]){ in, out }, data, bytes);
    free(data);
}

static inline void tiny_vector(struct gguf_writer *w, const char *name, uint64_t count, float base,
                               uint64_t *seed)
{
    float *data = mem_array(count, sizeof *data);
    for (uint64_t i = 0; i < count; i++) data[i] = base + 0.3f * tiny_float(seed);
    writer_tensor(w, name, TENSOR_F32, 1, &count, data, count * sizeof *data);
    free(data);
}

static inline void tiny_layer(struct tiny *t, const struct tiny_plan *p, uint32_t layer,
                              uint32_t *turn, uint64_t *seed)
{
    uint64_t q = p->heads * p->head_dim, k = p->kv_heads * p->head_dim, d = p->dim, f = p->ffn_dim;
    const struct { const char *name; uint64_t out, in; } matrices[] = {
        { "attn_q", q, d }, { "attn_k", k, d }, { "attn_v", k, d }, { "attn_output", d, q },
        { "ffn_gate", f, d }, { "ffn_up", f, d }, { "ffn_down", d, f },
    };
    bool biases = !strcmp(p->arch, "qwen2"), norms = !strcmp(p->arch, "qwen3");
    const struct { const char *name; uint64_t count; float base; bool present; } vectors[] = {
        { "attn_norm.weight", d, 1, true }, { "ffn_norm.weight", d, 1, true },
        { "attn_q.bias", q, 0, biases }, { "attn_k.bias", k, 0, biases },
        { "attn_v.bias", k, 0, biases }, { "attn_q_norm.weight", p->head_dim, 1, norms },
        { "attn_k_norm.weight", p->head_dim, 1, norms },
    };
    char name[64];
    for (int i = 0; i < 7; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, matrices[i].name);
        tiny_matrix(&t->w, name, p->types[(*turn)++ % p->type_count], matrices[i].out,
                    matrices[i].in, seed);
        snprintf(name, sizeof name, "blk.%u.%s", layer, vectors[i].name);
        if (!vectors[i].present) continue;
        tiny_vector(&t->w, name, vectors[i].count, vectors[i].base, seed);
    }
}

static inline void tiny_key(struct tiny *t, const struct tiny_plan *p, const char *name,
                            uint32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", p->arch, name);
    writer_key_u32(&t->w, key, value);
}

static inline void tiny_open(struct tiny *t, const struct tiny_plan *p)
{
    *t = (struct tiny){ .g = NULL };
    uint64_t seed = p->seed;
    uint32_t turn = 0;
    char key[96];
    writer_key_text(&t->w, "general.architecture", p->arch);
    tiny_key(t, p, "block_count", p->layers);
    tiny_key(t, p, "embedding_length", p->dim);
    tiny_key(t, p, "feed_forward_length", p->ffn_dim);
    tiny_key(t, p, "attention.head_count", p->heads);
    tiny_key(t, p, "attention.head_count_kv", p->kv_heads);
    tiny_key(t, p, "attention.key_length", p->head_dim);
    tiny_key(t, p, "attention.value_length", p->head_dim);
    tiny_key(t, p, "context_length", 4096);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", p->arch);
    writer_key_f32(&t->w, key, 1e-5f);
    tiny_matrix(&t->w, "token_embd.weight", p->types[turn++ % p->type_count], p->vocab, p->dim,
                &seed);
    tiny_vector(&t->w, "output_norm.weight", p->dim, 1, &seed);
    for (uint32_t i = 0; i < p->layers; i++) tiny_layer(t, p, i, &turn, &seed);
    writer_finish(&t->w);
    struct why why = { "" };
    if (gguf_open_image(&t->g, t->w.image.data, t->w.image.size, "tiny", &why) ||
        model_open(&t->m, t->g, &why)) {
        die("tiny model: %s", why.text);
    }
}

static inline void tiny_close(struct tiny *t)
{
    model_close(t->m);
    gguf_close(t->g);
    writer_release(&t->w);
}

#endif
