/* tests/cusim/graph.c - captures, graphs, and their launches.
 *
 * A graph is the list of what was captured, in the order of the calls: operations, records of
 * events and waits for them.  What came from one stream is a branch.  An instantiation has a stream
 * of its own for each branch; a launch enqueues copies there, so that branches run in a random
 * order that the events allow, and an order that is missing is found out by the clocks.
 */
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "stream.h"

enum { BRANCHES = 16 };

struct node {
    int branch;
    struct op *op;                      /* NULL: an event is recorded or waited for */
    int record;                         /* wait for the event of this node; -1: record one */
};

struct CUgraph_st {
    struct node *nodes;
    int count, branches, users;         /* users: itself and instantiations */
    bool live;
};

struct capture {
    struct CUgraph_st *graph;
    cudaStream_t members[BRANCHES];     /* the first began it */
    struct clock clocks[BRANCHES];      /* tick[b]: nodes of branch b that come before the next */
    bool ended, restricts;              /* restricts: nothing is allocated meanwhile */
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
    cudaStream_t streams[BRANCHES];
    op_id last_launch;
    bool live;
};

static int restricting;                 /* captures */

static void release_graph(struct CUgraph_st *g)
{
    if (--g->users) return;
    for (int k = 0; k < g->count; k++) {
        if (g->nodes[k].op) op_free(g->nodes[k].op);
    }
    free(g->nodes);
    g->nodes = NULL;
}

static int branch_of(struct capture *c, cudaStream_t s)
{
    struct CUgraph_st *g = c->graph;
    for (int b = 0; b < g->branches; b++) {
        if (c->members[b] == s) return b;
    }
    if (g->branches == BRANCHES) {
        report(NOT_MODELLED, "a capture of more than %d streams", BRANCHES);
    }
    c->members[g->branches] = s;
    return g->branches++;
}

static int add_node(struct capture *c, int branch, struct op *op, int record)
{
    struct CUgraph_st *g = c->graph;
    g->nodes = must_grow(g->nodes, (size_t)g->count, sizeof *g->nodes);
    g->nodes[g->count] = (struct node){branch, op, record};
    c->clocks[branch].tick[branch]++;
    return g->count++;
}

void capture_add(cudaStream_t s, struct op *op)
{
    if (op->type == &nccl_op_type) report(NOT_MODELLED, "NCCL in a capture");
    add_node(s->capture, branch_of(s->capture, s), op, -1);
}

void capture_record(cudaStream_t s, struct mark *mark)
{
    int branch = branch_of(s->capture, s);
    mark->capture = s->capture;
    mark->node = add_node(s->capture, branch, NULL, -1);
    mark->clock = s->capture->clocks[branch];
}

void capture_wait(cudaStream_t s, struct mark *mark)
{
    if (!mark->capture) {
        report(ILLEGAL_IN_CAPTURE, "a captured stream waits for an event from outside the capture");
    }
    if (mark->capture->ended) {
        report(ILLEGAL_IN_CAPTURE, "a wait for an event of a capture that has ended");
    }
    if (s->capture && s->capture != mark->capture) {
        report(ILLEGAL_IN_CAPTURE, "two captures are joined");
    }
    if (!s->capture && s->head) {
        report(ILLEGAL_IN_CAPTURE, "a stream that has work joins a capture");
    }
    s->capture = mark->capture;
    int branch = branch_of(s->capture, s);
    clock_join(&s->capture->clocks[branch], &mark->clock);
    add_node(s->capture, branch, NULL, mark->node);
}

void capture_forbids(cudaStream_t s, const char *call)
{
    if (s->capture) report(ILLEGAL_IN_CAPTURE, "%s on a stream that is captured", call);
}

void capture_forbids_any(const char *call)
{
    sim_lock();
    if (restricting) report(ILLEGAL_IN_CAPTURE, "%s while a stream is captured", call);
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
    branch_of(c, s);
    sim_unlock();
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    stream_check(s, "cudaStreamEndCapture");
    launches_checked("cudaStreamEndCapture");
    struct capture *c = s->capture;
    if (!c || c->members[0] != s) {
        report(ILLEGAL_IN_CAPTURE, "cudaStreamEndCapture on a stream that began no capture");
    }
    sim_lock();
    for (int b = 0; b < c->graph->branches; b++) {
        c->members[b]->capture = NULL;
        if (c->clocks[0].tick[b] == c->clocks[b].tick[b]) continue;
        report(ILLEGAL_IN_CAPTURE,
               "the capture ends before a stream that it forked into was joined");
    }
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
    for (int b = 0; b < g->branches; b++) e->streams[b] = stream_open();
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
    bool known = clock_before(e->last_launch, &host_clock);
    sim_unlock();
    if (!known) report(GRAPH_MISUSE, "cudaGraphExecDestroy while a launch of it may still run");
    e->live = false;
    for (int b = 0; b < e->graph->branches; b++) stream_close(e->streams[b]);
    release_graph(e->graph);
    return sim_error(cudaSuccess);
}

static void launch_node(const struct node *n, cudaStream_t s, struct mark **marks, int k)
{
    if (n->op) {
        struct op *op = must_alloc(n->op->type->bytes);
        memcpy(op, n->op, n->op->type->bytes);
        op->copied = true;
        stream_push(s, op);
    } else if (n->record < 0) {
        marks[k] = mark_record(s);
    } else {
        mark_wait(s, marks[n->record]);
    }
}

/* The branches wait for the stream, which waits for them. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    exec_check(e, "cudaGraphLaunch");
    stream_check(s, "cudaGraphLaunch");
    capture_forbids(s, "cudaGraphLaunch");
    const struct CUgraph_st *g = e->graph;
    struct mark **marks = must_alloc((size_t)g->count * sizeof *marks);
    sim_lock();
    clock_join(&s->clock, &host_clock);
    struct mark *begin = mark_record(s);
    for (int b = 0; b < g->branches; b++) mark_wait(e->streams[b], begin);
    mark_drop(begin);
    for (int k = 0; k < g->count; k++) {
        launch_node(&g->nodes[k], e->streams[g->nodes[k].branch], marks, k);
    }
    for (int b = 0; b < g->branches; b++) {
        struct mark *end = mark_record(e->streams[b]);
        e->last_launch = mark_wait(s, end);
        mark_drop(end);
    }
    for (int k = 0; k < g->count; k++) mark_drop(marks[k]);
    sim_unlock();
    free(marks);
    return sim_error(cudaSuccess);
}
