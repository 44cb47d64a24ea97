/* tests/cusim/graph.c - captures, graphs, and their launches.
 *
 * A node is an operation that was not enqueued, and the nodes before it.  Nodes captured from one
 * stream form a branch, which has a clock slot in each instantiation.  A launch gives every node a
 * clock and copies of the operation, then runs the nodes in a random order that their edges allow:
 * an order that an edge does not force is found out by the clocks, as with streams.
 */
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "stream.h"

enum { BRANCHES = 16, TIPS = 32 };

struct node {
    struct op *op;                      /* NULL: only joins others */
    int branch, before_count, *before;
};

struct CUgraph_st {
    struct node *nodes;
    int count, branches, users;         /* users: itself and instantiations */
    bool live;
};

struct member {
    cudaStream_t stream;
    int tips[TIPS], tip_count;          /* what the next node of this stream comes after */
};

struct capture {
    struct CUgraph_st *graph;
    struct member members[BRANCHES];    /* the first began it */
    int member_count;
    bool ended, restricts;              /* restricts: nothing is allocated meanwhile */
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
    int slots[BRANCHES];
    uint64_t launched, done;
    struct clock last;                  /* of the last launch: launches of one are in order */
    op_id last_launch;
    bool live;
};

static int restricting;                 /* captures */

static void release_graph(struct CUgraph_st *g)
{
    if (--g->users) return;
    for (int k = 0; k < g->count; k++) {
        if (g->nodes[k].op) op_free(g->nodes[k].op);
        free(g->nodes[k].before);
    }
    free(g->nodes);
    g->nodes = NULL;
}

static struct member *member_of(struct capture *c, cudaStream_t s)
{
    for (int k = 0; k < c->member_count; k++) {
        if (c->members[k].stream == s) return &c->members[k];
    }
    if (c->member_count == BRANCHES) report(NOT_MODELLED, "a capture of more than %d streams",
                                            BRANCHES);
    c->members[c->member_count].stream = s;
    return &c->members[c->member_count++];
}

static int add_node(struct capture *c, struct member *m, struct op *op)
{
    struct CUgraph_st *g = c->graph;
    g->nodes = must_grow(g->nodes, (size_t)g->count, sizeof *g->nodes);
    struct node *n = &g->nodes[g->count];
    n->op = op;
    n->branch = (int)(m - c->members);
    n->before_count = m->tip_count;
    n->before = must_alloc((size_t)m->tip_count * sizeof(int));
    memcpy(n->before, m->tips, (size_t)m->tip_count * sizeof(int));
    m->tips[0] = g->count;
    m->tip_count = 1;
    return g->count++;
}

void capture_add(cudaStream_t s, struct op *op)
{
    if (op->type == &nccl_op_type) report(NOT_MODELLED, "NCCL in a capture");
    add_node(s->capture, member_of(s->capture, s), op);
}

void capture_record(cudaStream_t s, struct mark *mark)
{
    mark->capture = s->capture;
    mark->node = add_node(s->capture, member_of(s->capture, s), NULL);
}

void capture_wait(cudaStream_t s, struct mark *mark)
{
    if (!mark->capture) {
        report(CAPTURE, "a captured stream waits for an event from outside the capture");
    }
    if (mark->capture->ended) report(CAPTURE, "a wait for an event of a capture that has ended");
    if (s->capture && s->capture != mark->capture) report(CAPTURE, "two captures are joined");
    if (!s->capture && s->head) {
        report(CAPTURE, "a stream that has work joins a capture");
    }
    s->capture = mark->capture;
    struct member *m = member_of(s->capture, s);
    if (m->tip_count == TIPS) report(NOT_MODELLED, "a node after more than %d", TIPS);
    m->tips[m->tip_count++] = mark->node;
}

void capture_forbids(cudaStream_t s, const char *call)
{
    if (s->capture) report(CAPTURE, "%s on a stream that is captured", call);
}

void capture_forbids_any(const char *call)
{
    sim_lock();
    if (restricting) report(CAPTURE, "%s while a stream is captured", call);
    sim_unlock();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    stream_check(s, "cudaStreamBeginCapture");
    capture_forbids(s, "cudaStreamBeginCapture");
    struct capture *c = must_alloc(sizeof *c);
    c->graph = must_alloc(sizeof *c->graph);
    *c->graph = (struct CUgraph_st){.users = 1, .live = true};
    c->restricts = mode != cudaStreamCaptureModeRelaxed;
    sim_lock();
    restricting += c->restricts;
    s->capture = c;
    member_of(c, s);
    sim_unlock();
    return sim_error(cudaSuccess);
}

/* Marks all that come before node `at`. */
static void mark_before(const struct CUgraph_st *g, int at, bool *seen)
{
    if (seen[at]) return;
    seen[at] = true;
    const struct node *n = &g->nodes[at];
    for (int k = 0; k < n->before_count; k++) mark_before(g, n->before[k], seen);
}

