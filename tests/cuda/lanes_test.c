/* tests/cuda/lanes_test.c - KV from one GPU to another: the same bytes, in order, beside the steps,
 * and an end for everything when the other side is not there.  Two backends in one process, on two
 * GPUs, or in emulation with the library of tests/cusim.
 */
#include <dlfcn.h>
#include <unistd.h>

#include "world.h"

#include "common/clock.h"
#include "cuda/lanes.h"

#define PATIENCE_NS (60 * NS_PER_S)
enum { LAYERS = 4, MOVED = 60 };

static const enum tensor_type f16[] = { TENSOR_F16 };
static const struct tiny_plan plan = { "llama", LAYERS, 128, 4, 2, 64, 128, 100, f16, 1, 41 };
static const uint32_t lengths[WORLD_SEQS] = { MOVED, 37, 16 };

struct pair {
    struct tiny tiny;
    struct world from, to;
    struct lane *out, *in;
};

static const struct backend_lanes *const lanes = &cuda_lanes;

static void await(struct lane *l, enum lane_state state)
{
    uint64_t until = clock_now_ns() + PATIENCE_NS;
    while (lanes->state(l) != state) {
        if (clock_now_ns() > until) fail_msg("state %d instead of %d", lanes->state(l), state);
        usleep(200);
    }
}

static void await_true(bool (*what)(struct lane *), struct lane *l)
{
    uint64_t until = clock_now_ns() + PATIENCE_NS;
    while (!what(l)) {
        if (clock_now_ns() > until) fail_msg("it does not come");
        usleep(100);
    }
}

static struct lane *open_end(struct world *w, bool sends, const uint8_t *name, uint64_t deadline)
{
    struct lane *l;
    struct lane_spec s = { .sends = sends, .name = name, .size = 2, .rank = !sends, .peer = sends,
                           .deadline_ns = deadline };
    assert_int_equal(lanes->open(w->self, &s, &l), OK);
    return l;
}

static void lane_pair(struct pair *p, uint64_t deadline)
{
    uint8_t name[LANE_NAME_BYTES];
    p->out = open_end(&p->from, true, NULL, deadline);
    await(p->out, LANE_NAMED);
    lanes->name(p->out, name);
    p->in = open_end(&p->to, false, name, deadline);
    lanes->join(p->out);
    await(p->out, LANE_READY);
    await(p->in, LANE_READY);
}

static void worlds(struct pair *p)
{
    tiny_open(&p->tiny, &plan);
    struct backend_config c = world_config(p->tiny.m, KV_F16, false), d = c;
    c.lanes = d.lanes = LANES_MUST;
    d.device = 1;
    world_open(&p->from, &backend_cuda, &c, lengths);
    world_open(&p->to, &backend_cuda, &d, lengths);
    world_start(&p->to, 99);
}

static void worlds_close(struct pair *p)
{
    world_close(&p->from);
    world_close(&p->to);
    tiny_close(&p->tiny);
}

static struct lane_part part_of(const struct world *w, uint32_t s, const struct lane_part *p)
{
    struct lane_part mine = *p;
    mine.blocks = w->blocks[s];
    return mine;
}

static void send_part(struct pair *p, uint32_t s, const struct lane_part *what)
{
    struct lane_part part = part_of(&p->from, s, what);
    await_true(lanes->has_room, p->out);
    lanes->send(p->out, &part);
    lanes->receive(p->in, part.layers * part.count * p->from.shape.token_bytes);
}

static void take_part(struct pair *p, uint32_t s, const struct lane_part *what, bool drop)
{
    struct lane_part part = part_of(&p->to, s, what);
    await_true(lanes->arrived, p->in);
    lanes->take(p->in, drop ? NULL : &part);
}

static bool same_kv(const struct pair *p, uint32_t s, uint32_t count)
{
    size_t bytes = (size_t)LAYERS * count * p->from.shape.token_bytes;
    uint8_t *a = mem_alloc(bytes), *b = mem_alloc(bytes);
    backend_cuda.kv_read(p->from.self, p->from.blocks[s], 0, LAYERS, 0, count, a);
    backend_cuda.kv_read(p->to.self, p->to.blocks[s], 0, LAYERS, 0, count, b);
    bool same = !memcmp(a, b, bytes);
    free(a);
    free(b);
    return same;
}

