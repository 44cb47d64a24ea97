/* engine/cpu/step.c - one pass over the layers: the phases, and how each is cut into work items.
 *
 * A layer is eight phases: norm; q, k, v; rope and KV; attention; output product; norm; gate, up
 * and SwiGLU; down product.  Items of a product are (64 rows, the last some more) x (some panels),
 * so a small step reads each weight once, and a large one keeps its rows in cache.  In a large one
 * norms are no phases: whoever does the last piece of a row tile norms it.
 */
#include <math.h>
#include <string.h>

#include "engine/cpu/cpu.h"
#include "model/quant.h"

enum { TILE_MOST = 80 };              /* a few rows more than a tile's go with the last one */
enum { FEW_ROWS = 32, CHUNK_BYTES = 24 << 10, CHUNK_PANELS_MAX = 8 };
enum { FFN_COLUMNS = 32 };            /* twice that for few rows: less room in a tile */
_Static_assert(2 * TILE_MOST * FFN_COLUMNS <= ITEM_FLOATS, "room for gate and up");

/* Up to three products of the same input in one phase. */
struct product {
    const struct matrix *m[3];
    float *out[3];                     /* of row 0, column 0 */
    const float *bias[3];
    uint64_t stride;
    bool add;
    const float *then_norm;            /* the weights of a norm of `out`, which is x; or NULL */
    uint32_t count, chunk, items[3];   /* panels per item; items per row tile */
};

struct phase {
    struct cpu *u;
    uint32_t layer, rows_each;
    const float *weight;
    struct product p;
};

struct finish_call {
    struct cpu *u;
    const struct acts *a;
};

static uint32_t row_items(struct phase *f)
{
    uint32_t each = f->u->rows / (pool_threads(f->u->pool) * 4);
    f->rows_each = each < 1 ? 1 : each > ROW_GROUP ? ROW_GROUP : each;
    return (f->u->rows + f->rows_each - 1) / f->rows_each;
}

static uint32_t row_end(const struct phase *f, uint32_t item)
{
    uint32_t end = (item + 1) * f->rows_each;
    return end < f->u->rows ? end : f->u->rows;
}

static uint32_t row_tiles(const struct cpu *u)
{
    uint32_t left = u->rows % TILE_ROWS, whole = u->rows / TILE_ROWS;
    return left > (whole > 0 ? TILE_MOST - TILE_ROWS : 0) ? whole + 1 : whole;
}

static uint32_t tile_rows(const struct cpu *u, uint32_t tile)
{
    uint32_t left = u->rows - tile * TILE_ROWS;
    return left <= TILE_MOST ? left : TILE_ROWS;
}

/* --- rows in --------------------------------------------------------------------------------- */

/* What kernels' rotate() takes: for each value the cosine, and the sine with its sign. */
static void angles(struct cpu *u, uint32_t r)
{
    const struct hparams *h = &u->model->h;
    uint32_t half = h->rope_dims / 2;
    float *cosines = u->cosines + (uint64_t)r * h->rope_dims;
    float *sines = u->sines + (uint64_t)r * h->rope_dims;
    bool pairs = h->rope == ROPE_PAIRS;
    for (uint32_t i = 0; i < half; i++) {
        double angle = (double)u->row[r].position * (double)h->rope_freq[i];
        uint32_t p = pairs ? 2 * i : i, q = pairs ? p + 1 : i + half;
        cosines[p] = cosines[q] = (float)cos(angle);
        sines[q] = (float)sin(angle);
        sines[p] = -sines[q];
    }
}

