/* tests/unit/model_hparams_test.c - from a GGUF file to a checked model, family by family. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gguf_writer.h"
#include "model/hparams.h"

/* A small model, and what a test changes about it. */
enum { LAYERS = 2, D = 64, HEADS = 4, KV = 2, S = 16, F = 96, V = 40 };
struct plan {
    const char *arch;
    const char *skip;                 /* a tensor or key (without its prefix) left out          */
    const char *wrong;                /* a tensor that gets `wrong_type` and one more row       */
    uint32_t wrong_type;
    bool untied, qkv_bias, qk_norm;
    uint32_t key_length;              /* 0: no key                                              */
    float first_weight;               /* in the embedding: changes the digest                   */
    void (*more)(struct gguf_writer *w);
};

struct opened {
    struct gguf_writer w;
    struct gguf *g;
    struct model *m;
    struct why why;
    enum err e;
};

static void add_key(struct gguf_writer *w, const struct plan *p, const char *name, uint32_t value)
{
    char key[96];
    if (p->skip && !strcmp(p->skip, name)) return;
    snprintf(key, sizeof key, "%s.%s", p->arch, name);
    writer_key_u32(w, key, value);
}

static void add_tensor(struct gguf_writer *w, const struct plan *p, const char *name,
                       enum tensor_type type, uint64_t out, uint64_t in)
{
    static float values[4096 * 4];
    bool wrong = p->wrong && !strcmp(p->wrong, name);
    if (p->skip && !strcmp(p->skip, name)) return;
    if (wrong) type = (enum tensor_type)p->wrong_type;
    if (wrong && type == TENSOR_F32) in += 32;
    uint64_t dims[2] = { in, out };
    size_t bytes = type == TENSOR_F32 ? in * out * 4 : type == TENSOR_Q8_0 ? in * out / 32 * 34 :
                   in * out / 32 * 18;
    memset(values, 0, sizeof values);
    values[0] = !strcmp(name, "token_embd.weight") ? p->first_weight : 1;
    assert_true(bytes <= sizeof values);
    writer_tensor(w, name, type, out == 1 ? 1 : 2, dims, values, bytes);
}