static void fill_zeros(struct world *w, uint32_t s)
{
    void *zeros = mem_array((size_t)LAYERS * w->lengths[s], w->shape.token_bytes);
    w->table->kv_write(w->self, w->blocks[s], 0, LAYERS, 0, w->lengths[s], zeros);
    free(zeros);
}

/* Three sequences at once, each layer by layer in pieces; one is cancelled in the middle: what is
 * announced still moves, and nothing of it enters the pool. */
static void test_same_bytes_in_order(void **state)
{
    (void)state;
    struct pair p = { 0 };
    struct { uint32_t seq; struct lane_part part; } sent[256];
    uint32_t count = 0, taken = 0, done[WORLD_SEQS][LAYERS] = { 0 };
    uint64_t seed = 3;
    worlds(&p);
    world_run(&p.from, &(struct schedule){ .seed = 1, .chunk_max = 40 });
    fill_zeros(&p.to, 1);
    lane_pair(&p, PATIENCE_NS);
    for (uint32_t left = 1; left || taken < count;) {
        if (count - taken < 3 && left) {
            uint32_t s = (uint32_t)(tiny_random(&seed) % WORLD_SEQS), layer = 0;
            left = 0;
            for (uint32_t i = 0; i < WORLD_SEQS * LAYERS; i++)
                left += lengths[i / LAYERS] - done[i / LAYERS][i % LAYERS];
            while (layer < LAYERS && done[s][layer] == lengths[s]) layer++;
            if (layer == LAYERS) continue;
            uint32_t rest = lengths[s] - done[s][layer];
            uint32_t n = 1 + (uint32_t)(tiny_random(&seed) % rest);
            bool two = layer + 1 < LAYERS && done[s][layer] == done[s][layer + 1] && n % 2;
            sent[count].seq = s;
            sent[count].part = (struct lane_part){ .layer = layer, .layers = 1u + two,
                                                   .first = done[s][layer], .count = n };
            for (uint32_t i = layer; i < layer + 1u + two; i++) done[s][i] += n;
            send_part(&p, s, &sent[count].part);
            assert_true(++count < 256);
            continue;
        }
        bool drop = sent[taken].seq == 1 && taken > 6;
        take_part(&p, sent[taken].seq, &sent[taken].part, drop);
        taken++;
    }
    assert_true(same_kv(&p, 0, lengths[0]) && same_kv(&p, 2, lengths[2]));
    assert_false(same_kv(&p, 1, lengths[1]));
    worlds_close(&p);
}

/* While layer i+1 of a prompt computes: what is sent by then, and what it waits for. */
struct follow {
    struct pair *p;
    bool (*behind)(cudaStream_t, cudaEvent_t);
    uint32_t layer, waits_for_later;
};

static bool all_sent(struct lane *l)
{
    pthread_mutex_lock(&l->all->lock);
    bool all = l->queued.count + l->flying.count == 0;
    pthread_mutex_unlock(&l->all->lock);
    return all;
}

static void on_layer(void *ctx)
{
    struct follow *f = ctx;
    const struct cuda *u = f->p->from.self;
    struct lane_part part = { .layer = f->layer, .layers = 1, .count = MOVED };
    send_part(f->p, 0, &part);
    take_part(f->p, 0, &part, false);
    await_true(all_sent, f->p->out);
    if (f->layer + 1 < LAYERS) {
        cudaEvent_t next = u->layer_event[f->layer + 1];
        f->waits_for_later += f->behind(u->lanes->lane[0].stream, next);
        f->waits_for_later += f->behind(u->copy, next);
    }
    f->layer++;
    assert_int_equal(cudaSetDevice(u->device), cudaSuccess); /* one thread plays both ranks */
}

/* Each layer is sent and arrives before the host knows of the end of the next one, and neither its
 * copy nor its send is ordered behind that: when the last layer is computed, nothing but that layer
 * is left to be sent. */
