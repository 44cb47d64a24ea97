/* cuda/plan.c - describes a step for the GPU in one pinned buffer, uploaded in one piece.
 *
 * Order: rows, logit rows, attention items (tiles of prompts, then splits of decoding sequences),
 * block tables.  Counts of a decoding step are rounded up, so that few graphs serve all batches:
 * rows to a power of two or a multiple of 32, items likewise; padding rows store no KV, padding
 * items do nothing.
 */
#include <string.h>

#include "cuda/cuda.h"

enum { ALIGNMENT = 64 };

static uint32_t group_of(const struct cuda *u)
{
    return u->model->h.heads / u->model->h.kv_heads;
}

/* Tokens of a prompt that are one item. */
static uint32_t tile_tokens(const struct cuda *u)
{
    return u->tensor_attention ? ATTEND_ROWS / group_of(u) : 1;
}

static uint64_t align_up(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint32_t rounded(uint32_t n)
{
    uint32_t power = 1;
    while (power < n && power < 32) power *= 2;
    return n <= 32 ? power : pad_to(n, 32);
}

uint64_t plan_bytes_max(const struct cuda *u)
{
    const struct backend_config *c = &u->c;
    uint64_t rows = rounded(c->step_tokens_max), seqs = rounded(c->step_seqs_max);
    uint64_t blocks = (c->seq_tokens_max + c->block_tokens - 1) / c->block_tokens;
    uint64_t tables = c->step_tokens_max < c->step_seqs_max ? c->step_tokens_max
                                                            : c->step_seqs_max;
    return align_up(rows * sizeof(struct row)) + align_up(rows * sizeof(int32_t)) +
           align_up((rows + rounded(PARTS_MAX + (uint32_t)seqs)) * sizeof(struct attend_item)) +
           align_up(tables * blocks * sizeof(int32_t));
}

/* --- counting -------------------------------------------------------------------------------- */

static uint32_t splits_of(const struct step_seq *s)
{
    return (s->first + s->count + ATTEND_SPLIT - 1) / ATTEND_SPLIT;
}

/* Does this sequence go to the decoding kernel?  If there is room for its parts. */
static bool decodes(const struct cuda *u, const struct step_seq *s, uint32_t parts)
{
    uint32_t splits = splits_of(s);
    return u->tensor_attention && s->count == 1 && (splits == 1 || parts + splits <= PARTS_MAX);
}

static bool count_all(struct cuda *u, const struct step *s)
{
    struct plan *p = &u->plan;
    bool only_decodes = true;
    p->tiles = p->splits = p->parts = 0;
    for (uint32_t i = 0; i < s->seq_count; i++) {
        const struct step_seq *q = &s->seqs[i];
        uint32_t splits = splits_of(q);
        if (decodes(u, q, p->parts)) {
            p->splits += splits;
            if (splits > 1) p->parts += splits;
        } else {
            only_decodes = false;
            p->tiles += (q->count + tile_tokens(u) - 1) / tile_tokens(u);
        }
    }
    return only_decodes && s->logit_count == s->token_count && s->seq_count == s->token_count;
}

static uint64_t place(uint64_t *at, uint64_t bytes)
{
    uint64_t here = *at;
    *at = align_up(here + bytes);
    return here;
}

static void lay_out(struct plan *p)
{
    uint64_t at = 0;
    p->rows_at = place(&at, p->rows * sizeof(struct row));
    p->pick_at = place(&at, p->logits * sizeof(int32_t));
    p->items_at = place(&at, (p->tiles + p->splits) * sizeof(struct attend_item));
    p->tables_at = p->bytes = at;
}

/* --- filling --------------------------------------------------------------------------------- */

struct fill {
    struct cuda *u;
    struct row *rows;
    struct attend_item *tile, *split;
    int32_t *tables;
    uint32_t parts, table;
};

static void fill_rows(struct fill *f, const struct step *s, const struct step_seq *q)
{
    uint32_t tokens = f->u->c.block_tokens;
    for (uint32_t t = 0; t < q->count; t++) {
        uint32_t position = q->first + t, block = q->blocks[position / tokens];
        int32_t id = s->ids[q->row + t];
        CHECK(block < f->u->shape.block_count && id >= 0 && (uint32_t)id < f->u->model->h.vocab);
        f->rows[q->row + t] = (struct row){
            .id = id, .position = (int32_t)position,
            .slot = (int32_t)(block * tokens + position % tokens),
        };
    }
}

static void fill_decode(struct fill *f, const struct step_seq *q)
{
    uint32_t splits = splits_of(q);
    for (uint32_t i = 0; i < splits; i++) {
        *f->split++ = (struct attend_item){
            .row = (int32_t)q->row, .count = 1, .first = (int32_t)q->first,
            .table = (int32_t)f->table, .split = (int32_t)i, .splits = (int32_t)splits,
            .part = (int32_t)f->parts,
        };
    }
    if (splits > 1) f->parts += splits;
}

/* The last tile first: it sees the most, and long work should not come last. */
static void fill_prefill(struct fill *f, const struct step_seq *q)
{
    uint32_t each = tile_tokens(f->u), tiles = (q->count + each - 1) / each;
    for (uint32_t tile = tiles; tile-- > 0;) {
        uint32_t from = tile * each, left = q->count - from;
        *f->tile++ = (struct attend_item){
            .row = (int32_t)(q->row + from), .count = (int32_t)(left < each ? left : each),
            .first = (int32_t)(q->first + from), .table = (int32_t)f->table,
        };
    }
}

static void fill_seq(struct fill *f, const struct step *s, const struct step_seq *q)
{
    uint32_t tokens = f->u->c.block_tokens, blocks = (q->first + q->count + tokens - 1) / tokens;
    CHECK(q->count >= 1 && q->first + q->count <= f->u->c.seq_tokens_max);
    CHECK(q->row + q->count <= s->token_count);
    fill_rows(f, s, q);
    if (decodes(f->u, q, f->parts))
        fill_decode(f, q);
    else
        fill_prefill(f, q);
    for (uint32_t i = 0; i < blocks; i++) f->tables[f->table + i] = (int32_t)q->blocks[i];
    f->table += blocks;
}

bool plan_step(struct cuda *u, const struct step *s)
{
    struct plan *p = &u->plan;
    bool as_graph = count_all(u, s);
    p->rows = s->token_count;
    p->logits = s->logit_count;
    p->blas_rows = u->blas && !as_graph ? blas_rows(p->rows) : 0;
    if (as_graph) {
        p->rows = p->logits = rounded(s->token_count);
        p->splits = rounded(p->splits);
    }
    lay_out(p);
    CHECK(p->bytes <= p->room);
    memset(p->host, 0, p->bytes);
    struct fill f = {
        .u = u, .rows = (struct row *)(p->host + p->rows_at),
        .tile = (struct attend_item *)(p->host + p->items_at),
        .split = (struct attend_item *)(p->host + p->items_at) + p->tiles,
        .tables = (int32_t *)(p->host + p->tables_at),
    };
    for (uint32_t i = s->token_count; i < p->rows; i++) f.rows[i].slot = -1;
    for (uint32_t i = 0; i < s->seq_count; i++) fill_seq(&f, s, &s->seqs[i]);
    int32_t *pick = (int32_t *)(p->host + p->pick_at);
    for (uint32_t i = 0; i < p->logits; i++) {
        pick[i] = i < s->logit_count ? (int32_t)s->logit_rows[i] : (int32_t)i;
        CHECK((uint32_t)pick[i] < p->rows);
    }
    p->bytes = align_up(p->tables_at + f.table * sizeof(int32_t));
    CHECK(p->bytes <= p->room);
    return as_graph;
}
