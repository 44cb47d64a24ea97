/* tests/cusim/exec_run.c - runs a grid: blocks one after another in a random order, the warps of a
 * block in turns, and of a warp always the lanes with the lowest instruction, so that they meet
 * again.
 */
#include "exec.h"

enum { TURN = 4096 };                       /* instructions of a warp before the next has a turn */

/* What a warp has left to do. */
enum turn { TURN_OVER, TURN_WAITS, TURN_ENDED };

static _Noreturn void stuck(const struct block *b, enum kind kind, const char *what)
{
    const struct kernel *k = b->g->launch->kernel;
    for (uint32_t n = 0; n < b->warp_count; n++) {
        const struct warp *w = &b->warps[n];
        for (int l = 0; l < LANES; l++) {
            bool same = l && w->state[l] == w->state[l - 1] && w->pc[l] == w->pc[l - 1];
            if (!(w->present >> l & 1) || same) continue;
            report_note("cusim:   warp %u, from lane %d: %s", n, l,
                        w->state[l] == LANE_EXITED ? "has ended" : k->code[w->pc[l]].text);
        }
    }
    report(kind, "%s", what);
}

/* Lanes in `state` at instruction `pc`. */
static uint32_t lanes_at(const struct warp *w, uint32_t pc, enum lane_state state)
{
    uint32_t lanes = 0;
    for (int l = 0; l < LANES; l++) {
        if (w->state[l] == state && w->pc[l] == pc) lanes |= 1u << l;
    }
    return lanes;
}

static void put_lanes(struct warp *w, uint32_t lanes, uint32_t pc)
{
    EACH_LANE(w->pc[l] = pc)
}

static void set_state(struct warp *w, uint32_t lanes, enum lane_state state)
{
    EACH_LANE(w->state[l] = state)
}

static void check_members(const struct warp *w, uint32_t members, int lane)
{
    at_lane(w, lane);
    report_if(!(members >> lane & 1), WRONG_MASK, "lane %d is not in the mask %08x it gives", lane,
              members);
    report_if(members & ~w->present, WRONG_MASK, "the mask %08x names lanes that do not exist",
              members);
    report_if(members & w->exited, WRONG_MASK, "the mask %08x names lanes that have ended",
              members);
}

/* A collective with a mask: true when all its members are in `lanes`, and it has run; else the
 * lanes wait for the others. */
static bool meet_warp(struct warp *w, const struct ins *i, uint32_t lanes, uint32_t pc)
{
    const uint32_t *mask = (const uint32_t *)(w->file + i->members);
    uint32_t first = mask[__builtin_ctz(lanes)];
    bool all = true;
    FOR_LANES(l, lanes) {
        if (mask[l] != first || mask[l] != lanes) check_members(w, mask[l], l);
        if (mask[l] & ~lanes || mask[l] != first) all = false;
    }
    if (all && first == lanes) {
        if (lanes & ~w->present) check_members(w, first, __builtin_ctz(lanes));
        i->run(w, i, lanes);
        return true;
    }
    put_lanes(w, lanes, pc);
    set_state(w, lanes, LANE_WARP);
    EACH_LANE(w->want[l] = mask[l])
    return false;
}

/* No lane can run: a collective whose members have all come, runs. */
static bool release_warp(struct warp *w)
{
    for (int l = 0; l < LANES; l++) {
        if (w->state[l] != LANE_WARP) continue;
        uint32_t members = w->want[l], here = 0, elsewhere = 0;
        for (int k = 0; k < LANES; k++) {
            if (w->state[k] != LANE_WARP || !(members >> k & 1)) continue;
            if (w->pc[k] == w->pc[l] && w->want[k] == members) here |= 1u << k;
            else elsewhere |= 1u << k;
        }
        const struct ins *i = &w->b->g->launch->kernel->code[w->pc[l]];
        place.instruction = i->text;
        check_members(w, members, l);
        if (here == members) {
            i->run(w, i, members);
            put_lanes(w, members, w->pc[l] + 1);
            set_state(w, members, LANE_RUN);
            return true;
        }
        if ((here | elsewhere) == members) {
            stuck(w->b, DIVERGENT_COLLECTIVE, "lanes of one mask are at different collectives");
        }
    }
    return false;
}

