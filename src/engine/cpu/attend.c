/* engine/cpu/attend.c - attention over paged KV: which thread does which queries and tiles.
 *
 * An item is some rows of one sequence for one kv head, with all its query heads.  It walks the
 * tiles upwards and merges each into the queries' running softmax.  When there are few items and
 * they are deep, each tile is work of its own, and the tiles are merged afterwards in the same
 * order: the same bits.
 */
#include <math.h>

#include "engine/cpu/cpu.h"

static uint32_t query_heads(const struct cpu *u)         /* per kv head */
{
    return u->model->h.heads / u->model->h.kv_heads;
}

static uint32_t tiles_of(const struct cpu *u, const struct attend_item *it)
{
    return u->row[it->row + it->rows - 1].position / KV_TILE_TOKENS + 1;
}

/* Chunks of prompts, which stand behind the decodes, and of them the last rows first: they see
 * the most positions, and long items should not come last. */
static void plan_items(struct cpu *u, const struct step_seq *seqs, uint32_t count, uint32_t rows)
{
    u->item_count = 0;
    for (uint32_t i = count; i-- > 0;) {
        for (uint32_t left = seqs[i].count; left > 0;) {
            uint32_t n = left < rows ? left : rows;
            left -= n;
            for (uint32_t head = 0; head < u->model->h.kv_heads; head++) {
                u->items[u->item_count++] =
                    (struct attend_item){ .row = seqs[i].row + left, .rows = n, .head = head };
            }
        }
    }
}

/* Are there too few items to share, of all or of prompts?  Also the tiles of both. */
static bool few_items(const struct cpu *u, uint32_t enough, uint64_t *tiles, uint64_t *of_prompts)
{
    uint32_t prompts = 0;
    *tiles = *of_prompts = 0;
    for (uint32_t i = 0; i < u->item_count; i++) {
        uint32_t n = tiles_of(u, &u->items[i]);
        bool prompt = u->items[i].rows > 1;
        prompts += prompt;
        *tiles += n;
        *of_prompts += prompt ? n : 0;
    }
    return u->item_count < enough || (prompts < enough && *of_prompts >= enough);
}

/* The tiles in the order in which they lie in memory: of a block, all kv heads. */
static void lay_splits(struct cpu *u)
{
    uint32_t heads = u->model->h.kv_heads;
    for (uint32_t i = 0; i < u->item_count; i += heads) {
        for (uint32_t tile = 0; tile < tiles_of(u, &u->items[i]); tile++) {
            for (uint32_t head = 0; head < heads; head++) {
                u->splits[u->split_count++] = (struct attend_split){ i + head, tile };
            }
        }
    }
}

/* Cuts the items into tiles if that gives the threads enough to share, and they have not without:
 * beside decodes, which are items of one row, too, it is the prompts' tiles that count. */
static bool plan_splits(struct cpu *u)
{
    uint32_t heads = query_heads(u), threads = pool_threads(u->pool);
    uint64_t entries = 0, tiles, of_prompts;
    u->split_count = 0;
    if (threads == 1 || heads > QUERIES_MAX) return false;
    if (!few_items(u, 4 * threads, &tiles, &of_prompts) || tiles == u->item_count) return false;
    for (uint32_t i = 0; i < u->item_count; i++) {
        u->items[i].entry = (uint32_t)entries;
        entries += (uint64_t)tiles_of(u, &u->items[i]) * u->items[i].rows * heads;
        if (entries > u->split_max) return false;
    }
    lay_splits(u);
    return true;
}

/* Rows of an item: as many as a tile call takes, unless threads would be without. */
static uint32_t rows_each(const struct cpu *u, uint32_t most)
{
    uint32_t fair = u->rows * u->model->h.kv_heads / (4 * pool_threads(u->pool));
    uint32_t rows = fair < most ? fair : most;
    uint32_t least = 12 / query_heads(u);       /* below this, converting a tile costs too much */
    if (rows < least) rows = least;
    return rows ? rows : 1;
}

/* Keys and values are read once for each item, so a few rows of a prompt that see many tiles are
 * one item, whose tiles the threads share; else the threads share the rows. */
