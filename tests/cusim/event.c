/* tests/cusim/event.c - events.
 *
 * As in CUDA, a wait for an event that was never recorded is no wait, and a later recording does
 * not change an earlier wait: the clocks then show what the missing order leads to.
 */
#include "stream.h"

struct mark_op {
    struct op op;
    struct mark *mark;
};

static bool run_record(struct op *op)
{
    return ((struct mark_op *)op)->mark->done = true;
}

static bool run_wait(struct op *op) { return ((struct mark_op *)op)->mark->done; }

static void mark_drop(struct mark *mark)
{
    if (mark && !--mark->users) free(mark);
}

static void release_mark(struct op *op) { mark_drop(((struct mark_op *)op)->mark); }

static const struct op_type record_type = {sizeof(struct mark_op), NULL, run_record, release_mark};
static const struct op_type wait_type = {sizeof(struct mark_op), NULL, run_wait, release_mark};

static void push_mark(cudaStream_t s, const struct op_type *type, struct mark *mark)
{
    struct mark_op *op = op_new(type);
    op->mark = mark;
    mark->users++;
    snprintf(op->op.what, sizeof op->op.what, type == &wait_type ? "event wait" : "event record");
    stream_push(s, &op->op);
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
    check_alive(e, "an event", "cudaEventDestroy");
    e->live = false;
    HOLD(&sim_mutex);
    mark_drop(e->mark);
    return sim_error(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    check_alive(e, "an event", "cudaEventRecord");
    stream_check(s, "cudaEventRecord");
    report_if(e->device != s->device, WRONG_DEVICE,
              "an event of device %d is recorded on device %d", e->device, s->device);
    HOLD(&sim_mutex);
    report_if(s->capture, NOT_MODELLED, "an event that is recorded in a capture");
    mark_drop(e->mark);
    clock_join(&s->clock, &host_clock);
    e->mark = must_alloc(sizeof *e->mark);
    *e->mark = (struct mark){.users = 1, .clock = s->clock};
    push_mark(s, &record_type, e->mark);
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    check_alive(e, "an event", "cudaStreamWaitEvent");
    stream_check(s, "cudaStreamWaitEvent");
    report_if(flags, NOT_MODELLED, "cudaStreamWaitEvent with flags %u", flags);
    HOLD(&sim_mutex);
    report_if(s->capture, ILLEGAL_IN_CAPTURE,
              "a captured stream waits for an event from outside the capture");
    if (e->mark) {
        clock_join(&s->clock, &e->mark->clock);
        push_mark(s, &wait_type, e->mark);
    }
    return sim_error(cudaSuccess);
}

/* For tests of what may overlap: is the last thing enqueued on `s` behind `e`'s last recording? */
bool cusim_behind(cudaStream_t s, cudaEvent_t e);
bool cusim_behind(cudaStream_t s, cudaEvent_t e)
{
    HOLD(&sim_mutex);
    bool behind = e->mark != NULL;
    for (int i = 0; behind && i < CLOCK_SLOTS; i++) {
        behind = s->clock.tick[i] >= e->mark->clock.tick[i];
    }
    return behind;
}

/* The host waits for the event, or asks; true when it has happened. */
static bool meet_event(cudaEvent_t e, const char *call, bool wait)
{
    check_alive(e, "an event", call);
    pthread_mutex_lock(&sim_mutex);
    struct mark *mark = e->mark;
    if (mark) mark->users++;            /* another thread may record the event anew */
    pthread_mutex_unlock(&sim_mutex);
    bool happened = !mark || (wait ? host_wait(NULL, mark, call) : host_ask(NULL, mark));
    pthread_mutex_lock(&sim_mutex);
    mark_drop(mark);
    pthread_mutex_unlock(&sim_mutex);
    return happened;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    meet_event(e, "cudaEventSynchronize", true);
    return sim_error(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    bool happened = meet_event(e, "cudaEventQuery", false);
    cudaError_t error = sim_error(cudaSuccess);
    return error || happened ? error : cudaErrorNotReady;
}
