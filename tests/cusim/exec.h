/* tests/cusim/exec.h - a running kernel: grid, block, warp, and what instructions use. */
#ifndef CUSIM_EXEC_H
#define CUSIM_EXEC_H

#include "memory.h"
#include "ptx.h"
#include "shadow.h"

/* Generic addresses of shared and local memory.  The low bits are not zero: an address cut to 32
 * bits must not look like an offset. */
#define SHARED_WINDOW 0x010000040000ull
#define LOCAL_WINDOW 0x020000040000ull
enum { WINDOW_LOW = 0x40000 };
enum { SHARED_MAX = 227 * 1024, SHARED_DEFAULT = 48 * 1024, BLOCK_THREADS_MAX = 1024 };

/* What CUSIM_STATS counts, of all launches of a kernel. */
#define COUNTERS(X)                                                                              \
    X(launches) X(warp_instructions) X(lane_instructions) X(mma) X(branches)                     \
    X(divergent_branches) X(global_bytes) X(global_sectors) X(global_sectors_ideal)              \
    X(shared_bytes) X(shared_wavefronts) X(shared_wavefronts_ideal)
#define X(name) uint64_t name;
struct kernel_stats {
    COUNTERS(X)
};
#undef X
struct kernel_stats *stats_of(const struct kernel *k);      /* NULL when nothing is counted */
void stats_write(void);

struct launch {
    const struct kernel *kernel;
    uint32_t grid[3], threads[3], dynamic_shared;
    uint8_t *params;
};

struct async_copy {
    uint64_t from;
    uint32_t to, group;
    uint8_t bytes, size;                /* bytes come from memory, the rest of size are zero */
};

/* Of a thread.  Copies wait in `items` until their group is waited for. */
struct async_queue {
    struct async_copy *items;
    uint32_t count, group;
};

enum lane_state { LANE_RUN, LANE_BARRIER, LANE_WARP, LANE_EXITED };

struct warp {
    uint8_t *file, *local;
    struct block *b;
    uint32_t id, present, exited;       /* lanes that exist; that have ended */
    uint32_t pc[LANES], want[LANES];    /* want: members of the collective, number of the barrier */
    uint8_t state[LANES];
    uint32_t tick;                      /* warp barriers passed */
    struct async_queue async[LANES];
};

struct block {
    struct grid *g;
    struct warp *warps;
    uint32_t warp_count, thread_count, number, id[3];
    uint8_t *shared;
    struct cell *cells;                 /* of shared memory; NULL when nothing is checked */
    uint32_t shared_bytes, barrier;     /* barrier: number of barriers passed, from 1 */
    uint64_t *seen;                     /* blocks whose work this one may see; NULL: none */
    bool fenced;                        /* no plain write since the last fence */
};

struct released;                        /* what atomics on one address publish */

struct grid {
    const struct launch *launch;
    struct toucher toucher;
    const struct region *hint;
    struct kernel_stats *stats;         /* NULL: not counted */
    bool check;
    struct released *released;
    uint64_t instructions, instructions_max;
};

static inline uint32_t warp_tick(const struct warp *w)
{
    return w->b->barrier << 16 | (w->tick & 0xffff);
}

void exec_launch(const struct launch *launch, op_id op, const struct clock *clock, int device);
void exec_atom_close(struct grid *g);

/* This lane acts now; returns its thread. */
static inline uint32_t at_lane(const struct warp *w, int lane)
{
    return place.thread = w->id * LANES + (uint32_t)lane;
}

/* The head of a function that runs an instruction. */
#define UNUSED __attribute__((unused))
#define EXEC(name)                                                                               \
    static void name(UNUSED struct warp *w, UNUSED const struct ins *i, UNUSED uint32_t lanes)
/* How the lanes of an instruction run: all at once when the warp is whole, so that the compiler may
 * use vectors; registers overlap wholly or not at all. */
#if defined(__clang__)
#define LOOP_IS_SAFE _Pragma("clang loop vectorize(assume_safety)")
#else
#define LOOP_IS_SAFE _Pragma("GCC ivdep")
#endif
#define EACH_LANE(...)                                                                           \
    if (lanes == ~0u) {                                                                          \
        LOOP_IS_SAFE                                                                             \
        for (int l = 0; l < LANES; l++) { __VA_ARGS__; }                                         \
    } else {                                                                                     \
        FOR_LANES(l, lanes) { __VA_ARGS__; }                                                     \
    }
/* No `break` inside: it would end one lane, not all. */
#define FOR_LANES(l, lanes)                                                                      \
    for (uint32_t rest_ = (lanes); rest_; rest_ &= rest_ - 1)                                    \
        for (int l = __builtin_ctz(rest_), once_ = 1; once_; once_ = 0)
#define REGISTER(type, k) ((type *)(w->file + i->o[k]))

/* A register of either width. */
static inline uint64_t read_register(const struct warp *w, const struct ins *i, uint32_t k, int l)
{
    return i->bits64 >> k & 1 ? REGISTER(uint64_t, k)[l] : REGISTER(uint32_t, k)[l];
}

static inline void write_register(struct warp *w, const struct ins *i, uint32_t k, int l,
                                  uint64_t v)
{
    if (i->bits64 >> k & 1) REGISTER(uint64_t, k)[l] = v;
    else REGISTER(uint32_t, k)[l] = (uint32_t)v;
}

static inline uint32_t predicate(const struct warp *w, uint32_t slot)
{
    uint32_t bits;
    memcpy(&bits, w->file + slot, 4);
    return bits;
}

static inline void set_predicate(struct warp *w, uint32_t slot, uint32_t bits, uint32_t lanes)
{
    bits = (predicate(w, slot) & ~lanes) | (bits & lanes);
    memcpy(w->file + slot, &bits, 4);
}

static inline float as_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline float from_f16(uint32_t h)
{
    uint32_t sign = (h & 0x8000) << 16, size = h & 0x7fff;
    if (size >= 0x7c00) return as_float(sign | 0x7f800000 | size << 13);    /* infinity, NaN */
    if (size < 0x400) return (sign ? -1.0f : 1.0f) * (float)size * 0x1p-24f;
    return as_float(sign | ((size << 13) + (112u << 23)));
}

static inline uint32_t to_f16(float f)
{
    uint32_t bits = float_bits(f), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return sign | 0x7c00;           /* from 65520 on: infinity */
    if (size < 0x38800000) {                                /* below 2^-14: steps of 2^-24 */
        return sign | (float_bits(as_float(size) + 0.5f) - float_bits(0.5f));
    }
    return sign | (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
}

/* One number of any type but FP8; in between every one is exact: 64 bits of mantissa, or more. */
long double load_number(uint64_t bits, enum type t);
uint64_t store_number(long double v, enum type t);

/* The bytes of one lane's access; every check has been made. */
uint8_t *exec_address(struct warp *w, const struct ins *i, int lane, uint64_t address,
                      uint32_t bytes, enum touch touch);
/* Counts an access of these lanes to global or shared memory. */
void exec_count(struct warp *w, enum space space, const uint64_t *address, uint32_t lanes,
                uint32_t bytes);
/* Of operand ADDRESS or ADDRESS2. */
void exec_addresses(struct warp *w, const struct ins *i, uint32_t k, uint32_t lanes,
                    uint64_t *address);

#endif
