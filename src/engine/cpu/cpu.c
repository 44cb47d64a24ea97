/* engine/cpu/cpu.c - the CPU backend's table: opening and closing; see cpu.h. */
#include "engine/cpu/cpu.h"

#include <stdlib.h>

#include "common/mem.h"
#include "model/quant.h"

static bool use_plain(const struct model *m, enum isa isa)
{
    return isa == ISA_PLAIN || !layout_simd_fits(&m->h);
}

/* Of the layout. */
static enum isa layout_isa(const struct model *m, enum isa isa)
{
    return use_plain(m, isa) ? ISA_PLAIN : isa;
}

static uint64_t cpu_packed_bytes(const struct model *m, enum isa isa)
{
    struct layout *l = mem_alloc(sizeof *l);
    layout_make(l, m, layout_isa(m, isa));
    uint64_t bytes = l->bytes;
    free(l);
    return bytes;
}

static void cpu_pack(const struct model *m, enum isa isa, void *out, uint32_t part, uint32_t parts)
{
    struct layout *l = mem_alloc(sizeof *l);
    layout_make(l, m, layout_isa(m, isa));
    layout_pack(l, m, out, part, parts);
    free(l);
}

struct pack_call {
    struct cpu *u;
    uint32_t parts;
};

static void pack_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    const struct pack_call *c = ctx;
    layout_pack(c->u->layout, c->u->model, c->u->own_packed, item, c->parts);
}

/* The weights' pages of the file are not read again, except the embedding's. */
static void release_file(const struct cpu *u)
{
    for (uint32_t i = 0; i < u->model->h.layers; i++) {
        const struct layer_weights *w = &u->model->layers[i];
        const struct gguf_tensor *all[] = { w->q, w->k, w->v, w->o, w->gate, w->up, w->down };
        for (int j = 0; j < 7; j++) pages_release_file(all[j]->data, all[j]->bytes);
    }
    pages_release_file(u->model->output->data, u->model->output->bytes);
}

static enum err open_weights(struct cpu *u, struct why *why)
{
    bool plain = use_plain(u->model, u->c.isa) || u->c.float_activations;
    bool shared_fits = u->c.packed && plain == use_plain(u->model, u->c.isa);
    u->k = kernels_of(plain ? ISA_PLAIN : u->c.isa);
    u->layout = mem_alloc(sizeof *u->layout);
    layout_make(u->layout, u->model, plain ? ISA_PLAIN : u->c.isa);
    if (!shared_fits) {
        u->own_packed = pages_take(u->layout->bytes);
        struct pack_call c = { u, pool_threads(u->pool) };
        pool_run(u->pool, pack_item, &c, c.parts);
        release_file(u);
    }
    return layout_use(u->layout, u->model, shared_fits ? u->c.packed : u->own_packed, why);
}

static float *floats_of(const struct gguf_tensor *t)
{
    if (!t) return NULL;
    uint64_t count = 1;
    for (uint32_t i = 0; i < t->dim_count; i++) count *= t->dims[i];
    float *out = mem_array(count, sizeof *out);
    tensor_dequantize(t->type, t->data, out, count);
    return out;
}

static void open_floats(struct cpu *u)
{
    u->floats = mem_array(u->model->h.layers, sizeof *u->floats);
    for (uint32_t i = 0; i < u->model->h.layers; i++) {
        const struct layer_weights *w = &u->model->layers[i];
        u->floats[i] = (struct layer_floats){
            .attn_norm = floats_of(w->attn_norm), .ffn_norm = floats_of(w->ffn_norm),
            .q_bias = floats_of(w->q_bias), .k_bias = floats_of(w->k_bias),
            .v_bias = floats_of(w->v_bias), .o_bias = floats_of(w->o_bias),
            .q_norm = floats_of(w->q_norm), .k_norm = floats_of(w->k_norm),
        };
    }
    u->output_norm = floats_of(u->model->output_norm);
}

static void close_floats(struct cpu *u)
{
    for (uint32_t i = 0; u->floats && i < u->model->h.layers; i++) {
        struct layer_floats *w = &u->floats[i];
        float *all[] = { w->attn_norm, w->ffn_norm, w->q_bias, w->k_bias, w->v_bias, w->o_bias,
                         w->q_norm, w->k_norm };
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) free(all[j]);
    }
    free(u->floats);
    free(u->output_norm);
}

/* What forms of input the matrices fed by it want. */
struct wanted {
    bool f, q, pairs, wide;
};

static void wants(const struct matrix *m, struct wanted *w)
{
    *(matrix_is_float(m) ? &w->f : &w->q) = true;
    if (matrix_has_pairs(m)) w->pairs = true;
}

static uint64_t group_count(uint32_t rows)
{
    return (rows + ROW_GROUP - 1) / ROW_GROUP;
}