void attend_plan(struct cpu *u, const struct step_seq *seqs, uint32_t count)
{
    uint32_t most = QUERIES_MAX / query_heads(u), rows = rows_each(u, most), longest = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (seqs[i].count > longest) longest = seqs[i].count;
    }
    bool few = longest <= most;
    plan_items(u, seqs, count, few ? most : rows);
    if (!plan_splits(u) && few) plan_items(u, seqs, count, rows);
}

bool attend_stores(const struct cpu *u)
{
    return query_heads(u) * u->model->h.head_dim % 32 == 0;
}

struct attend_call {
    struct cpu *u;
    uint32_t layer;
};

/* The queries of an item, rows ascending: what each is, how far it sees, where its result goes. */
struct queries {
    uint32_t count;
    const float *q[QUERIES_MAX];
    uint32_t seen[QUERIES_MAX];
    struct partial state[QUERIES_MAX];
    float *out[QUERIES_MAX];
};

/* An item's results go into u->attended from where they were summed, not by way of heads_out. */
static bool stored_at_once(const struct cpu *u)
{
    return attend_stores(u) && query_heads(u) <= QUERIES_MAX;
}

static void gather(const struct cpu *u, const struct attend_item *it, uint32_t first_head,
                   uint32_t heads, struct attend_scratch *s, struct queries *qs)
{
    const struct hparams *h = &u->model->h;
    uint32_t size = h->head_dim, stride = (h->heads + 2 * h->kv_heads) * size;
    qs->count = 0;
    for (uint32_t r = it->row; r < it->row + it->rows; r++) {
        for (uint32_t i = first_head; i < first_head + heads; i++) {
            uint32_t n = qs->count++;
            qs->q[n] = u->qkv + (uint64_t)r * stride + i * size;
            qs->seen[n] = u->row[r].position + 1;
            qs->state[n] = (struct partial){ .max = -INFINITY, .out = s->outs + n * size };
            qs->out[n] = stored_at_once(u) ? qs->state[n].out :
                         u->heads_out + ((uint64_t)r * h->heads + i) * size;
        }
    }
}

/* Queries from `first` on: how many positions of a tile each sees. */
static void look(const struct queries *qs, uint32_t tile, uint32_t first, uint32_t *visible)
{
    for (uint32_t i = first; i < qs->count; i++) {
        uint32_t past = qs->seen[i] - tile * KV_TILE_TOKENS;
        visible[i - first] = past < KV_TILE_TOKENS ? past : KV_TILE_TOKENS;
    }
}

/* One tile for the queries from `first` on: the earlier ones end before it. */
static void one_tile(const struct cpu *u, const struct kv_view *kv, struct queries *qs,
                     uint32_t tile, uint32_t first, const struct attend_scratch *s)
{
    uint32_t visible[QUERIES_MAX], count = qs->count - first;
    struct partial part[QUERIES_MAX];
    look(qs, tile, first, visible);
    for (uint32_t i = 0; i < count; i++) {
        part[i].out = tile == 0 ? qs->state[first + i].out : s->tile_outs + i * kv->head_dim;
    }
    u->k->tile(kv, tile, qs->q + first, visible, count, part, s->room);
    for (uint32_t i = 0; i < count; i++) {
        if (tile == 0) {
            qs->state[first + i] = part[i];
        } else {
            u->k->merge(&qs->state[first + i], &part[i], kv->head_dim);
        }
    }
}

/* What is read next, mostly by the same thread. */
static void see_next(struct kv_view *kv, const struct kv_view *next, uint32_t tile)
{
    kv->next_pool = next->pool;
    kv->next_blocks = next->blocks;
    kv->next_tile = tile;
    kv->next_end = next->end;
}

static void see_item(const struct cpu *u, uint32_t layer, const struct attend_item *it,
                     uint32_t tile, struct kv_view *kv)
{
    kv->next_end = 0;
    if (it == u->items + u->item_count) return;
    const struct row *last = &u->row[it->row + it->rows - 1];
    struct kv_view next = kv_view(u, layer, it->head, last->blocks, last->position + 1);
    see_next(kv, &next, tile);
}