static void embed_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    struct phase *f = ctx;
    struct cpu *u = f->u;
    const struct gguf_tensor *t = u->model->embedding;
    uint32_t dim = u->model->h.dim;
    uint64_t row_bytes = (uint64_t)dim / tensor_block_values(t->type) * tensor_block_bytes(t->type);
    for (uint32_t r = item * f->rows_each; r < row_end(f, item); r++) {
        CHECK(u->ids[r] >= 0 && (uint32_t)u->ids[r] < u->model->h.vocab);
        const uint8_t *from = (const uint8_t *)t->data + (uint64_t)u->ids[r] * row_bytes;
        tensor_dequantize(t->type, from, u->x + (uint64_t)r * dim, dim);
        angles(u, r);
    }
}

/* Up to ROW_GROUP rows of x. */
static void norm_rows(struct cpu *u, const float *weight, uint32_t first, uint32_t rows,
                      uint32_t worker)
{
    uint32_t dim = u->model->h.dim;
    float *normed = u->tiles[worker];
    acts_fetch(&u->normed, first, rows, 0, dim);
    for (uint32_t r = 0; r < rows; r++) {
        u->k->norm(u->x + (uint64_t)(first + r) * dim, weight, u->model->h.norm_eps, dim,
                   normed + (uint64_t)r * dim);
    }
    acts_store(u, normed, dim, rows, dim, &u->normed, first, 0);
    acts_finish(u->k, &u->normed, first, rows);
}

static void norm_item(void *ctx, uint32_t item, uint32_t worker)
{
    struct phase *f = ctx;
    uint32_t first = item * f->rows_each;
    norm_rows(f->u, f->weight, first, row_end(f, item) - first, worker);
}

static void norm_phase(struct cpu *u, const float *weight)
{
    struct phase f = { .u = u, .weight = weight };
    pool_run(u->pool, norm_item, &f, row_items(&f));
}

static void finish_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    const struct finish_call *c = ctx;
    uint32_t row = item * ROW_GROUP, left = c->u->rows - row;
    acts_finish(c->u->k, c->a, row, left < ROW_GROUP ? left : ROW_GROUP);
}

/* For rows that came in pieces. */
static void finish_phase(struct cpu *u, const struct acts *a)
{
    struct finish_call c = { u, a };
    if (a->pairs) pool_run(u->pool, finish_item, &c, (u->rows + ROW_GROUP - 1) / ROW_GROUP);
}

/* --- a tile's end ---------------------------------------------------------------------------- */

/* With many row tiles whoever does a tile's last piece goes on with it, while it is in that core's
 * caches.  With few the threads share what follows in a phase of its own. */
static bool ends_tiles(const struct cpu *u)
{
    return row_tiles(u) >= 2 * pool_threads(u->pool);
}

/* Of `count` pieces that a row tile has in this phase. */
static bool last_piece(struct cpu *u, uint32_t tile, uint32_t count)
{
    if (!ends_tiles(u) || atomic_fetch_add(&u->pieces[tile], 1) + 1 < count) return false;
    atomic_store(&u->pieces[tile], 0);
    return true;
}

static void norm_tile(struct cpu *u, const float *weight, uint32_t tile, uint32_t worker)
{
    uint32_t first = tile * TILE_ROWS, end = first + tile_rows(u, tile);
    for (uint32_t n; first < end; first += n) {
        n = end - first < ROW_GROUP ? end - first : ROW_GROUP;
        norm_rows(u, weight, first, n, worker);
    }
}

/* --- products -------------------------------------------------------------------------------- */

static void product_add(struct product *p, const struct matrix *m, float *out, const float *bias)
{
    p->m[p->count] = m;
    p->out[p->count] = out;
    p->bias[p->count++] = bias;
}

/* Few rows wait for weights from memory, which come faster in long runs. */
static bool few_rows(const struct cpu *u)
{
    return u->rows <= FEW_ROWS;
}

