/* model/hparams.h - what a model is: hyper-parameters and where its weights are.
 *
 * Families of the Llama kind (Llama 2/3/3.1, SmolLM2, Mistral, Qwen2/2.5, Qwen3) differ by a row of
 * a table in hparams.c: rotary layout, biases, q/k norms, tied embeddings.
 *
 * Letters used for shapes everywhere: L layers, D embedding, H query heads, K kv heads, S head
 * size, F feed-forward, V vocabulary.  A weight matrix W (OUT, IN) is stored OUT rows of IN values.
 * Owner: whoever opened it; the tensors point into the gguf, which must outlive the model.
 */
#ifndef RANKSERVE_MODEL_HPARAMS_H
#define RANKSERVE_MODEL_HPARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/limits.h"
#include "model/gguf.h"

enum rope_layout {
    ROPE_PAIRS,                       /* (x0,x1),(x2,x3)...: llama GGUFs are permuted to this */
    ROPE_HALVES,                      /* (x0,x[S/2])...: qwen ("neox")                        */
};

struct hparams {
    const char *family;               /* "llama", "qwen2", "qwen3"; as in general.architecture */
    char name[128];                   /* general.name, else the family */
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab;
    uint32_t context;                 /* the longest sequence it was trained for */
    float norm_eps;
    enum rope_layout rope;
    uint32_t rope_dims;               /* the first rope_dims of S are rotated; even  */
    /* rope_freq[i], i < rope_dims/2: radians per position, scaling (linear, llama3 through the
     * rope_freqs tensor, yarn's is refused) already applied. */
    float rope_freq[512];
    float attention_scale;            /* 1/sqrt(S) */
    bool tied_output;                 /* the head is the embedding */
};

struct layer_weights {                /* a NULL pointer: this family has none */
    const struct gguf_tensor *attn_norm;               /* (D)               */
    const struct gguf_tensor *q, *k, *v;               /* (H*S, D) (K*S, D) (K*S, D) */
    const struct gguf_tensor *q_bias, *k_bias, *v_bias;
    const struct gguf_tensor *q_norm, *k_norm;         /* (S): Qwen3, before rope    */
    const struct gguf_tensor *o;                       /* (D, H*S)          */
    const struct gguf_tensor *o_bias;
    const struct gguf_tensor *ffn_norm;                /* (D)               */
    const struct gguf_tensor *gate, *up;               /* (F, D)            */
    const struct gguf_tensor *down;                    /* (D, F)            */
};

struct model {
    struct hparams h;
    const struct gguf_tensor *embedding;               /* (V, D)            */
    const struct gguf_tensor *output_norm;             /* (D)               */
    const struct gguf_tensor *output;                  /* (V, D); == embedding when tied */
    struct layer_weights layers[MODEL_LAYERS_MAX];
    struct hash128 digest;            /* of keys, shapes and a sample of the weights: same file,
                                         same digest; part of every KV key */
    const struct gguf *file;
};

/* Reads hyper-parameters and finds every tensor, checking each shape and type.  A vocabulary-only
 * file (no tensors) is refused here; the tokenizer alone can read it. */
enum err model_open(struct model **out, const struct gguf *g, struct why *why);
void model_close(struct model *m);

/* Bytes of keys and values of one token in one layer, both together: 2 * K * S * element. */
static inline uint64_t model_kv_token_bytes(const struct hparams *h, uint32_t element_bytes)
{
    return 2ull * h->kv_heads * h->head_dim * element_bytes;
}

#endif