/* The lanes with the lowest instruction; *others is the next lowest. */
static uint32_t pick_lanes(const struct warp *w, uint32_t *pc, uint32_t *others)
{
    uint32_t lowest = UINT32_MAX, next = UINT32_MAX;
    for (int l = 0; l < LANES; l++) {
        if (w->state[l] != LANE_RUN) continue;
        if (w->pc[l] < lowest) next = lowest, lowest = w->pc[l];
        else if (w->pc[l] > lowest && w->pc[l] < next) next = w->pc[l];
    }
    *pc = lowest, *others = next;
    return lowest == UINT32_MAX ? 0 : lanes_at(w, lowest, LANE_RUN);
}

static void end_lanes(struct warp *w, uint32_t lanes, uint32_t pc)
{
    put_lanes(w, lanes, pc);
    set_state(w, lanes, LANE_EXITED);
    w->exited |= lanes;
}

/* An instruction that decides who goes on: true when `lanes` do, together, at *pc. */
static bool run_flow(struct warp *w, const struct ins *i, uint32_t lanes, uint32_t now,
                     uint32_t *pc)
{
    struct kernel_stats *stats = w->b->g->stats;
    uint32_t here = *pc;
    if (i->flow == FLOW_ALIGNED && now != ~0u) {
        at_lane(w, now ? __builtin_ctz(now) : 0);
        report(DIVERGENT_COLLECTIVE, "only lanes %08x of the warp are here", now);
    }
    *pc = here + 1;
    if (stats && i->guard && i->flow == FLOW_BRANCH) {
        stats->branches++;
        stats->divergent_branches += now && now != lanes;
    }
    if (!now) return true;
    if (i->flow == FLOW_BRANCH && now == lanes) {
        *pc = i->target;
        return true;
    }
    if (i->flow == FLOW_ALIGNED) {
        i->run(w, i, now);
        return true;
    }
    put_lanes(w, lanes, here + 1);
    switch ((enum flow)i->flow) {
    case FLOW_WARP: return meet_warp(w, i, now, here);
    case FLOW_BRANCH: put_lanes(w, now, i->target); break;
    case FLOW_EXIT: end_lanes(w, now, here); break;
    default:
        put_lanes(w, now, here);
        set_state(w, now, LANE_BARRIER);
        break;
    }
    return false;
}

/* Runs these lanes from pc until they part, wait, meet others or their turn is over; returns the
 * instructions used.  `lanes` all stand at pc. */
static uint32_t run_lanes(struct warp *w, uint32_t lanes, uint32_t pc, uint32_t others,
                          uint32_t turn)
{
    struct grid *g = w->b->g;
    const struct ins *code = g->launch->kernel->code;
    uint32_t used = 0;
    while (used < turn && pc < others) {
        const struct ins *i = &code[pc];
        uint32_t now = lanes;
        used++;
        place.instruction = i->text;
        if (i->guard) {
            uint32_t p = predicate(w, i->guard);
            now &= i->guard_not ? ~p : p;
        }
        if (g->stats && now) {
            g->stats->warp_instructions++;
            g->stats->lane_instructions += (uint32_t)__builtin_popcount(now);
        }
        if (i->flow == FLOW_NEXT) {
            if (now) i->run(w, i, now);
            pc++;
        } else if (!run_flow(w, i, lanes, now, &pc)) {
            return used;
        }
    }
    put_lanes(w, lanes, pc);
    return used;
}

static enum turn run_warp(struct warp *w)
{
    for (uint32_t left = TURN; left;) {
        uint32_t pc, others, lanes = pick_lanes(w, &pc, &others);
        if (!lanes) {
            if (w->exited == w->present) return TURN_ENDED;
            if (release_warp(w)) continue;
            return TURN_WAITS;
        }
        uint32_t used = run_lanes(w, lanes, pc, others, left);
        left -= used < left ? used : left;
        w->b->g->instructions += used;
    }
    return TURN_OVER;
}