static uint32_t product_items(const struct cpu *u, struct product *p)
{
    uint64_t chunk = CHUNK_BYTES / p->m[0]->panel_bytes, items = 0, panels = 0;
    for (uint32_t i = 0; i < p->count; i++) panels += matrix_panels(p->m[i]);
    if (few_rows(u)) chunk = panels / (4 * pool_threads(u->pool));
    p->chunk = chunk < 1 ? 1 : chunk > CHUNK_PANELS_MAX ? CHUNK_PANELS_MAX : (uint32_t)chunk;
    for (uint32_t i = 0; i < p->count; i++) {
        p->items[i] = (matrix_panels(p->m[i]) + p->chunk - 1) / p->chunk;
        items += p->items[i];
    }
    return (uint32_t)items;
}

struct product_call {
    struct cpu *u;
    const struct acts *in;
    struct product *p;
    uint32_t items;                    /* per row tile */
};

static void product_item(void *ctx, uint32_t item, uint32_t worker)
{
    const struct product_call *c = ctx;
    const struct product *p = c->p;
    uint32_t tile = item / c->items, which = 0, chunk = item % c->items;
    while (chunk >= p->items[which]) chunk -= p->items[which++];
    const struct matrix *m = p->m[which];
    uint32_t panel = chunk * p->chunk, panels = matrix_panels(m) - panel;
    if (panels > p->chunk) panels = p->chunk;
    uint32_t row0 = tile * TILE_ROWS, rows = tile_rows(c->u, tile);
    uint32_t column = panel * PANEL, columns = panels * PANEL;
    if (columns > m->out - column) columns = m->out - column;
    float *out = p->out[which] + row0 * p->stride + column;
    c->u->k->gemm(m, c->in, row0, rows, panel, panels, out, p->stride, p->add);
    for (uint32_t r = 0; p->bias[which] && r < rows; r++) {
        for (uint32_t i = 0; i < columns; i++) out[r * p->stride + i] += p->bias[which][column + i];
    }
    if (p->then_norm && last_piece(c->u, tile, c->items)) {
        norm_tile(c->u, p->then_norm, tile, worker);
    }
}

static void product_run(struct cpu *u, const struct acts *in, struct product *p)
{
    struct product_call c = { .u = u, .in = in, .p = p, .items = product_items(u, p) };
    pool_run(u->pool, product_item, &c, c.items * row_tiles(u));
}

static void qkv_phase(struct cpu *u, uint32_t layer)
{
    const struct hparams *h = &u->model->h;
    const struct layer_matrices *y = &u->layout->layers[layer];
    const struct layer_floats *w = &u->floats[layer];
    uint32_t q = h->heads * h->head_dim, k = h->kv_heads * h->head_dim;
    struct product p = { .stride = q + 2 * k };
    product_add(&p, &y->q, u->qkv, w->q_bias);
    product_add(&p, &y->k, u->qkv + q, w->k_bias);
    product_add(&p, &y->v, u->qkv + q + k, w->v_bias);
    product_run(u, &u->normed, &p);
}

/* Adds to x, and norms it for what follows (NULL: nothing in this pass). */
static void residual_phase(struct cpu *u, const struct acts *in, const struct matrix *m,
                           const float *bias, const float *next_norm)
{
    struct product p = { .stride = u->model->h.dim, .add = true, .then_norm = next_norm };
    product_add(&p, m, u->x, bias);
    product_run(u, in, &p);
    if (next_norm && !ends_tiles(u)) norm_phase(u, next_norm);
}

static uint32_t ffn_columns(const struct cpu *u)
{
    uint32_t wide = 2 * FFN_COLUMNS;
    bool enough = u->model->h.ffn_dim / wide >= 4 * pool_threads(u->pool);
    return few_rows(u) && enough ? wide : FFN_COLUMNS;
}