static void walk(const struct cpu *u, const struct attend_item *it, uint32_t layer,
                 struct queries *qs, struct attend_scratch *s)
{
    uint32_t last = qs->seen[qs->count - 1];
    struct kv_view kv = kv_view(u, layer, it->head, u->row[it->row].blocks, last);
    for (uint32_t tile = 0, from = 0; tile * KV_TILE_TOKENS < last; tile++) {
        while (qs->seen[from] <= tile * KV_TILE_TOKENS) from++;
        if ((tile + 1) * KV_TILE_TOKENS < last) see_next(&kv, &kv, tile + 1);
        else see_item(u, layer, it + 1, 0, &kv);
        one_tile(u, &kv, qs, tile, from, s);
    }
}

static void finish(const struct cpu *u, struct queries *qs)
{
    for (uint32_t i = 0; i < qs->count; i++) {
        float inverse = 1 / qs->state[i].sum;
        u->k->scale(qs->state[i].out, inverse, u->model->h.head_dim, qs->out[i]);
    }
}

static void store(struct cpu *u, const struct attend_item *it, const struct attend_scratch *s)
{
    uint32_t width = query_heads(u) * u->model->h.head_dim, first = it->head * width;
    acts_fetch(&u->attended, it->row, it->rows, first, width);
    if (!attend_stores(u)) return;
    if (stored_at_once(u)) {
        acts_store(u, s->outs, width, it->rows, width, &u->attended, it->row, first);
    } else {
        acts_store(u, u->heads_out + (uint64_t)it->row * u->attended.k + first, u->attended.k,
                   it->rows, width, &u->attended, it->row, first);
    }
}

static void split_one(void *ctx, uint32_t index, uint32_t worker)
{
    const struct attend_call *c = ctx;
    struct cpu *u = c->u;
    const struct attend_split *s = &u->splits[index];
    const struct attend_item *it = &u->items[s->item];
    uint32_t heads = query_heads(u), from = 0, visible[QUERIES_MAX];
    struct queries qs;
    gather(u, it, it->head * heads, heads, &u->scratch[worker], &qs);
    struct partial *parts = u->parts + it->entry + s->tile * qs.count;
    struct kv_view kv = kv_view(u, c->layer, it->head, u->row[it->row].blocks,
                                qs.seen[qs.count - 1]);
    if (index + 1 < u->split_count) see_item(u, c->layer, &u->items[s[1].item], s[1].tile, &kv);
    while (qs.seen[from] <= s->tile * KV_TILE_TOKENS) from++;
    look(&qs, s->tile, from, visible);
    u->k->tile(&kv, s->tile, qs.q + from, visible, qs.count - from, parts + from,
               u->scratch[worker].room);
}

static void merge_one(void *ctx, uint32_t item, uint32_t worker)
{
    const struct attend_call *c = ctx;
    struct cpu *u = c->u;
    const struct attend_item *it = &u->items[item];
    uint32_t heads = query_heads(u);
    struct queries qs;
    gather(u, it, it->head * heads, heads, &u->scratch[worker], &qs);
    const struct partial *part = u->parts + it->entry;
    for (uint32_t tile = 0; tile < tiles_of(u, it); tile++) {
        for (uint32_t i = 0; i < qs.count; i++, part++) {
            if (tile == 0) {
                qs.state[i] = *part;
            } else if (qs.seen[i] > tile * KV_TILE_TOKENS) {
                u->k->merge(&qs.state[i], part, u->model->h.head_dim);
            }
        }
    }
    finish(u, &qs);
    store(u, it, &u->scratch[worker]);
}

static void attend_one(void *ctx, uint32_t item, uint32_t worker)
{
    const struct attend_call *c = ctx;
    struct cpu *u = c->u;
    const struct attend_item *it = &u->items[item];
    struct attend_scratch *s = &u->scratch[worker];
    uint32_t heads = query_heads(u);
    for (uint32_t done = 0; done < heads; done += QUERIES_MAX) {
        uint32_t n = heads - done < QUERIES_MAX ? heads - done : QUERIES_MAX;
        struct queries qs;
        gather(u, it, it->head * heads + done, n, s, &qs);
        walk(u, it, c->layer, &qs, s);
        finish(u, &qs);
    }
    store(u, it, s);
}

void attend(struct cpu *u, uint32_t layer)
{
    struct attend_call c = { u, layer };
    if (u->split_count) {
        pool_run(u->pool, split_one, &c, u->split_count);
        pool_run(u->pool, merge_one, &c, u->item_count);
    } else {
        pool_run(u->pool, attend_one, &c, u->item_count);
    }
}
