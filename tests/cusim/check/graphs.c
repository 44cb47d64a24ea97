/* tests/cusim/check/graphs.c - faults of captures and graphs. */
#include "check.h"

static cudaGraphExec_t captured(int *from, int *to, cudaStream_t s)
{
    cudaGraph_t g;
    cudaGraphExec_t e;
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CK(k_fill(0, from, NULL, s));
    CK(k_copy(0, from, to, s));
    CK(cudaStreamEndCapture(s, &g));
    CK(cudaGraphInstantiate(&e, g, 0));
    CK(cudaGraphDestroy(g));
    return e;
}

/* Two graphs, again and again. 1: on two streams, with one buffer. */
static void launches(int bad)
{
    cudaStream_t s = new_stream(), x = new_stream();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b), *h = pinned(N * sizeof *h);
    cudaGraphExec_t e = captured(a, b, s), other = captured(b, a, x);
    for (int k = 0; k < 3; k++) {
        CK(cudaGraphLaunch(e, s));
        CK(cudaGraphLaunch(other, bad ? x : s));
        CK(cudaMemcpyAsync(h, b, N * sizeof *h, cudaMemcpyDeviceToHost, s));
        CK(cudaStreamSynchronize(s));
        EXPECT(h[11] == 11);
    }
    CK(cudaStreamSynchronize(x));
    CK(cudaGraphExecDestroy(e));
    CK(cudaGraphExecDestroy(other));
    CK(cudaFree(a));
    CK(cudaFree(b));
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
    cudaEvent_t outside = new_event();
    cudaGraph_t g;
    int *a = on_device(N * sizeof *a);
    void *p;
    CK(cudaEventRecord(outside, x));
    CK(cudaStreamSynchronize(x));
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CK(k_fill(0, a, NULL, s));
    switch (which) {
    case 0: CK(cudaStreamSynchronize(s)); break;
    case 1: CK(cudaMalloc(&p, 64)); break;
    case 2: CK(cudaStreamQuery(s)); break;
    case 3: CK(cudaStreamWaitEvent(s, outside, 0)); break;
    default: CK(cudaEventRecord(outside, s)); break;
    }
    CK(cudaStreamEndCapture(s, &g));
}

const struct row graph_rows[] = {
    {"two graphs are launched again and again", NULL, launches, 0, NULL},
    {"two graphs write one buffer on two streams", "race-between-streams", launches, 1, NULL},
    {"a graph reads new contents of a pinned buffer", NULL, replay, 0, NULL},
    {"a graph reads a pinned buffer that is gone", "graph-host-memory-gone", replay, 1, NULL},
    {"a graph's pinned buffer is written in flight", "pinned-buffer-in-flight", replay, 2, NULL},
    {"a graph is destroyed in flight", "graph-misuse", replay, 3, NULL},
    {"a wait for the stream in a capture", "illegal-in-capture", illegal, 0, NULL},
    {"memory is taken in a capture", "illegal-in-capture", illegal, 1, NULL},
    {"a captured stream is asked", "illegal-in-capture", illegal, 2, NULL},
    {"a capture waits for an outside event", "illegal-in-capture", illegal, 3, NULL},
    {"an event is recorded in a capture", "not-modelled", illegal, 4, NULL},
    {NULL, NULL, NULL, 0, NULL},
};
