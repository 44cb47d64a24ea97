/* tests/cusim/exec_mem.c - loads, stores, asynchronous copies; their checks and their counts. */
#include "exec.h"

static _Noreturn void misaligned(uint32_t bytes, uint64_t address)
{
    report(MISALIGNED, "%u bytes at %#lx", bytes, address);
}

/* From here on it is this warp that touches memory. */
static void begin_touching(struct warp *w)
{
    struct toucher *t = &w->b->g->toucher;
    t->tick = warp_tick(w);
    t->seen_blocks = w->b->seen;
}

static struct toucher *toucher_of(struct block *b, uint32_t thread)
{
    b->g->toucher.who = b->number << THREAD_BITS | thread;
    return &b->g->toucher;
}

static uint8_t *shared_at(struct warp *w, uint64_t offset, uint32_t bytes, enum touch touch,
                          uint32_t thread)
{
    struct block *b = w->b;
    if (offset + bytes > b->shared_bytes) {
        report_if(offset - WINDOW_LOW < b->shared_bytes, TRUNCATED_ADDRESS,
                  "a generic address cut to 32 bits is used as a shared one");
        report(SHARED_BOUNDS, "%u bytes at offset %lu of %u bytes", bytes, offset,
               b->shared_bytes);
    }
    if (b->cells) shadow_shared(toucher_of(b, thread), b->cells, (uint32_t)offset, bytes, touch);
    return b->shared + offset;
}

static uint8_t *global_at(struct warp *w, uint64_t address, uint32_t bytes, enum touch touch,
                          uint32_t thread)
{
    struct grid *g = w->b->g;
    const struct region *r = g->hint;
    if (!r || address < r->start || address + bytes > r->end || r->carved) {
        memory_region(address, bytes, g->toucher.device, &g->hint);
    }
    if (g->check) shadow_touch(toucher_of(w->b, thread), address, bytes, touch);
    if (touch == TOUCH_WRITE) w->b->fenced = false;
    return device_bytes(address);
}

static uint8_t *param_at(struct warp *w, uint64_t offset, uint32_t bytes)
{
    const struct launch *launch = w->b->g->launch;
    report_if(offset + bytes > launch->kernel->param_bytes, WRONG_ADDRESS_SPACE,
              "parameters: %u bytes at offset %lu of %u", bytes, offset,
              launch->kernel->param_bytes);
    return launch->params + offset;
}

static uint8_t *local_at(struct warp *w, uint64_t offset, uint32_t bytes, int lane)
{
    uint32_t size = w->b->g->launch->kernel->local_bytes;
    report_if(offset + bytes > size, LOCAL_BOUNDS, "%u bytes at offset %lu of %u", bytes, offset,
              size);
    return w->local + (size_t)lane * size + offset;
}

/* Which space it is; a generic address becomes an offset there. */
static enum space space_of(enum space space, uint64_t *address)
{
    if (space != SPACE_GENERIC) return space;
    uint64_t window = *address >> 40 == SHARED_WINDOW >> 40 ? SHARED_WINDOW
                      : *address >> 40 == LOCAL_WINDOW >> 40 ? LOCAL_WINDOW : 0;
    *address -= window;
    return window == SHARED_WINDOW ? SPACE_SHARED : window ? SPACE_LOCAL : SPACE_GLOBAL;
}

uint8_t *exec_address(struct warp *w, const struct ins *i, int lane, uint64_t address,
                      uint32_t bytes, enum touch touch)
{
    uint32_t thread = at_lane(w, lane);
    if (address & (bytes - 1)) misaligned(bytes, address);
    switch (space_of(i->space, &address)) {
    case SPACE_SHARED: return shared_at(w, address, bytes, touch, thread);
    case SPACE_LOCAL: return local_at(w, address, bytes, lane);
    case SPACE_PARAM: return param_at(w, address, bytes);
    default: break;
    }
    report_if(address >> 40 == SHARED_WINDOW >> 40 || address >> 40 == LOCAL_WINDOW >> 40,
              WRONG_ADDRESS_SPACE, "a shared or local address is used as a global one");
    return global_at(w, address, bytes, touch, thread);
}

void exec_addresses(struct warp *w, const struct ins *i, uint32_t k, uint32_t lanes,
                    uint64_t *address)
{
    int64_t offset = i->offset[k - ADDRESS];
    begin_touching(w);
    if (i->bits64 >> k & 1) {
        const uint64_t *base = REGISTER(uint64_t, k);
        EACH_LANE(address[l] = base[l] + (uint64_t)offset)
    } else {
        const uint32_t *base = REGISTER(uint32_t, k);
        EACH_LANE(address[l] = (uint32_t)(base[l] + (uint32_t)offset))
    }
}

/* Counts, as a GPU would need: 32-byte sectors, and passes over the 32 banks of shared memory. */