static void check_joined(const struct capture *c)
{
    bool *seen = must_alloc((size_t)c->graph->count + 1);
    const struct member *first = &c->members[0];
    for (int k = 0; k < first->tip_count; k++) mark_before(c->graph, first->tips[k], seen);
    for (int m = 1; m < c->member_count; m++) {
        for (int k = 0; k < c->members[m].tip_count; k++) {
            if (seen[c->members[m].tips[k]]) continue;
            report(CAPTURE, "the capture ends before a stream that it forked into was joined");
        }
    }
    free(seen);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    stream_check(s, "cudaStreamEndCapture");
    launches_checked("cudaStreamEndCapture");
    struct capture *c = s->capture;
    if (!c || c->members[0].stream != s) {
        report(CAPTURE, "cudaStreamEndCapture on a stream that began no capture");
    }
    sim_lock();
    check_joined(c);
    for (int m = 0; m < c->member_count; m++) c->members[m].stream->capture = NULL;
    c->graph->branches = c->member_count;
    c->ended = true;
    restricting -= c->restricts;
    sim_unlock();
    *out = c->graph;
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    if (!g || !g->live) report(DEAD_HANDLE, "cudaGraphDestroy of a graph that was destroyed");
    g->live = false;
    release_graph(g);
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags)
{
    if (!g || !g->live) report(DEAD_HANDLE, "cudaGraphInstantiate of a graph that was destroyed");
    if (flags) report(NOT_MODELLED, "cudaGraphInstantiate with flags %llu", flags);
    struct CUgraphExec_st *e = must_alloc(sizeof *e);
    e->graph = g;
    e->live = true;
    g->users++;
    sim_lock();
    for (int k = 0; k < g->branches; k++) e->slots[k] = clock_new_slot();
    sim_unlock();
    *out = e;
    return sim_error(cudaSuccess);
}

static void exec_check(cudaGraphExec_t e, const char *call)
{
    if (!e || !e->live) report(DEAD_HANDLE, "%s of a graph that was destroyed", call);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    exec_check(e, "cudaGraphExecDestroy");
    sim_lock();
    if (!clock_before(e->last_launch, &host_clock)) {
        report(GRAPH_MISUSE, "cudaGraphExecDestroy while a launch of it may still run");
    }
    e->live = false;
    for (int k = 0; k < e->graph->branches; k++) clock_give_slot(e->slots[k]);
    release_graph(e->graph);
    sim_unlock();
    return sim_error(cudaSuccess);
}

/* A launch: one operation of its stream, which holds a copy of every node's. */
struct graph_op {
    struct op op;
    cudaGraphExec_t exec;
    struct CUgraph_st *graph;
    uint64_t number;                    /* launches of one instantiation run in this order */
    struct op **copies;                 /* one per node; NULL for joins */
    struct clock *clocks;               /* one per node, at launch */
};

static void copy_node(struct graph_op *launch, int k)
{
    const struct node *n = &launch->graph->nodes[k];
    struct clock *clock = &launch->clocks[k];
    *clock = launch->op.clock;
    for (int d = 0; d < n->before_count; d++) clock_join(clock, &launch->clocks[n->before[d]]);
    if (!n->op) return;
    struct op *op = must_alloc(n->op->type->bytes);
    memcpy(op, n->op, n->op->type->bytes);
    op->copied = true;
    op->stream = launch->op.stream;
    op->id = clock_new_op(clock, launch->exec->slots[n->branch], op->what);
    op->clock = *clock;
    if (op->type->prepare) op->type->prepare(op);
    launch->copies[k] = op;
}

static bool run_graph(struct op *op)
{
    struct graph_op *launch = (struct graph_op *)op;
    const struct CUgraph_st *g = launch->graph;
    static uint64_t seed = 88172645463325252u;
    if (launch->exec->done + 1 != launch->number) return false;
    int *left = must_alloc((size_t)g->count * sizeof(int));     /* nodes before it; -1: has run */
    int *ready = must_alloc((size_t)g->count * sizeof(int)), ready_count = 0;
    for (int k = 0; k < g->count; k++) {
        left[k] = g->nodes[k].before_count;
        if (!left[k]) ready[ready_count++] = k;
    }
    while (ready_count) {
        int at = (int)(next_random(&seed) % (uint64_t)ready_count), k = ready[at];
        ready[at] = ready[--ready_count];
        struct op *node = launch->copies[k];
        if (node) {
            place.op = node->what;
            node->type->run(node);
        }
        for (int n = k + 1; n < g->count; n++) {
            for (int d = 0; d < g->nodes[n].before_count; d++) {
                if (g->nodes[n].before[d] == k && !--left[n]) ready[ready_count++] = n;
            }
        }
    }
    free(left);
    free(ready);
    launch->exec->done++;
    return true;
}

static void release_launch(struct op *op)
{
    struct graph_op *launch = (struct graph_op *)op;
    for (int k = 0; k < launch->graph->count; k++) {
        if (launch->copies[k]) op_free(launch->copies[k]);
    }
    free(launch->copies);
    free(launch->clocks);
    release_graph(launch->graph);
}

static const struct op_type graph_type = {sizeof(struct graph_op), NULL, run_graph,
                                          release_launch};

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    exec_check(e, "cudaGraphLaunch");
    stream_check(s, "cudaGraphLaunch");
    capture_forbids(s, "cudaGraphLaunch");
    struct graph_op *launch = op_new(&graph_type);
    size_t n = (size_t)e->graph->count;
    launch->copies = must_alloc(n * sizeof(struct op *));
    launch->clocks = must_alloc(n * sizeof(struct clock));
    strcpy(launch->op.what, "graph launch");
    launch->op.stream = s;
    sim_lock();
    launch->exec = e;
    launch->graph = e->graph;
    launch->number = ++e->launched;
    e->graph->users++;
    clock_join(&s->clock, &host_clock);
    clock_join(&s->clock, &e->last);
    launch->op.id = clock_new_op(&s->clock, s->slot, launch->op.what);
    launch->op.clock = s->clock;
    e->last_launch = launch->op.id;
    for (int k = 0; k < e->graph->count; k++) {
        copy_node(launch, k);
        clock_join(&s->clock, &launch->clocks[k]);
    }
    e->last = s->clock;
    stream_push(s, &launch->op);
    sim_unlock();
    return sim_error(cudaSuccess);
}