/* Barriers.  All threads of the block must come to the same one. */

static void open_barrier(struct block *b, uint32_t pc)
{
    for (uint32_t n = 0; n < b->warp_count; n++) {
        struct warp *w = &b->warps[n];
        uint32_t lanes = lanes_at(w, pc, LANE_BARRIER);
        put_lanes(w, lanes, pc + 1);
        set_state(w, lanes, LANE_RUN);
    }
    b->barrier++;
}

/* Every warp waits or has ended: opens a barrier, or says why none can be. */
static void meet_block(struct block *b)
{
    const struct ins *code = b->g->launch->kernel->code;
    bool barrier = false;
    for (uint32_t n = 0; n < b->warp_count; n++) {
        const struct warp *w = &b->warps[n];
        for (int l = 0; l < LANES; l++) {
            if (w->state[l] != LANE_BARRIER) continue;
            barrier = true;
            uint32_t pc = w->pc[l], waiting = 0;
            for (uint32_t k = 0; k < b->warp_count; k++) {
                waiting += (uint32_t)__builtin_popcount(lanes_at(&b->warps[k], pc, LANE_BARRIER));
            }
            place.instruction = code[pc].text;
            if (waiting == b->thread_count) {
                open_barrier(b, pc);
                return;
            }
        }
    }
    stuck(b, barrier ? DIVERGENT_BARRIER : DIVERGENT_COLLECTIVE,
          barrier ? "threads wait at a barrier to which others of the block do not come"
                  : "lanes wait for others of their mask that do not come");
}

static void start_warp(struct warp *w, uint32_t id)
{
    const struct block *b = w->b;
    const struct launch *launch = b->g->launch;
    const uint32_t *n = launch->threads;
    uint32_t (*special)[LANES] = (uint32_t (*)[LANES])w->file;
    w->id = id;
    w->tick = 0;
    w->present = w->exited = 0;
    for (uint32_t l = 0; l < LANES; l++) {
        uint32_t t = id * LANES + l;
        bool present = t < b->thread_count;
        w->pc[l] = 0;
        w->state[l] = present ? LANE_RUN : LANE_EXITED;
        w->present |= (uint32_t)present << l;
        w->async[l].count = w->async[l].group = 0;
        special[SPECIAL_TID_X][l] = t % n[0];
        special[SPECIAL_TID_Y][l] = t / n[0] % n[1];
        special[SPECIAL_TID_Z][l] = t / n[0] / n[1];
        for (int d = 0; d < 3; d++) {
            special[SPECIAL_NTID_X + d][l] = n[d];
            special[SPECIAL_CTAID_X + d][l] = b->id[d];
            special[SPECIAL_NCTAID_X + d][l] = launch->grid[d];
        }
        special[SPECIAL_LANEID][l] = l;
    }
}

static void run_block(struct block *b, uint32_t number, uint64_t *seed)
{
    const uint32_t *n = b->g->launch->grid;
    b->number = number;
    b->id[0] = number % n[0], b->id[1] = number / n[0] % n[1], b->id[2] = number / n[0] / n[1];
    memcpy(place.block, b->id, sizeof place.block);
    b->barrier = 1;
    b->fenced = false;
    free(b->seen);
    b->seen = NULL;
    memset(b->shared, 0xff, b->shared_bytes);
    if (b->cells) memset(b->cells, 0, (b->shared_bytes / 4 + 1) * sizeof *b->cells);
    for (uint32_t k = 0; k < b->warp_count; k++) start_warp(&b->warps[k], k);
    uint32_t first = (uint32_t)(next_random(seed) % b->warp_count);
    for (bool ended = false; !ended;) {
        bool any = false;
        ended = true;
        for (uint32_t k = 0; k < b->warp_count; k++) {
            enum turn t = run_warp(&b->warps[(k + first) % b->warp_count]);
            any |= t == TURN_OVER;
            ended &= t == TURN_ENDED;
        }
        if (!any && !ended) meet_block(b);
        if (b->g->instructions > b->g->instructions_max) {
            stuck(b, KERNEL_DOES_NOT_END,
                  "the kernel ran for more instructions than CUSIM_INSTRUCTIONS");
        }
    }
}