static void test_only_the_last_layer_is_exposed(void **state)
{
    (void)state;
    struct pair p = { 0 };
    struct follow f = { .p = &p };
    *(void **)&f.behind = dlsym(RTLD_DEFAULT, "cusim_behind");
    if (!f.behind) skip();            /* a real GPU: only the emulator knows what is ordered */
    worlds(&p);
    world_start(&p.from, 1);
    lane_pair(&p, PATIENCE_NS);
    _Atomic uint32_t layers_done = 0;
    const struct step_seq seq = { .count = MOVED, .blocks = p.from.blocks[0] };
    const struct step step = { .ids = p.from.ids[0], .token_count = MOVED, .seq_count = 1,
                               .seqs = &seq, .layers_done = &layers_done, .notify = on_layer,
                               .notify_ctx = &f };
    assert_int_equal(backend_cuda.step(p.from.self, &step), OK);
    assert_int_equal(f.layer, LAYERS);
    assert_int_equal(f.waits_for_later, 0);
    assert_true(same_kv(&p, 0, MOVED));
    worlds_close(&p);
}

/* Nobody receives: the lane ends by its deadline, its slots come back, another lane works on. */
static void test_a_dead_peer_costs_its_lane_only(void **state)
{
    (void)state;
    struct pair p = { 0 }, dead;
    const struct lane_part part = { .layers = LAYERS, .count = 16 };
    worlds(&p);
    world_run(&p.from, &(struct schedule){ .seed = 1 });
    dead = p;
    lane_pair(&dead, 500 * NS_PER_MS);
    lane_pair(&p, PATIENCE_NS);
    uint64_t since = clock_now_ns();
    for (int i = 0; i < LANE_FLIGHT; i++) {
        struct lane_part lost = part_of(&p.from, 0, &part);
        assert_true(lanes->has_room(dead.out));
        lanes->send(dead.out, &lost);
    }
    assert_false(lanes->has_room(dead.out));
    world_run(&p.from, &(struct schedule){ .seed = 1 });  /* the blocks are free, and used again */
    send_part(&p, 2, &part);
    take_part(&p, 2, &part, false);
    await(dead.out, LANE_BROKEN);
    assert_true(clock_now_ns() - since < 10 * NS_PER_S);
    assert_int_equal(lanes->state(p.out), LANE_READY);
    lanes->close(dead.out);
    lanes->close(dead.in);
    for (int i = 0; i < 3 * LANE_SLOTS; i++) {
        send_part(&p, 2, &part);
        take_part(&p, 2, &part, i % 2);
    }
    assert_true(same_kv(&p, 2, 16));
    worlds_close(&p);
}

/* One that never joins, and one that joins and is then cut off by its own side. */
static void test_opening_ends_too(void **state)
{
    (void)state;
    struct pair p = { 0 };
    uint8_t name[LANE_NAME_BYTES];
    worlds(&p);
    struct lane *alone = open_end(&p.from, true, NULL, 300 * NS_PER_MS);
    struct lane *joins = open_end(&p.from, true, NULL, 300 * NS_PER_MS);
    await(joins, LANE_NAMED);
    lanes->name(joins, name);
    lanes->join(joins);
    await(alone, LANE_BROKEN);
    await(joins, LANE_BROKEN);
    lanes->close(alone);
    lanes->close(joins);
    struct lane *many[LANES_MAX], *more;
    struct lane_spec s = { .sends = true, .size = 2, .peer = 1, .deadline_ns = PATIENCE_NS };
    for (int i = 0; i < LANES_MAX; i++)
        for (uint64_t until = clock_now_ns() + PATIENCE_NS;
             lanes->open(p.from.self, &s, &many[i]) != OK; usleep(1000))
            assert_true(clock_now_ns() < until);
    assert_int_equal(lanes->open(p.from.self, &s, &more), ERR_FULL);
    worlds_close(&p);
}

static bool two_gpus(void)
{
    int count = 0;
    struct why why;
    return !cudaGetDeviceCount(&count) && count >= 2 && nccl_version(&why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "the same bytes, in order, some dropped", test_same_bytes_in_order, NULL, NULL, NULL },
        { "only the last layer is exposed", test_only_the_last_layer_is_exposed, NULL, NULL, NULL },
        { "a dead peer costs its own lane only", test_a_dead_peer_costs_its_lane_only, NULL, NULL,
          NULL },
        { "opening ends, whoever does not come", test_opening_ends_too, NULL, NULL, NULL },
    };
    if (!two_gpus()) {
        print_message("1..0 # SKIP two GPUs and NCCL are needed\n");
        return 0;
    }
    return cmocka_run_group_tests_name("lanes", tests, NULL, NULL);
}