/* Some hidden values of a tile's rows: gate, up, SwiGLU, into the form the down product reads. */
static void ffn_item(void *ctx, uint32_t item, uint32_t worker)
{
    struct phase *f = ctx;
    struct cpu *u = f->u;
    const struct layer_matrices *y = &u->layout->layers[f->layer];
    uint32_t width = ffn_columns(u), chunks = (y->gate.out + width - 1) / width;
    uint32_t tile = item / chunks, chunk = item % chunks;
    uint32_t row0 = tile * TILE_ROWS, rows = tile_rows(u, tile);
    uint32_t panel = chunk * (width / PANEL), panels = matrix_panels(&y->gate) - panel;
    if (panels > width / PANEL) panels = width / PANEL;
    uint32_t column = panel * PANEL, columns = y->gate.out - column;
    if (columns > width) columns = width;
    float *gate = u->tiles[worker], *up = gate + TILE_MOST * FFN_COLUMNS;
    acts_fetch(&u->hidden, row0, rows, column, columns);
    u->k->gemm(&y->gate, &u->normed, row0, rows, panel, panels, gate, width, false);
    u->k->gemm(&y->up, &u->normed, row0, rows, panel, panels, up, width, false);
    u->k->swiglu(gate, up, rows * width, gate);       /* what lies behind the columns, too */
    acts_store(u, gate, width, rows, columns, &u->hidden, row0, column);
    if (last_piece(u, tile, chunks)) acts_finish(u->k, &u->hidden, row0, rows);
}

static void ffn_phase(struct cpu *u, uint32_t layer)
{
    struct phase f = { .u = u, .layer = layer };
    uint32_t width = ffn_columns(u), chunks = (u->model->h.ffn_dim + width - 1) / width;
    pool_run(u->pool, ffn_item, &f, chunks * row_tiles(u));
    if (!ends_tiles(u)) finish_phase(u, &u->hidden);
}

/* --- rope, KV, attention --------------------------------------------------------------------- */

/* Norms (Qwen3) and rotates the query and key heads of a row; queries take the softmax's scale.
 * For 8-bit keys both are mixed: a few large values would make the others' steps coarse. */
static void rope_row(struct cpu *u, const struct layer_floats *w, uint32_t r, float *qkv)
{
    const struct hparams *h = &u->model->h;
    const float *cosines = u->cosines + (uint64_t)r * h->rope_dims;
    const float *sines = u->sines + (uint64_t)r * h->rope_dims;
    uint32_t heads = h->heads + h->kv_heads, size = h->head_dim;
    bool pairs = h->rope == ROPE_PAIRS, mixed = kv_is_scaled(u->c.kv_type);
    for (uint32_t head = 0; head < heads; head++) {
        float *x = qkv + head * size;
        const float *weight = head < h->heads ? w->q_norm : w->k_norm;
        if (weight) u->k->norm(x, weight, h->norm_eps, size, x);
    }
    float *keys = qkv + h->heads * size;
    u->k->rotate(qkv, h->heads, cosines, sines, h->rope_dims, size, pairs, h->attention_scale);
    u->k->rotate(keys, h->kv_heads, cosines, sines, h->rope_dims, size, pairs, 1);
    for (uint32_t head = 0; mixed && head < heads; head++) u->k->mix(qkv + head * size, size);
}

static void rope_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    struct phase *f = ctx;
    struct cpu *u = f->u;
    const struct hparams *h = &u->model->h;
    uint32_t q = h->heads * h->head_dim, k = h->kv_heads * h->head_dim;
    for (uint32_t r = item * f->rows_each; r < row_end(f, item); r++) {
        float *qkv = u->qkv + (uint64_t)r * (q + 2 * k);
        rope_row(u, &u->floats[f->layer], r, qkv);
        kv_store(u, f->layer, &u->row[r], qkv);
    }
}

static void rope_phase(struct cpu *u, uint32_t layer)
{
    struct phase f = { .u = u, .layer = layer };
    pool_run(u->pool, rope_item, &f, row_items(&f));
}

static void attended_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    struct phase *f = ctx;
    struct cpu *u = f->u;
    uint32_t width = u->attended.k, first = item * f->rows_each;
    acts_store(u, u->heads_out + (uint64_t)first * width, width, row_end(f, item) - first, width,
               &u->attended, first, 0);
}