static void write_constants(uint8_t *file, const struct kernel *k)
{
    for (uint32_t n = 0; n < k->constant_count; n++) {
        const struct constant *c = &k->constants[n];
        uint32_t bits = (uint32_t)c->value;
        if (c->bytes == 0) memcpy(file + c->slot, &bits, 4);
        for (int l = 0; c->bytes && l < LANES; l++) {
            memcpy(file + c->slot + (size_t)l * c->bytes, &c->value, c->bytes);
        }
    }
}

static void open_block(struct block *b, struct grid *g)
{
    const struct launch *launch = g->launch;
    const struct kernel *k = launch->kernel;
    *b = (struct block){.g = g};
    b->thread_count = launch->threads[0] * launch->threads[1] * launch->threads[2];
    b->warp_count = (b->thread_count + LANES - 1) / LANES;
    b->shared_bytes = k->shared_bytes + launch->dynamic_shared;
    b->shared = must_alloc(b->shared_bytes + 16);
    b->cells = g->check ? must_alloc((b->shared_bytes / 4 + 2) * sizeof *b->cells) : NULL;
    b->warps = must_alloc(b->warp_count * sizeof *b->warps);
    for (uint32_t n = 0; n < b->warp_count; n++) {
        struct warp *w = &b->warps[n];
        w->b = b;
        w->file = aligned_alloc(64, (k->file_bytes + SLOT8 + 63) / 64 * 64);
        report_if(!w->file, NOT_MODELLED, "no memory for registers");
        memset(w->file, 0, k->file_bytes);
        write_constants(w->file, k);
        w->local = must_alloc((size_t)k->local_bytes * LANES);
    }
}

static void close_block(struct block *b)
{
    for (uint32_t n = 0; n < b->warp_count; n++) {
        free(b->warps[n].file);
        free(b->warps[n].local);
        for (int l = 0; l < LANES; l++) free(b->warps[n].async[l].items);
    }
    free(b->warps);
    free(b->shared);
    free(b->cells);
    free(b->seen);
}

void exec_launch(const struct launch *launch, op_id op, const struct clock *clock, int device)
{
    static uint64_t seed;
    if (!seed) seed = setting_number("CUSIM_SEED", 1) * 0x9e3779b97f4a7c15u;
    struct grid g = {.launch = launch, .check = shadow_on()};
    g.toucher = (struct toucher){.op = op, .clock = clock, .device = device};
    g.instructions_max = setting_number("CUSIM_INSTRUCTIONS", 20000000000ull);
    g.stats = stats_of(launch->kernel);
    if (g.stats) g.stats->launches++;
    struct block b;
    open_block(&b, &g);
    uint32_t count = launch->grid[0] * launch->grid[1] * launch->grid[2];
    uint32_t at = (uint32_t)(next_random(&seed) % count);
    bool backward = next_random(&seed) & 1;
    for (uint32_t n = 0; n < count; n++) {
        run_block(&b, at, &seed);
        at = backward ? (at + count - 1) % count : (at + 1) % count;
    }
    close_block(&b);
    exec_atom_close(&g);
    place.instruction = NULL;
}

/* Instructions that do little but decide who goes on. */

EXEC(nothing) {}

EXEC(fence) { w->b->fenced = true; }

EXEC(trap)
{
    at_lane(w, __builtin_ctz(lanes));
    report(BAD_LAUNCH, "the kernel trapped");
}

const struct row flow_rows[] = {
    {"bra", "", "L", nothing, .ignored = "uni", .flow = FLOW_BRANCH},
    {"ret", "", "", nothing, .flow = FLOW_EXIT},
    {"exit", "", "", nothing, .flow = FLOW_EXIT},
    {"bar sync", "", "4", nothing, .ignored = "cta aligned", .flow = FLOW_BARRIER},
    {"membar gl", "", "", fence},
    {"trap", "", "", trap},
    {NULL},
};