static uint64_t pair_bytes(const struct acts *a, uint32_t rows)
{
    return group_count(rows) * (a->k / 64) * sizeof *a->pairs;
}

static uint64_t unit_bytes(uint32_t rows)
{
    return group_count(rows) * sizeof(struct act_units);
}

static void acts_open(struct acts *a, uint32_t rows, uint32_t k, const struct wanted *w)
{
    a->k = k;
    if (w->f) a->f = pages_take((uint64_t)rows * k * sizeof *a->f);
    if (w->q) a->q = pages_take(group_count(rows) * (k / 32) * sizeof *a->q);
    if (w->wide) a->wide = pages_take(group_count(rows) * (k / 32) * sizeof *a->wide);
    if (!w->pairs) return;
    a->pairs = pages_take(pair_bytes(a, rows));
    a->units = pages_take(unit_bytes(rows));
}

static void acts_close(struct acts *a, uint32_t rows)
{
    if (a->f) pages_give(a->f, (uint64_t)rows * a->k * sizeof *a->f);
    if (a->q) pages_give(a->q, group_count(rows) * (a->k / 32) * sizeof *a->q);
    if (a->wide) pages_give(a->wide, group_count(rows) * (a->k / 32) * sizeof *a->wide);
    if (a->pairs) pages_give(a->pairs, pair_bytes(a, rows));
    if (a->units) pages_give(a->units, unit_bytes(rows));
}

static void open_acts(struct cpu *u)
{
    const struct hparams *h = &u->model->h;
    struct wanted w[3] = { 0 }, head = { 0 };
    for (uint32_t i = 0; i < h->layers; i++) {
        const struct layer_matrices *y = &u->layout->layers[i];
        const struct matrix *all[] = { &y->q, &y->k, &y->v, &y->gate, &y->up, &y->o, &y->down };
        for (int j = 0; j < 7; j++) {
            wants(all[j], &w[j < 5 ? 0 : j - 4]);
        }
    }
    wants(&u->layout->head, &head);
    head = (struct wanted){ .f = head.f, .wide = head.q };
    acts_open(&u->normed, u->rows_max, h->dim, &w[0]);
    acts_open(&u->attended, u->rows_max, h->heads * h->head_dim, &w[1]);
    acts_open(&u->hidden, u->rows_max, h->ffn_dim, &w[2]);
    acts_open(&u->head_in, u->logit_rows_max, h->dim, &head);
}

/* Bytes of the buffers of a pass, in the order of cpu.h. */
static uint64_t x_bytes(const struct cpu *u)
{
    return (uint64_t)u->rows_max * u->model->h.dim * sizeof(float);
}

static uint64_t qkv_bytes(const struct cpu *u)
{
    const struct hparams *h = &u->model->h;
    return (uint64_t)u->rows_max * (h->heads + 2 * h->kv_heads) * h->head_dim * sizeof(float);
}

static uint64_t heads_bytes(const struct cpu *u)
{
    return (uint64_t)u->rows_max * u->model->h.heads * u->model->h.head_dim * sizeof(float);
}

static uint64_t final_bytes(const struct cpu *u)
{
    return (uint64_t)u->c.step_tokens_max * u->model->h.dim * sizeof(float);
}

static uint64_t logits_bytes(const struct cpu *u)
{
    return (uint64_t)u->logit_rows_max * u->logit_stride * sizeof(float);
}

static void open_buffers(struct cpu *u)
{
    const struct hparams *h = &u->model->h;
    u->rows_max = u->c.step_tokens_max < ROWS_MAX ? u->c.step_tokens_max : ROWS_MAX;
    uint64_t rows = LOGIT_BYTES / ((uint64_t)h->vocab * sizeof(float)) / ROW_GROUP * ROW_GROUP;
    u->logit_stride = (((uint64_t)h->vocab + PANEL - 1) / PANEL | 1) * PANEL;
    u->logit_rows_max = rows < ROW_GROUP ? ROW_GROUP : rows > 256 ? 256 : (uint32_t)rows;
    u->row = mem_array(u->rows_max, sizeof *u->row);
    u->cosines = mem_array((uint64_t)u->rows_max * (h->rope_dims + 1), sizeof(float));
    u->sines = mem_array((uint64_t)u->rows_max * (h->rope_dims + 1), sizeof(float));
    u->items = mem_array((uint64_t)u->rows_max * h->kv_heads, sizeof *u->items);
    u->x = pages_take(x_bytes(u));
    u->qkv = pages_take(qkv_bytes(u));
    u->heads_out = pages_take(heads_bytes(u));
    u->final = pages_take(final_bytes(u));
    u->logits = pages_take(logits_bytes(u));
    open_acts(u);
}