static void add_layer(struct gguf_writer *w, const struct plan *p, int layer)
{
    uint64_t head = p->key_length ? p->key_length : S;
    const struct {
        const char *suffix;
        uint64_t out, in;
        bool present;
    } rows[] = {
        { "attn_norm.weight", 1, D, true },
        { "attn_q.weight", HEADS * head, D, true },
        { "attn_k.weight", KV * head, D, true },
        { "attn_v.weight", KV * head, D, true },
        { "attn_q.bias", 1, HEADS * head, p->qkv_bias },
        { "attn_k.bias", 1, KV * head, p->qkv_bias },
        { "attn_v.bias", 1, KV * head, p->qkv_bias },
        { "attn_q_norm.weight", 1, head, p->qk_norm },
        { "attn_k_norm.weight", 1, head, p->qk_norm },
        { "attn_output.weight", D, HEADS * head, true },
        { "ffn_norm.weight", 1, D, true },
        { "ffn_gate.weight", F, D, true },
        { "ffn_up.weight", F, D, true },
        { "ffn_down.weight", D, F, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s", layer, rows[i].suffix);
        if (!rows[i].present) continue;
        add_tensor(w, p, name, rows[i].out == 1 ? TENSOR_F32 : TENSOR_Q8_0, rows[i].out,
                   rows[i].in);
    }
}

static void open_plan(struct opened *o, const struct plan *p)
{
    *o = (struct opened){ .e = OK };
    struct gguf_writer *w = &o->w;
    char key[96];
    writer_key_text(w, "general.architecture", p->arch);
    add_key(w, p, "block_count", LAYERS);
    add_key(w, p, "embedding_length", D);
    add_key(w, p, "feed_forward_length", F);
    add_key(w, p, "attention.head_count", HEADS);
    add_key(w, p, "attention.head_count_kv", KV);
    add_key(w, p, "context_length", 512);
    if (p->key_length) add_key(w, p, "attention.key_length", p->key_length);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", p->arch);
    writer_key_f32(w, key, 1e-5f);
    if (p->more) p->more(w);
    add_tensor(w, p, "token_embd.weight", TENSOR_Q8_0, V, D);
    add_tensor(w, p, "output_norm.weight", TENSOR_F32, 1, D);
    if (p->untied) add_tensor(w, p, "output.weight", TENSOR_Q4_0, V, D);
    for (int i = 0; i < LAYERS; i++) add_layer(w, p, i);
    writer_finish(w);
    o->e = gguf_open_image(&o->g, w->image.data, w->image.size, "t", &o->why);
    if (o->e != OK) fail_msg("%s", o->why.text);
    o->e = model_open(&o->m, o->g, &o->why);
}

static void close_plan(struct opened *o)
{
    if (o->e == OK) model_close(o->m);
    gguf_close(o->g);
    writer_release(&o->w);
}

static void accept(struct opened *o, const struct plan *p)
{
    open_plan(o, p);
    if (o->e != OK) fail_msg("%s", o->why.text);
}

static void refuse(const struct plan *p, enum err e, const char *expected)
{
    struct opened o;
    open_plan(&o, p);
    if (o.e == OK) fail_msg("accepted, expected '%s'", expected);
    if (!strstr(o.why.text, expected)) fail_msg("'%s' is not in '%s'", expected, o.why.text);
    assert_int_equal(o.e, e);
    close_plan(&o);
}

static void a_llama_is_read_with_its_defaults(void **state)
{
    (void)state;
    struct opened o;
    accept(&o, &(struct plan){ .arch = "llama" });
    const struct hparams *h = &o.m->h;
    assert_string_equal(h->family, "llama");
    assert_string_equal(h->name, "llama");
    assert_int_equal(h->layers, LAYERS);
    assert_int_equal(h->kv_heads, KV);
    assert_int_equal(h->head_dim, S);
    assert_int_equal(h->vocab, V);
    assert_int_equal(h->context, 512);
    assert_int_equal(h->rope, ROPE_PAIRS);
    assert_int_equal(h->rope_dims, S);
    assert_float_equal(h->rope_freq[0], 1, 0);
    assert_float_equal(h->rope_freq[3], pow(10000, -6.0 / S), 1e-7);
    assert_float_equal(h->attention_scale, 0.25, 0);
    assert_true(h->tied_output && o.m->output == o.m->embedding);
    assert_string_equal(o.m->layers[1].down->name, "blk.1.ffn_down.weight");
    assert_null(o.m->layers[0].q_bias);
    assert_null(o.m->layers[0].q_norm);
    close_plan(&o);
}

static void qwen_has_biases_or_norms_and_halves(void **state)
{
    (void)state;
    struct opened o;
    accept(&o, &(struct plan){ .arch = "qwen2", .qkv_bias = true, .untied = true });
    assert_int_equal(o.m->h.rope, ROPE_HALVES);
    assert_non_null(o.m->layers[1].v_bias);
    assert_false(o.m->h.tied_output);
    close_plan(&o);
    accept(&o, &(struct plan){ .arch = "qwen3", .qk_norm = true, .key_length = 32 });
    assert_int_equal(o.m->h.head_dim, 32);
    assert_int_equal(o.m->layers[0].k_norm->dims[0], 32);
    close_plan(&o);
    refuse(&(struct plan){ .arch = "qwen2" }, ERR_FORMAT, "blk.0.attn_q.bias is missing");
    refuse(&(struct plan){ .arch = "qwen3" }, ERR_FORMAT, "attn_q_norm.weight is missing");
    refuse(&(struct plan){ .arch = "llama", .qk_norm = true }, ERR_UNSUPPORTED,
           "blk.0.attn_q_norm.weight: no place for it");
}

static void scale_linear(struct gguf_writer *w)
{
    writer_key_text(w, "llama.rope.scaling.type", "linear");
    writer_key_f32(w, "llama.rope.scaling.factor", 4);
    writer_key_f32(w, "llama.rope.freq_base", 500000);
    writer_key_u32(w, "llama.rope.dimension_count", 8);
    writer_key_u32(w, "llama.attention.sliding_window", 100);
}
static void scale_by_tensor(struct gguf_writer *w)
{
    static const float factors[S / 2] = { 1, 1, 2, 4, 8, 8, 8, 8 };
    writer_tensor(w, "rope_freqs.weight", TENSOR_F32, 1, (uint64_t[]){ S / 2 }, factors,
                  sizeof factors);
}
static void scale_to_zero(struct gguf_writer *w)
{
    writer_tensor(w, "rope_freqs.weight", TENSOR_F32, 1, (uint64_t[]){ S / 2 }, NULL, S * 2);
}
static void scale_short(struct gguf_writer *w)
{
    writer_tensor(w, "rope_freqs.weight", TENSOR_F32, 1, (uint64_t[]){ 4 }, NULL, 16);
}
static void scale_yarn(struct gguf_writer *w)
{
    writer_key_text(w, "llama.rope.scaling.type", "yarn");
}
static void scale_nan(struct gguf_writer *w)
{
    writer_key_f32(w, "llama.rope.freq_base", NAN);
}

static void rotary_scaling_is_applied_or_refused_by_name(void **state)
{
    (void)state;
    struct opened o;
    accept(&o, &(struct plan){ .arch = "llama", .more = scale_linear });
    assert_int_equal(o.m->h.rope_dims, 8);
    assert_float_equal(o.m->h.rope_freq[0], 0.25, 0);
    assert_float_equal(o.m->h.rope_freq[1], pow(500000, -2.0 / 8) / 4, 1e-8);
    assert_int_equal(o.m->h.context, 100);
    close_plan(&o);
    accept(&o, &(struct plan){ .arch = "llama", .more = scale_by_tensor });
    assert_float_equal(o.m->h.rope_freq[3], pow(10000, -6.0 / S) / 4, 1e-8);
    close_plan(&o);
    refuse(&(struct plan){ .arch = "llama", .more = scale_yarn }, ERR_UNSUPPORTED, "scaling yarn");
    refuse(&(struct plan){ .arch = "llama", .more = scale_to_zero }, ERR_FORMAT, "not positive");
    refuse(&(struct plan){ .arch = "llama", .more = scale_short }, ERR_FORMAT,
           "rope_freqs.weight: 4 values, expected 8");
    refuse(&(struct plan){ .arch = "llama", .more = scale_nan }, ERR_FORMAT, "rope.freq_base");
}

static void use_experts(struct gguf_writer *w)
{
    writer_key_u32(w, "llama.expert_count", 8);
}
static void use_parts(struct gguf_writer *w)
{
    writer_key_u32(w, "split.count", 3);
}
static void differ_in_size(struct gguf_writer *w)
{
    writer_key_u32(w, "llama.attention.value_length", 32);
}

static void odd_heads(struct gguf_writer *w)
{
    writer_key_u32(w, "llama.attention.key_length", 17);
}
static void large_heads(struct gguf_writer *w)
{
    writer_key_u32(w, "llama.attention.key_length", 2000);
}
static void three_kv_heads(struct gguf_writer *w)
{
    writer_key_u32(w, "llama.attention.head_count_kv", 3);
}

static void what_cannot_be_served_is_refused_with_a_reason(void **state)
{
    (void)state;
    refuse(&(struct plan){ .arch = "mamba" }, ERR_UNSUPPORTED, "llama, qwen2, qwen3");
    refuse(&(struct plan){ .arch = "llama", .more = use_experts }, ERR_UNSUPPORTED, "mixture");
    refuse(&(struct plan){ .arch = "llama", .more = use_parts }, ERR_UNSUPPORTED, "of 3 parts");
    refuse(&(struct plan){ .arch = "llama", .more = differ_in_size }, ERR_UNSUPPORTED, "differ");
    refuse(&(struct plan){ .arch = "llama", .more = odd_heads }, ERR_LIMIT, "head size 17");
    refuse(&(struct plan){ .arch = "llama", .more = large_heads }, ERR_LIMIT,
           "attention.key_length is 2000; 1..1024");
    refuse(&(struct plan){ .arch = "llama", .more = three_kv_heads,
                           .skip = "attention.head_count_kv" }, ERR_FORMAT, "4 heads");
    struct gguf_writer w = { 0 };
    struct gguf *g;
    struct model *m;
    struct why why;
    writer_key_text(&w, "general.architecture", "llama");
    writer_finish(&w);
    assert_int_equal(gguf_open_image(&g, w.image.data, w.image.size, "t", &why), OK);
    assert_int_equal(model_open(&m, g, &why), ERR_FORMAT);
    assert_non_null(strstr(why.text, "vocabulary"));
    gguf_close(g);
    writer_release(&w);
}

static void missing_keys_and_tensors_are_named(void **state)
{
    (void)state;
    static const char *const keys[] = { "block_count", "embedding_length", "feed_forward_length",
                                        "attention.head_count", "context_length" };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        refuse(&(struct plan){ .arch = "llama", .skip = keys[i] }, ERR_FORMAT, keys[i]);
    }
    static const char *const tensors[] = { "token_embd.weight", "output_norm.weight",
                                           "blk.1.attn_v.weight", "blk.0.ffn_norm.weight" };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        refuse(&(struct plan){ .arch = "llama", .skip = tensors[i] }, ERR_FORMAT, tensors[i]);
    }
    /* Without its own count, every head has its own keys: then the shapes are wrong. */
    refuse(&(struct plan){ .arch = "llama", .skip = "attention.head_count_kv" }, ERR_FORMAT,
           "blk.0.attn_k.weight: shape (32, 64), expected (64, 64)");
}

