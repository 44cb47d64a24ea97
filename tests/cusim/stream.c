/* tests/cusim/stream.c - see stream.h. */
#include "stream.h"

#include <stdarg.h>
#include <time.h>

#include "exec.h"

pthread_mutex_t sim_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct CUstream_st *streams;
static int devices, waiting_hosts[DEVICES_MAX];
static bool no_driver;
static uint64_t seed, pushed, progress, patience;
static cudaError_t fault;
struct clock host_clock;
static _Thread_local int device_now;
static _Thread_local cudaError_t last_error;
_Thread_local const char *unchecked_launch;

int sim_devices(void) { return devices; }
bool sim_no_driver(void) { return no_driver; }
int current_device(void) { return device_now; }
bool sim_faulted(void) { return fault != cudaSuccess; }

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void sim_fault(cudaError_t e)
{
    if (!fault) fault = e;
}

cudaError_t sim_error(cudaError_t e)
{
    if (fault) e = fault;
    if (e) last_error = e;
    return e;
}

/* The device thread. */

static void finish(struct CUstream_st *s)
{
    struct op *op = s->head;
    s->head = op->next;
    if (!s->head) s->tail = &s->head;
    s->done++;
    progress++;
    op_free(op);
    pthread_cond_broadcast(&done);
}

/* Runs one head that can run; *waits: some head asked to be asked again. */
static bool run_one(bool *waits)
{
    int count = 0;
    for (struct CUstream_st *s = streams; s; s = s->next) count++;
    int first = count ? (int)(next_random(&seed) % (uint64_t)count) : 0;
    for (int k = 0; k < count; k++) {
        struct CUstream_st *s = streams;
        for (int n = (first + k) % count; n && s; n--) s = s->next;
        struct op *op = s ? s->head : NULL;     /* streams may have ended meanwhile */
        if (!op) continue;
        pthread_mutex_unlock(&sim_mutex);
        place = (struct place){.op = op->what};
        bool ended = op->type->run(op);
        place = (struct place){0};
        pthread_mutex_lock(&sim_mutex);
        if (ended) {
            finish(s);
            return true;
        }
        op->waits = true;
        *waits |= op->type == &nccl_op_type;
    }
    return false;
}