/* Room for the tiles of two rows and of an item at the longest. */
static void open_splits(struct cpu *u)
{
    const struct hparams *h = &u->model->h;
    u->split_max = (2 * h->heads + QUERIES_MAX) * (u->c.seq_tokens_max / KV_TILE_TOKENS + 1);
    u->splits = mem_array(u->split_max, sizeof *u->splits);
    u->parts = mem_array(u->split_max, sizeof *u->parts);
    u->part_outs = mem_array((uint64_t)u->split_max * h->head_dim, sizeof(float));
    for (uint32_t i = 0; i < u->split_max; i++) {
        u->parts[i].out = u->part_outs + (uint64_t)i * h->head_dim;
    }
}

static void open_threads(struct cpu *u)
{
    const struct hparams *h = &u->model->h;
    uint64_t rows = (uint64_t)ROW_GROUP * h->dim, tile = rows > ITEM_FLOATS ? rows : ITEM_FLOATS;
    u->scratch = mem_array(u->c.threads, sizeof *u->scratch);
    u->tiles = mem_array(u->c.threads, sizeof *u->tiles);
    u->samplers = mem_array(u->c.threads, sizeof *u->samplers);
    for (uint32_t i = 0; i < u->c.threads; i++) {
        u->scratch[i].outs = mem_array((uint64_t)QUERIES_MAX * h->head_dim, sizeof(float));
        u->scratch[i].tile_outs = mem_array((uint64_t)QUERIES_MAX * h->head_dim, sizeof(float));
        u->scratch[i].room = pages_take(tile_room(h->head_dim) * sizeof(float));
        u->tiles[i] = mem_array(tile, sizeof(float));
        u->samplers[i] = sampler_open(h->vocab);
    }
}

static void close_threads(struct cpu *u)
{
    for (uint32_t i = 0; u->scratch && i < u->c.threads; i++) {
        free(u->scratch[i].outs);
        free(u->scratch[i].tile_outs);
        pages_give(u->scratch[i].room, tile_room(u->model->h.head_dim) * sizeof(float));
        free(u->tiles[i]);
        sampler_close(u->samplers[i]);
    }
    free(u->scratch);
    free(u->tiles);
    free(u->samplers);
}

static void cpu_close(void *self)
{
    struct cpu *u = self;
    if (!u) return;
    pool_close(u->pool);
    close_threads(u);
    close_floats(u);
    acts_close(&u->normed, u->rows_max);
    acts_close(&u->attended, u->rows_max);
    acts_close(&u->hidden, u->rows_max);
    acts_close(&u->head_in, u->logit_rows_max);
    pages_give(u->x, x_bytes(u));
    pages_give(u->qkv, qkv_bytes(u));
    pages_give(u->heads_out, heads_bytes(u));
    pages_give(u->final, final_bytes(u));
    pages_give(u->logits, logits_bytes(u));
    free(u->row);
    free(u->cosines);
    free(u->sines);
    free(u->items);
    free(u->splits);
    free(u->parts);
    free(u->part_outs);
    kv_close(u);
    if (u->own_packed) pages_give(u->own_packed, u->layout->bytes);
    free(u->layout);
    free(u);
}

static void cpu_set_priority(void *self, int low_priority)
{
    struct cpu *u = self;
    pool_close(u->pool);
    u->c.low_priority = low_priority;
    u->pool = pool_open(u->c.threads, low_priority);
    u->priority_set = false;
}

static enum err cpu_open(void **self, const struct backend_config *c, struct kv_shape *shape_out,
                         struct why *why)
{
    const struct hparams *h = &c->model->h;
    CHECK(c->step_tokens_max >= 1 && c->step_tokens_max <= STEP_TOKENS_MAX);
    CHECK(c->isa <= isa_best());
    if (h->head_dim > HEAD_DIM_MAX) {
        return why_set(why, ERR_UNSUPPORTED, "head size %u: the CPU backend has at most %d",
                       h->head_dim, HEAD_DIM_MAX);
    }
    struct cpu *u = mem_alloc(sizeof *u);
    u->c = *c;
    u->model = c->model;
    u->pool = pool_open(c->threads, c->low_priority);
    enum err e = kv_open(u, why);
    if (!e) e = open_weights(u, why);
    if (e) {
        cpu_close(u);
        return e;
    }
    open_floats(u);
    open_buffers(u);
    open_splits(u);
    open_threads(u);
    *shape_out = u->shape;
    *self = u;
    return OK;
}

const struct backend backend_cpu = {
    .name = "cpu", .open = cpu_open, .close = cpu_close, .set_priority = cpu_set_priority,
    .step = cpu_step, .sample = cpu_sample,
    .kv_read = cpu_kv_read, .kv_write = cpu_kv_write, .kv_touch = cpu_kv_touch,
    .packed_bytes = cpu_packed_bytes, .pack = cpu_pack,
};