static void wrong_shapes_and_types_are_named(void **state)
{
    (void)state;
    refuse(&(struct plan){ .arch = "llama", .wrong = "blk.1.attn_q.weight" }, ERR_FORMAT,
           "blk.1.attn_q.weight: shape (64, 96), expected (64, 64)");
    refuse(&(struct plan){ .arch = "llama", .wrong = "blk.0.attn_norm.weight" }, ERR_FORMAT,
           "blk.0.attn_norm.weight: 96 values, expected 64");
    refuse(&(struct plan){ .arch = "llama", .wrong = "blk.0.ffn_up.weight", .wrong_type = 20 },
           ERR_UNSUPPORTED,
           "blk.0.ffn_up.weight: type IQ4_NL (20) is not supported; the file's types: ");
    refuse(&(struct plan){ .arch = "llama", .wrong = "blk.0.ffn_up.weight", .wrong_type = 20 },
           ERR_UNSUPPORTED, "IQ4_NL (not supported)");
    refuse(&(struct plan){ .arch = "llama", .wrong = "output_norm.weight",
                           .wrong_type = TENSOR_Q4_0 }, ERR_UNSUPPORTED, "for a vector");
}

static void the_digest_tells_models_apart(void **state)
{
    (void)state;
    struct opened o;
    struct hash128 digest[4];
    const struct plan plans[4] = {
        { .arch = "llama" }, { .arch = "llama" }, { .arch = "llama", .first_weight = 3 },
        { .arch = "llama", .more = scale_linear },
    };
    for (int i = 0; i < 4; i++) {
        accept(&o, &plans[i]);
        digest[i] = o.m->digest;
        close_plan(&o);
    }
    assert_true(hash_equal(digest[0], digest[1]));
    assert_false(hash_equal(digest[0], digest[2]));
    assert_false(hash_equal(digest[0], digest[3]));
}

static void the_real_model_is_read(void **state)
{
    (void)state;
    const char *path = getenv("RANKSERVE_TEST_MODEL");
    if (!path) skip();
    struct gguf *g;
    struct model *m;
    struct why why;
    if (gguf_open(&g, path, &why) != OK) fail_msg("%s", why.text);
    if (model_open(&m, g, &why) != OK) fail_msg("%s", why.text);
    assert_true(m->h.layers > 0 && m->h.vocab > 1000);
    assert_int_equal(m->h.dim, m->layers[m->h.layers - 1].q->dims[0]);
    model_close(m);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_llama_is_read_with_its_defaults),
        cmocka_unit_test(qwen_has_biases_or_norms_and_halves),
        cmocka_unit_test(rotary_scaling_is_applied_or_refused_by_name),
        cmocka_unit_test(what_cannot_be_served_is_refused_with_a_reason),
        cmocka_unit_test(missing_keys_and_tensors_are_named),
        cmocka_unit_test(wrong_shapes_and_types_are_named),
        cmocka_unit_test(the_digest_tells_models_apart),
        cmocka_unit_test(the_real_model_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