static uint32_t distinct_sectors(const uint64_t *address, uint32_t lanes, uint32_t bytes)
{
    uint64_t sectors[8 * LANES];
    uint32_t n = 0;
    FOR_LANES(l, lanes) {
        for (uint64_t s = address[l] / 32; s <= (address[l] + bytes - 1) / 32; s++) {
            uint32_t k = n;
            while (k && sectors[k - 1] != s) k--;
            if (!k) sectors[n++] = s;
        }
    }
    return n;
}

/* The most different words of one bank in this group of lanes. */
static uint32_t bank_depth(const uint64_t *address, uint32_t lanes, uint32_t bytes)
{
    uint32_t words[LANES][LANES], depth[LANES] = {0}, most = 0;
    FOR_LANES(l, lanes) {
        for (uint32_t k = 0; k < (bytes + 3) / 4; k++) {
            uint32_t word = (uint32_t)(address[l] / 4) + k, bank = word % LANES, at = 0;
            while (at < depth[bank] && words[bank][at] != word) at++;
            if (at == depth[bank] && at < LANES) words[bank][depth[bank]++] = word;
            if (depth[bank] > most) most = depth[bank];
        }
    }
    return most;
}

void exec_count(struct warp *w, enum space space, const uint64_t *address, uint32_t lanes,
                uint32_t bytes)
{
    struct kernel_stats *s = w->b->g->stats;
    if (!s || !lanes) return;
    uint64_t first = address[__builtin_ctz(lanes)];
    uint64_t total = (uint64_t)__builtin_popcount(lanes) * bytes;
    space = space_of(space, &first);
    if (space == SPACE_GLOBAL) {
        s->global_bytes += total;
        s->global_sectors += distinct_sectors(address, lanes, bytes);
        s->global_sectors_ideal += (total + 31) / 32;
    } else if (space == SPACE_SHARED) {
        /* 8- and 16-byte accesses go in 2 and 4 passes of neighbouring lanes */
        uint32_t group = bytes > 8 ? 8 : bytes > 4 ? 16 : LANES;
        s->shared_bytes += total;
        for (uint32_t at = 0; at < LANES; at += group) {
            uint32_t some = lanes & (group == LANES ? ~0u : ((1u << group) - 1) << at);
            if (!some) continue;
            s->shared_wavefronts += bank_depth(address, some, bytes);
            s->shared_wavefronts_ideal++;
        }
    }
}

static void load_lane(struct warp *w, const struct ins *i, int l, const uint8_t *from)
{
    uint32_t size = type_bytes(i->type), spare = 64 - 8 * size;
    for (uint32_t k = 0; k < i->count; k++, from += size) {
        uint64_t v = 0;
        memcpy(&v, from, size);
        if (is_signed(i->type)) v = (uint64_t)((int64_t)(v << spare) >> spare);
        write_register(w, i, k, l, v);
    }
}

/* Four-byte words into four-byte registers, of shared or global memory: most loads are this, so
 * what it calls is put in line. */
static __attribute__((flatten)) void load_words(struct warp *w, const struct ins *i, uint32_t lanes,
                       const uint64_t *address)
{
    const uint32_t bytes = 4u * i->count;
    const bool shared = i->space == SPACE_SHARED;
    FOR_LANES(l, lanes) {
        uint32_t thread = at_lane(w, l);
        if (address[l] & (bytes - 1)) misaligned(bytes, address[l]);
        const uint8_t *from = shared ? shared_at(w, address[l], bytes, TOUCH_READ, thread)
                                     : global_at(w, address[l], bytes, TOUCH_READ, thread);
        for (uint32_t k = 0; k < i->count; k++) memcpy(&REGISTER(uint32_t, k)[l], from + 4 * k, 4);
    }
}

EXEC(load)
{
    uint64_t address[LANES];
    uint32_t bytes = type_bytes(i->type) * i->count;
    exec_addresses(w, i, ADDRESS, lanes, address);
    exec_count(w, i->space, address, lanes, bytes);
    bool words = bytes == 4u * i->count && !(i->bits64 & ((1u << i->count) - 1));
    bool all_device = i->space == SPACE_GLOBAL && is_device(address[__builtin_ctz(lanes)]);
    if (words && (i->space == SPACE_SHARED || all_device)) {
        load_words(w, i, lanes, address);
        return;
    }
    FOR_LANES(l, lanes) {
        load_lane(w, i, l, exec_address(w, i, l, address[l], bytes, TOUCH_READ));
    }
}

EXEC(store)
{
    uint64_t address[LANES];
    uint32_t size = type_bytes(i->type), bytes = size * i->count;
    exec_addresses(w, i, ADDRESS, lanes, address);
    exec_count(w, i->space, address, lanes, bytes);
    FOR_LANES(l, lanes) {
        uint8_t *to = exec_address(w, i, l, address[l], bytes, TOUCH_WRITE);
        for (uint32_t k = 0; k < i->count; k++, to += size) {
            uint64_t v = read_register(w, i, k, l);
            memcpy(to, &v, size);
        }
    }
}