static struct timespec from_now(clockid_t clock, long nanoseconds)
{
    struct timespec t;
    clock_gettime(clock, &t);
    t.tv_nsec += nanoseconds % 1000000000;
    t.tv_sec += nanoseconds / 1000000000 + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void *device_thread(void *unused)
{
    long pause = 20000;
    pthread_mutex_lock(&sim_mutex);
    for (;;) {
        bool waits = false;
        uint64_t before = pushed;
        if (run_one(&waits)) {
            pause = 20000;
        } else if (pushed != before) {  /* while it looked, at a stream that it had passed */
            continue;
        } else if (waits) {             /* peers are other processes: look again soon */
            struct timespec t = from_now(CLOCK_REALTIME, pause);
            pthread_cond_timedwait(&work, &sim_mutex, &t);
            if (pause < 1000000) pause *= 2;
        } else {
            pthread_cond_wait(&work, &sim_mutex);
        }
    }
    return unused;
}

void stream_poke(void)
{
    HOLD(&sim_mutex);
    pthread_cond_signal(&work);
}

bool device_is_stuck(int device)
{
    HOLD(&sim_mutex);
    bool stuck = waiting_hosts[device] > 0;
    for (struct CUstream_st *s = streams; s && stuck; s = s->next) {
        if (s->device != device || !s->head) continue;
        stuck = s->head->waits;
    }
    return stuck;
}

void stream_list(void)
{
    for (const struct CUstream_st *s = streams; s; s = s->next) {
        if (!s->head) continue;
        report_note("cusim:   device %d, stream %d: %lu operations, first: %s", s->device, s->slot,
                    s->enqueued - s->done, s->head->what);
    }
}

/* Start and end. */

static void at_exit(void)
{
    fflush(stdout);
    if (fault) return;
    stats_write();
    launches_checked("the end of the program");
    const struct region *r = memory_leak();
    if (r) {
        char device[32];
        snprintf(device, sizeof device, "of device %d", r->device);
        report(LEAK_AT_EXIT, "%lu bytes %s were not given back", r->end - r->start,
               r->device == PINNED ? "of pinned memory" : device);
    }
    for (const struct CUstream_st *s = streams; s; s = s->next) {
        report_if(s->live && s->head, LEAK_AT_EXIT, "a stream has work at the end: %s",
                  s->head->what);
    }
}

static void open_once(void)
{
    no_driver = !strcmp(setting("CUSIM_DEVICES", ""), "none");
    devices = no_driver ? 0 : (int)setting_number("CUSIM_DEVICES", 8);
    if (devices > DEVICES_MAX) devices = DEVICES_MAX;
    seed = setting_number("CUSIM_SEED", 1) * 0x2545f4914f6cdd1du;
    patience = setting_number("CUSIM_PATIENCE", 60);
    memory_open(devices, setting_number("CUSIM_MEMORY", 8ull << 30));
    atexit(at_exit);
    pthread_t thread;
    report_if(pthread_create(&thread, NULL, device_thread, NULL), NOT_MODELLED,
              "no thread for the devices");
    pthread_detach(thread);
}

void sim_open(void) { pthread_once(&once, open_once); }

/* Operations. */

void *op_new(const struct op_type *type)
{
    struct op *op = must_alloc(type->bytes);
    op->type = type;
    return op;
}

void op_free(struct op *op)
{
    if (op->type->release && !op->copied) op->type->release(op);
    free(op);
}

struct toucher op_toucher(const struct op *op)
{
    return (struct toucher){.op = op->id, .clock = &op->clock, .device = op->stream->device};
}

op_id stream_push(cudaStream_t s, struct op *op)
{
    clock_join(&s->clock, &host_clock);
    op->stream = s;
    op->id = clock_new_op(&s->clock, s->slot, op->what);
    op->clock = s->clock;
    if (op->type->prepare) op->type->prepare(op);
    *s->tail = op;
    s->tail = &op->next;
    s->enqueued++;
    pushed++;
    pthread_cond_signal(&work);
    return op->id;
}

void stream_check(cudaStream_t s, const char *call)
{
    sim_open();
    report_if(!s || s == cudaStreamLegacy || s == cudaStreamPerThread, DEFAULT_STREAM,
              "%s on the default stream", call);
    check_alive(s, "a stream", call);
    report_if(s->device != device_now, WRONG_DEVICE,
              "%s on a stream of device %d while device %d is current", call, s->device,
              device_now);
}

void stream_add(cudaStream_t s, struct op *op, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(op->what, sizeof op->what, fmt, args);
    va_end(args);
    op->stream = s;
    HOLD(&sim_mutex);
    if (s->capture) capture_add(s, op);
    else stream_push(s, op);
}

/* The host. */

static void host_learns(const struct clock *clock)
{
    clock_join(&host_clock, clock);
    transfers_settle(&host_clock);
}

void launches_checked(const char *call)
{
    report_if(unchecked_launch, LAUNCH_NOT_CHECKED,
              "%s, and no cudaGetLastError since the launch of %s", call, unchecked_launch);
}

/* Until stream `s` has done all it has now, or the mark is done; false when the device ended. */
bool host_wait(cudaStream_t s, const struct mark *mark, const char *call)
{
    launches_checked(call);
    HOLD(&sim_mutex);
    int device = device_now;
    uint64_t target = s ? s->enqueued : 0, seen = progress;
    struct clock clock = s ? s->clock : mark->clock;
    double until = seconds_now() + (double)patience;
    waiting_hosts[device]++;
    pthread_cond_signal(&work);
    while (!fault && (s ? s->done < target : !mark->done)) {
        struct timespec t = from_now(CLOCK_REALTIME, 200000000);
        pthread_cond_timedwait(&done, &sim_mutex, &t);
        if (progress != seen) {
            seen = progress;
            until = seconds_now() + (double)patience;
        } else if (seconds_now() > until) {
            stream_list();
            report(NO_PROGRESS, "nothing moved for %lu s while the host waited in %s", patience,
                   call);
        }
    }
    waiting_hosts[device]--;
    if (!fault) host_learns(&clock);
    return !fault;
}

bool host_ask(cudaStream_t s, const struct mark *mark)
{
    HOLD(&sim_mutex);
    bool is_done = s ? s->done == s->enqueued : mark->done;
    if (is_done) host_learns(s ? &s->clock : &mark->clock);
    return is_done;
}

void device_wait(const char *call)
{
    for (struct CUstream_st *s = streams; s; s = s->next) {
        if (s->live && s->device == device_now) host_wait(s, NULL, call);
    }
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = fault ? fault : last_error;
    last_error = cudaSuccess;
    unchecked_launch = NULL;
    return e;
}

cudaError_t cudaSetDevice(int device)
{
    sim_open();
    if (no_driver) return sim_error(cudaErrorInsufficientDriver);
    if (device < 0 || device >= devices) return sim_error(cudaErrorInvalidDevice);
    device_now = device;
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    sim_open();
    report_if(flags != cudaStreamNonBlocking, DEFAULT_STREAM,
              "a stream that waits for the default stream: cudaStreamNonBlocking is the "
              "house rule");
    struct CUstream_st *s = *out = must_alloc(sizeof *s);
    HOLD(&sim_mutex);
    *s = (struct CUstream_st){.live = true, .device = device_now, .slot = clock_new_slot(),
                              .clock = host_clock, .next = streams};
    s->tail = &s->head;
    streams = s;
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    capture_forbids(s, "cudaStreamSynchronize");
    host_wait(s, NULL, "cudaStreamSynchronize");
    return sim_error(cudaSuccess);
}

/* The handle stays, so that its use is noticed. */
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    capture_forbids(s, "cudaStreamDestroy");
    host_wait(s, NULL, "cudaStreamDestroy");
    struct CUstream_st **at = &streams;
    HOLD(&sim_mutex);
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    s->live = false;
    clock_give_slot(s->slot);
    return sim_error(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    capture_forbids(s, "cudaStreamQuery");
    return sim_error(cudaSuccess) ? fault
           : host_ask(s, NULL) ? cudaSuccess : cudaErrorNotReady;
}