static void attend_phase(struct cpu *u, uint32_t layer)
{
    struct phase f = { .u = u };
    attend(u, layer);
    if (!attend_stores(u)) pool_run(u->pool, attended_item, &f, row_items(&f));
    finish_phase(u, &u->attended);
}

/* --- a step ---------------------------------------------------------------------------------- */

static void run_layers(struct cpu *u, const struct step *s, bool last)
{
    struct phase f = { .u = u };
    uint32_t layers = u->model->h.layers;
    pool_run(u->pool, embed_item, &f, row_items(&f));
    norm_phase(u, u->floats[0].attn_norm);
    for (uint32_t i = 0; i < layers; i++) {
        const struct layer_matrices *y = &u->layout->layers[i];
        qkv_phase(u, i);
        rope_phase(u, i);
        if (last && s->layers_done) {
            atomic_store(s->layers_done, i + 1);
            if (s->notify) s->notify(s->notify_ctx);
        }
        attend_phase(u, i);
        residual_phase(u, &u->attended, &y->o, u->floats[i].o_bias, u->floats[i].ffn_norm);
        ffn_phase(u, i);
        residual_phase(u, &u->hidden, &y->down, NULL,
                       i + 1 < layers ? u->floats[i + 1].attn_norm : NULL);
    }
}

/* Keeps the normed rows whose logits are wanted. */
static void keep_final(struct cpu *u, const struct step *s, uint32_t first)
{
    uint32_t dim = u->model->h.dim;
    while (u->final_count < s->logit_count) {
        uint32_t r = s->logit_rows[u->final_count];
        CHECK(r >= first && r < s->token_count);
        if (r >= first + u->rows) break;
        u->k->norm(u->x + (uint64_t)(r - first) * dim, u->output_norm, u->model->h.norm_eps, dim,
                   u->final + (uint64_t)u->final_count++ * dim);
    }
}

/* The part of a sequence that lies in rows first .. first+rows-1; false: none. */
static bool cut(const struct step_seq *s, uint32_t first, uint32_t rows, struct step_seq *out)
{
    uint32_t from = s->row > first ? s->row : first;
    uint32_t end = s->row + s->count < first + rows ? s->row + s->count : first + rows;
    if (from >= end) return false;
    *out = (struct step_seq){ .first = s->first + (from - s->row), .count = end - from,
                              .row = from - first, .blocks = s->blocks };
    return true;
}

static void pass(struct cpu *u, const struct step *s, uint32_t first)
{
    struct step_seq part[ROWS_MAX];
    uint32_t parts = 0, covered = 0;
    u->rows = s->token_count - first < u->rows_max ? s->token_count - first : u->rows_max;
    u->ids = s->ids + first;
    for (uint32_t i = 0; i < s->seq_count; i++) {
        struct step_seq c;
        if (!cut(&s->seqs[i], first, u->rows, &c)) continue;
        CHECK(parts < ROWS_MAX && c.first + c.count <= u->c.seq_tokens_max);
        for (uint32_t t = 0; t < c.count; t++) {
            u->row[c.row + t] = (struct row){ .position = c.first + t, .blocks = c.blocks };
        }
        part[parts++] = c;
        covered += c.count;
    }
    CHECK(covered == u->rows);
    attend_plan(u, part, parts);
    run_layers(u, s, first + u->rows == s->token_count);
    keep_final(u, s, first);
}

enum err cpu_step(void *self, const struct step *s)
{
    struct cpu *u = self;
    CHECK(s->token_count <= u->c.step_tokens_max && s->logit_count <= s->token_count);
    if (!u->priority_set) pool_lower_priority(u->c.low_priority);
    u->priority_set = true;
    u->final_count = 0;
    for (uint32_t first = 0; first < s->token_count; first += u->rows) pass(u, s, first);
    return OK;
}
