/* tests/cusim/graph.c - captures, graphs, and their launches.
 *
 * A graph is the list of what was captured from one stream, in the order of the calls; a launch
 * enqueues copies of it.  Captures that fork into other streams are not modelled.
 */
#include "stream.h"

struct CUgraph_st {
    struct op **ops;
    uint32_t count;
    int users;                          /* itself and instantiations */
    bool live;
    bool restricts;                     /* nothing is allocated while it is captured */
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
    op_id last_launch;
    bool live;
};

static int restricting;                 /* captures */

static void release_graph(struct CUgraph_st *g)
{
    if (--g->users) return;
    for (uint32_t k = 0; k < g->count; k++) op_free(g->ops[k]);
    free(g->ops);
    g->ops = NULL;
}

void capture_add(cudaStream_t s, struct op *op)
{
    struct CUgraph_st *g = s->capture;
    report_if(op->type == &nccl_op_type, NOT_MODELLED, "NCCL in a capture");
    APPEND(g->ops, g->count) = op;
}

void capture_forbids(cudaStream_t s, const char *call)
{
    stream_check(s, call);
    report_if(s->capture, ILLEGAL_IN_CAPTURE, "%s on a stream that is captured", call);
}

void capture_forbids_any(const char *call)
{
    sim_open();
    HOLD(&sim_mutex);
    report_if(restricting, ILLEGAL_IN_CAPTURE, "%s while a stream is captured", call);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    capture_forbids(s, "cudaStreamBeginCapture");
    struct CUgraph_st *g = must_alloc(sizeof *g);
    *g = (struct CUgraph_st){.users = 1, .live = true,
                             .restricts = mode != cudaStreamCaptureModeRelaxed};
    HOLD(&sim_mutex);
    restricting += g->restricts;
    s->capture = g;
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    stream_check(s, "cudaStreamEndCapture");
    launches_checked("cudaStreamEndCapture");
    struct CUgraph_st *g = *out = s->capture;
    report_if(!g, ILLEGAL_IN_CAPTURE, "cudaStreamEndCapture on a stream that began no capture");
    HOLD(&sim_mutex);
    s->capture = NULL;
    restricting -= g->restricts;
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    check_alive(g, "a graph", "cudaGraphDestroy");
    g->live = false;
    release_graph(g);
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags)
{
    check_alive(g, "a graph", "cudaGraphInstantiate");
    report_if(flags, NOT_MODELLED, "cudaGraphInstantiate with flags %llu", flags);
    struct CUgraphExec_st *e = must_alloc(sizeof *e);
    e->graph = g;
    e->live = true;
    g->users++;
    *out = e;
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    check_alive(e, "a graph", "cudaGraphExecDestroy");
    HOLD(&sim_mutex);
    report_if(!clock_before(e->last_launch, &host_clock), GRAPH_MISUSE,
              "cudaGraphExecDestroy while a launch of it may still run");
    e->live = false;
    release_graph(e->graph);
    return sim_error(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    check_alive(e, "a graph", "cudaGraphLaunch");
    capture_forbids(s, "cudaGraphLaunch");
    HOLD(&sim_mutex);
    for (uint32_t k = 0; k < e->graph->count; k++) {
        const struct op *captured = e->graph->ops[k];
        struct op *op = must_alloc(captured->type->bytes);
        memcpy(op, captured, captured->type->bytes);
        op->copied = true;
        e->last_launch = stream_push(s, op);
    }
    return sim_error(cudaSuccess);
}
