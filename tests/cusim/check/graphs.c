/* tests/cusim/check/graphs.c - faults of captures and graphs. */
#include "check.h"

/* A step in two branches: fill a, copy it to b on the same stream; c is filled on the other. 1: the
 * branches write one buffer. */
static cudaGraph_t step(int bad, int *a, int *b, int *c, cudaStream_t s, cudaStream_t x)
{
    cudaGraph_t g;
    cudaEvent_t fork = new_event(), join = new_event();
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CK(cudaEventRecord(fork, s));
    CK(cudaStreamWaitEvent(x, fork, 0));
    CK(k_fill(0, a, NULL, s));
    CK(k_copy(0, a, b, s));
    CK(k_fill(1, bad ? b : c, NULL, x));
    CK(cudaEventRecord(join, x));
    CK(cudaStreamWaitEvent(s, join, 0));
    CK(cudaStreamEndCapture(s, &g));
    return g;
}

static void branches(int bad)
{
    cudaStream_t s = new_stream(), x = new_stream();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b), *c = on_device(N * sizeof *c);
    int *h = pinned(N * sizeof *h);
    cudaGraph_t g = step(bad, a, b, c, s, x);
    cudaGraphExec_t e;
    CK(cudaGraphInstantiate(&e, g, 0));
    for (int k = 0; k < 3; k++) {
        CK(cudaGraphLaunch(e, s));
        CK(cudaMemcpyAsync(h, b, N * sizeof *h, cudaMemcpyDeviceToHost, s));
        CK(cudaStreamSynchronize(s));
        EXPECT(h[11] == 11);
    }
    cudaGraph_t again = step(0, b, a, c, s, x);
    cudaGraphExec_t other;
    CK(cudaGraphInstantiate(&other, again, 0));
    CK(cudaGraphLaunch(e, s));
    CK(cudaGraphLaunch(other, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaGraphExecDestroy(e));
    CK(cudaGraphExecDestroy(other));
    CK(cudaGraphDestroy(g));
    CK(cudaGraphDestroy(again));
    CK(cudaFree(a));
    CK(cudaFree(b));
    CK(cudaFree(c));
    CK(cudaFreeHost(h));
}

/* A graph that copies from a pinned buffer: 0 new contents each time; 1 the buffer was given back
 * and another taken; 2 the contents change while a launch may run; 3 destroyed while it may run.
 * */
static void replay(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *h = pinned(N * sizeof *h), *out = pinned(N * sizeof *out);
    cudaGraph_t g;
    cudaGraphExec_t e;
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CK(cudaMemcpyAsync(a, h, N * sizeof *h, cudaMemcpyHostToDevice, s));
    CK(cudaMemcpyAsync(out, a, N * sizeof *h, cudaMemcpyDeviceToHost, s));
    CK(cudaStreamEndCapture(s, &g));
    CK(cudaGraphInstantiate(&e, g, 0));
    CK(cudaGraphDestroy(g));
    if (bad == 1) {
        CK(cudaFreeHost(h));
        h = pinned(N * sizeof *h);
    }
    for (int k = 1; k < 4; k++) {
        h[3] = k;
        CK(cudaGraphLaunch(e, s));
        if (bad == 2) h[3] = 0;
        if (bad == 3) CK(cudaGraphExecDestroy(e));
        CK(cudaStreamSynchronize(s));
        EXPECT(out[3] == k);
    }
    CK(cudaGraphExecDestroy(e));
    CK(cudaFree(a));
    CK(cudaFreeHost(h));
    CK(cudaFreeHost(out));
}

static void illegal(int which)
{
    cudaStream_t s = new_stream(), x = new_stream();
    cudaEvent_t e = new_event(), outside = new_event();
    cudaGraph_t g;
    int *a = on_device(N * sizeof *a);
    void *p;
    CK(cudaEventRecord(outside, x));
    CK(cudaStreamSynchronize(x));
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CK(k_fill(0, a, NULL, s));
    CK(cudaEventRecord(e, s));
    switch (which) {
    case 0: CK(cudaStreamSynchronize(s)); break;
    case 1: CK(cudaMalloc(&p, 64)); break;
    case 2: CK(cudaStreamQuery(s)); break;
    case 3: CK(cudaEventSynchronize(e)); break;
    case 4: CK(cudaStreamWaitEvent(s, outside, 0)); break;
    default:
        CK(cudaStreamWaitEvent(x, e, 0));
        CK(k_fill(0, a, NULL, x));
        break;
    }
    CK(cudaStreamEndCapture(s, &g));
}

const struct row graph_rows[] = {
    {"a graph of two branches is launched again and again", NULL, branches, 0, NULL},
    {"two branches of a graph write one buffer", "race-between-streams", branches, 1, NULL},
    {"a graph reads new contents of a pinned buffer", NULL, replay, 0, NULL},
    {"a graph reads a pinned buffer that is gone", "graph-host-memory-gone", replay, 1, NULL},
    {"a graph's pinned buffer is written in flight", "pinned-buffer-in-flight", replay, 2, NULL},
    {"a graph is destroyed in flight", "graph-misuse", replay, 3, NULL},
    {"a wait for the stream in a capture", "illegal-in-capture", illegal, 0, NULL},
    {"memory is taken in a capture", "illegal-in-capture", illegal, 1, NULL},
    {"a captured stream is asked", "illegal-in-capture", illegal, 2, NULL},
    {"a wait for an event in its capture", "illegal-in-capture", illegal, 3, NULL},
    {"a capture waits for an outside event", "illegal-in-capture", illegal, 4, NULL},
    {"a capture ends with a branch open", "illegal-in-capture", illegal, 5, NULL},
    {NULL, NULL, NULL, 0, NULL},
};