/* Between generic addresses and those of a space. */
EXEC(cvta)
{
    uint64_t *d = REGISTER(uint64_t, 0);
    const uint64_t *a = REGISTER(uint64_t, 1);
    uint64_t window = i->space == SPACE_SHARED ? SHARED_WINDOW
                      : i->space == SPACE_LOCAL ? LOCAL_WINDOW : 0;
    if (i->option) window = 0 - window;                         /* .to */
    EACH_LANE(d[l] = a[l] + window)
}

/* mov between one register, of ins.type, and its parts. */
EXEC(pack)
{
    uint32_t part = type_bytes(i->type) * 8 / i->count;
    uint64_t mask = part == 64 ? ~0ull : (1ull << part) - 1;
    EACH_LANE(uint64_t v = 0;
              for (uint32_t k = 0; k < i->count; k++) {
                  v |= (read_register(w, i, k + 1, l) & mask) << part * k;
              }
              write_register(w, i, 0, l, v))
}

EXEC(unpack)
{
    uint32_t n = i->count, part = type_bytes(i->type) * 8 / n;
    uint64_t mask = part == 64 ? ~0ull : (1ull << part) - 1;
    EACH_LANE(uint64_t v = read_register(w, i, n, l);
              for (uint32_t k = 0; k < n; k++) write_register(w, i, k, l, v >> part * k & mask))
}

/* cp.async of ins.count bytes, of which the operand's number comes from memory. */

EXEC(async_begin)
{
    uint64_t to[LANES], from[LANES];
    struct block *b = w->b;
    exec_addresses(w, i, ADDRESS, lanes, to);
    exec_addresses(w, i, ADDRESS2, lanes, from);
    const uint32_t *fetch = REGISTER(uint32_t, 0);
    exec_count(w, SPACE_SHARED, to, lanes, i->count);
    exec_count(w, SPACE_GLOBAL, from, lanes, i->count);
    FOR_LANES(l, lanes) {
        uint32_t thread = at_lane(w, l), at = (uint32_t)to[l];
        if (to[l] & (i->count - 1u)) misaligned(i->count, to[l]);
        if (from[l] & (i->count - 1u)) misaligned(i->count, from[l]);
        report_if(fetch[l] > i->count, UNKNOWN_INSTRUCTION, "cp.async fetches more than it writes");
        shared_at(w, at, i->count, TOUCH_ISSUE, thread);
        if (fetch[l]) global_at(w, from[l], fetch[l], TOUCH_READ, thread);
        memset(b->shared + at, 0xff, i->count);         /* NaN until it has arrived */
        struct async_queue *q = &w->async[l];
        APPEND(q->items, q->count) = (struct async_copy){from[l], at, q->group, (uint8_t)fetch[l],
                                                         i->count};
    }
}

/* Those of all groups but the last so many. */
static void arrive(struct warp *w, int lane, uint32_t groups_left)
{
    struct async_queue *q = &w->async[lane];
    struct block *b = w->b;
    uint32_t n = 0;
    begin_touching(w);
    for (; n < q->count && q->items[n].group + groups_left < q->group; n++) {
        const struct async_copy *c = &q->items[n];
        memset(b->shared + c->to, 0, c->size);
        if (c->bytes) memcpy(b->shared + c->to, device_bytes(c->from), c->bytes);
        shared_at(w, c->to, c->size, TOUCH_ARRIVAL, at_lane(w, lane));
    }
    if (!n) return;
    q->count -= n;
    memmove(q->items, q->items + n, q->count * sizeof *q->items);
}

EXEC(async_commit)
{
    EACH_LANE(w->async[l].group++)
}

/* Waits until at most so many committed groups are under way. */
EXEC(async_wait)
{
    uint32_t left = *REGISTER(uint32_t, 0);
    EACH_LANE(arrive(w, l, left))
}

#define NUMBERS "b8 u8 s8 b16 u16 s16 f16 b32 u32 s32 f32 b64 u64 s64 f64"
#define SPACES "global shared shared::cta local param "
#define CACHES "nc ca cg cs cv lu wb wt volatile weak relaxed gpu sys cta v2 v4 v8"
const struct row memory_rows[] = {
    {"ld", NUMBERS, "Va", load, .ignored = SPACES CACHES},
    {"st", NUMBERS, "aV", store, .ignored = SPACES CACHES},
    {"mov", "b32 b64", "v{", pack},
    {"mov", "b32 b64", "{v", unpack},
    {"cvta", "u64", "88", cvta, .options = "to", .ignored = SPACES},
    {"cp async", "", "aan?4", async_begin, .ignored = "ca cg shared shared::cta global"},
    {"cp async commit_group", "", "", async_commit},
    {"cp async wait_group", "", "4", async_wait},
    {NULL},
};
