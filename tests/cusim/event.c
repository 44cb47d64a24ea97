/* tests/cusim/event.c - events and host functions of streams.
 *
 * As in CUDA, a wait for an event that was never recorded is no wait, and a later recording does
 * not change an earlier wait: the clocks then show what the missing order leads to.
 */
#include <stdlib.h>

#include "report.h"
#include "stream.h"

struct mark_op {
    struct op op;
    struct mark *mark;                  /* marks are never freed: events outlive their waits */
};

static bool run_record(struct op *op)
{
    return ((struct mark_op *)op)->mark->done = true;
}

static bool run_wait(struct op *op) { return ((struct mark_op *)op)->mark->done; }

static const struct op_type record_type = {sizeof(struct mark_op), NULL, run_record, NULL};
static const struct op_type wait_type = {sizeof(struct mark_op), NULL, run_wait, NULL};

static void event_check(cudaEvent_t e, const char *call)
{
    sim_open();
    if (!e || !e->live) report(DEAD_HANDLE, "%s on an event that was destroyed", call);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    sim_open();
    struct CUevent_st *e = must_alloc(sizeof *e);
    *e = (struct CUevent_st){.live = true, .device = current_device()};
    *out = e;
    return sim_error(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    event_check(e, "cudaEventDestroy");
    e->live = false;
    return sim_error(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    event_check(e, "cudaEventRecord");
    stream_check(s, "cudaEventRecord");
    if (e->device != s->device) {
        report(WRONG_DEVICE, "an event of device %d is recorded on device %d", e->device,
               s->device);
    }
    struct mark *mark = must_alloc(sizeof *mark);
    sim_lock();
    e->mark = mark;
    if (s->capture) {
        capture_record(s, mark);
        sim_unlock();
        return sim_error(cudaSuccess);
    }
    clock_join(&s->clock, &host_clock);
    mark->clock = s->clock;
    sim_unlock();
    struct mark_op *op = op_new(&record_type);
    op->mark = mark;
    stream_add(s, &op->op, "event record");
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    event_check(e, "cudaStreamWaitEvent");
    stream_check(s, "cudaStreamWaitEvent");
    if (flags) report(NOT_MODELLED, "cudaStreamWaitEvent with flags %u", flags);
    struct mark *mark = e->mark;
    if (!mark) return sim_error(cudaSuccess);
    sim_lock();
    if (mark->capture || s->capture) {
        capture_wait(s, mark);
        sim_unlock();
        return sim_error(cudaSuccess);
    }
    clock_join(&s->clock, &mark->clock);
    sim_unlock();
    struct mark_op *op = op_new(&wait_type);
    op->mark = mark;
    stream_add(s, &op->op, "event wait");
    return sim_error(cudaSuccess);
}

/* For tests of what may overlap: is the last thing enqueued on `s` behind `e`'s last recording? */
bool cusim_behind(cudaStream_t s, cudaEvent_t e);
bool cusim_behind(cudaStream_t s, cudaEvent_t e)
{
    bool behind = e->mark != NULL;
    sim_lock();
    for (int i = 0; behind && i < CLOCK_SLOTS; i++)
        behind = s->clock.tick[i] >= e->mark->clock.tick[i];
    sim_unlock();
    return behind;
}

static void not_captured(cudaEvent_t e, const char *call)
{
    event_check(e, call);
    if (e->mark && e->mark->capture) report(CAPTURE, "%s on an event of a capture", call);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    not_captured(e, "cudaEventSynchronize");
    if (e->mark) host_wait(NULL, e->mark, "cudaEventSynchronize");
    return sim_error(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    not_captured(e, "cudaEventQuery");
    cudaError_t error = sim_error(cudaSuccess);
    if (error || !e->mark || host_ask(NULL, e->mark)) return error;
    return cudaErrorNotReady;
}

/* A host function sees what its stream has done before it. */
struct host_op {
    struct op op;
    cudaHostFn_t function;
    void *data;
};

static bool run_host(struct op *op)
{
    struct host_op *h = (struct host_op *)op;
    sim_lock();
    transfers_settle(&op->clock);
    sim_unlock();
    h->function(h->data);
    return true;
}

static const struct op_type host_type = {sizeof(struct host_op), NULL, run_host, NULL};

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void *data)
{
    stream_check(s, "cudaLaunchHostFunc");
    struct host_op *op = op_new(&host_type);
    op->function = function;
    op->data = data;
    stream_add(s, &op->op, "host function");
    return sim_error(cudaSuccess);
}
