/* cuda/nccl.c - a lane's thread: joins the communicator, posts its transfers, looks when they end.
 *
 * NCCL is loaded when a job wants lanes, and is not needed otherwise.  A lane is a communicator of
 * its own, so that aborting one touches no other, and has its own stream: a send waits on the
 * device for its receive, and nothing else may wait with it.  Communicators do not block, and every
 * wait here ends at the lane's deadline or when the lane is closed.
 *
 * While something is under way the thread looks every LOOK_NS; without that it sleeps.
 */
#include "cuda/lanes.h"

#if __has_include(<nccl.h>)

#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

_Static_assert(NCCL_UNIQUE_ID_BYTES == LANE_NAME_BYTES, "a lane's name is NCCL's unique id");

#define LOOK_NS UINT64_C(50000)
#define OPEN_LOOK_NS NS_PER_MS
#define ABORT_NS (2 * NS_PER_S)
enum { VERSION_LEAST = 21800, CTAS_MAX = 8 };  /* blocks of the GPU that a transfer may occupy */

#define CALLS(X)                                                                                 \
    X(GetVersion) X(GetUniqueId) X(CommInitRankConfig) X(CommGetAsyncError) X(CommAbort)         \
    X(GetErrorString) X(Send) X(Recv)

static struct {
#define X(name) __typeof__(&nccl##name) name;
    CALLS(X)
#undef X
} nccl;

/* --- the library ------------------------------------------------------------------------------ */

static bool find_calls(void *library, struct why *why)
{
#define X(call)                                                                                  \
    *(void **)&nccl.call = dlsym(library, "nccl" #call);                                         \
    if (!nccl.call) {                                                                            \
        why_set(why, ERR_UNSUPPORTED, "NCCL: %.200s", dlerror());                                \
        return false;                                                                            \
    }
    CALLS(X)
#undef X
    return true;
}

int nccl_version(struct why *why)
{
    int version = 0;
    if (!nccl.GetVersion) {
        void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            why_set(why, ERR_UNSUPPORTED, "NCCL does not load: %.200s", dlerror());
            return 0;
        }
        if (!find_calls(library, why)) return 0;
    }
    if (nccl.GetVersion(&version) == ncclSuccess && version >= VERSION_LEAST) return version;
    why_set(why, ERR_UNSUPPORTED, "NCCL %d.%d.%d is too old: 2.18 is the least",
            version / 10000, version / 100 % 100, version % 100);
    return 0;
}

/* --- waiting ---------------------------------------------------------------------------------- */

static void sleep_locked(struct lane *l, uint64_t ns)
{
    uint64_t until = clock_now_ns() + ns;
    struct timespec t = { .tv_sec = (time_t)(until / NS_PER_S),
                          .tv_nsec = (long)(until % NS_PER_S) };
    pthread_cond_timedwait(&l->all->moved, &l->all->lock, &t);
}

/* False: the lane is closed. */
static bool nap(struct lane *l, uint64_t ns)
{
    pthread_mutex_lock(&l->all->lock);
    if (!l->closing) sleep_locked(l, ns);
    bool closing = l->closing;
    pthread_mutex_unlock(&l->all->lock);
    return !closing;
}

static bool failed(const struct lane *l, const char *what, const char *why)
{
    log_warn("lane %s=%d broke in %s: %s", l->sends ? "to" : "from", l->peer_id, what, why);
    return false;
}

/* Waits until what a call began is complete.  False: it is not, and never will be. */
static bool settled(struct lane *l, ncclResult_t r, const char *what)
{
    uint64_t until = clock_now_ns() + l->deadline_ns;
    while (r == ncclInProgress && l->comm) {
        if (clock_now_ns() > until) return failed(l, what, "the deadline has passed");
        if (!nap(l, l->state == LANE_READY ? LOOK_NS : OPEN_LOOK_NS)) return false;
        ncclResult_t asked = nccl.CommGetAsyncError(l->comm, &r);
        if (asked) r = asked;
    }
    return r == ncclSuccess || failed(l, what, nccl.GetErrorString(r));
}

static void set_state(struct lane *l, enum lane_state state)
{
    pthread_mutex_lock(&l->all->lock);
    l->state = state;
    pthread_mutex_unlock(&l->all->lock);
    lanes_ring(l->all);
}

/* --- joining ---------------------------------------------------------------------------------- */

/* The receiver learns the name from the sender, and joins first: it knows that both will come. */
static bool get_name(struct lane *l)
{
    ncclUniqueId id;
    ncclResult_t r = nccl.GetUniqueId(&id);
    if (r) return failed(l, "naming", nccl.GetErrorString(r));
    memcpy(l->name, &id, sizeof id);
    set_state(l, LANE_NAMED);
    uint64_t until = clock_now_ns() + l->deadline_ns;
    pthread_mutex_lock(&l->all->lock);
    while (!l->joined && !l->closing && clock_now_ns() < until) sleep_locked(l, l->deadline_ns);
    bool joined = l->joined, closing = l->closing;
    pthread_mutex_unlock(&l->all->lock);
    if (closing) return false;
    if (!joined) return failed(l, "opening", "the receiver does not answer");
    set_state(l, LANE_JOINING);
    return true;
}

static bool join(struct lane *l)
{
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    uint64_t since = clock_now_ns();
    memcpy(&id, l->name, sizeof id);
    config.blocking = 0;
    config.maxCTAs = CTAS_MAX;
    ncclResult_t r = nccl.CommInitRankConfig(&l->comm, l->size, id, l->rank, &config);
    if (!settled(l, r, "joining")) return false;
    log_info("lane %s=%d up nccl=%d.%d.%d ms=%llu", l->sends ? "to" : "from", l->peer_id,
             l->all->version / 10000, l->all->version / 100 % 100, l->all->version % 100,
             (unsigned long long)((clock_now_ns() - since) / NS_PER_MS));
    set_state(l, LANE_READY);
    return true;
}

/* --- transfers -------------------------------------------------------------------------------- */

static bool post(struct lane *l, const struct job *j)
{
    const struct cuda *u = l->all->u;
    const struct slot *s = j->slot;
    MUST(u, cudaStreamWaitEvent(l->stream, s->pool, 0));
    ncclResult_t r = l->sends
        ? nccl.Send(s->wire, j->bytes, ncclUint8, l->peer, l->comm, l->stream)
        : nccl.Recv(s->wire, j->bytes, ncclUint8, l->peer, l->comm, l->stream);
    if (!settled(l, r, l->sends ? "a send" : "a receive")) return false;
    MUST(u, cudaEventRecord(s->moved, l->stream));
    return true;
}

/* The next one to be posted, with a slot; under the lock. */
static bool next_job(struct lane *l, struct job *out)
{
    if (l->queued.count == 0) return false;
    if (!l->sends) {
        if (l->flying.count + l->arrived.count >= LANE_FLIGHT) return false;
        struct slot *s = slot_take(l->all->in);
        if (!s) return false;
        l->queued.at[l->queued.first].slot = s;
    }
    *out = jobs_take(&l->queued);
    out->since_ns = clock_now_ns();
    jobs_add(&l->flying, *out);       /* from now on its memory may be touched */
    return true;
}

/* The oldest one's end, under the lock; false: the lane is broken. */
static bool look(struct lane *l, bool *ended)
{
    const struct job *j = &l->flying.at[l->flying.first];
    cudaError_t e = cudaEventQuery(j->slot->moved);
    ncclResult_t r = ncclSuccess, asked = nccl.CommGetAsyncError(l->comm, &r);
    *ended = e == cudaSuccess;
    if (e != cudaSuccess && e != cudaErrorNotReady) MUST(l->all->u, e);
    if (*ended) return true;
    if (asked || (r && r != ncclInProgress))
        return failed(l, "a transfer", nccl.GetErrorString(asked ? asked : r));
    if (clock_now_ns() - j->since_ns < l->deadline_ns) return true;
    return failed(l, "a transfer", "the deadline has passed");
}

static void finish(struct lane *l)
{
    struct job j = jobs_take(&l->flying);
    if (l->sends) j.slot->taken = false;
    else jobs_add(&l->arrived, j);
    pthread_cond_broadcast(&l->all->moved);
    lanes_ring(l->all);
}

/* Until the lane is closed or broken. */
static void serve(struct lane *l)
{
    pthread_mutex_t *lock = &l->all->lock;
    bool good = true;
    pthread_mutex_lock(lock);
    while (good && !l->closing) {
        struct job j;
        bool ended = false;
        if (next_job(l, &j)) {
            pthread_mutex_unlock(lock);
            good = post(l, &j);
            pthread_mutex_lock(lock);
        } else if (l->flying.count == 0) {
            pthread_cond_wait(&l->all->moved, lock);
        } else if ((good = look(l, &ended)) && ended) {
            finish(l);
        } else if (good) {
            sleep_locked(l, LOOK_NS);
        }
    }
    pthread_mutex_unlock(lock);
}

/* --- the end ---------------------------------------------------------------------------------- */

/* The fence: behind it nothing of this lane touches its slots any more. */
static bool abort_transfers(struct lane *l)
{
    uint64_t until = clock_now_ns() + ABORT_NS;
    if (l->comm) nccl.CommAbort(l->comm);
    cudaError_t e;
    while ((e = cudaStreamQuery(l->stream)) == cudaErrorNotReady && clock_now_ns() < until)
        nanosleep(&(struct timespec){ .tv_nsec = LOOK_NS }, NULL);
    return e == cudaSuccess;
}

static void give_back(struct jobs *q)
{
    while (q->count) {
        struct slot *s = jobs_take(q).slot;
        if (s) s->taken = false;
    }
}

/* What waits to be sent may still be on its way out of the pool. */
static void await_copies(struct lane *l)
{
    for (uint32_t i = 0; l->sends && i < l->queued.count; i++) {
        const struct job *j = &l->queued.at[(l->queued.first + i) % LANE_QUEUE_MAX];
        MUST(l->all->u, cudaEventSynchronize(j->slot->pool));
    }
}

static void end(struct lane *l)
{
    struct lanes *a = l->all;
    set_state(l, LANE_BROKEN);
    bool quiet = abort_transfers(l);
    if (!quiet) log_error("lane peer=%d: transfers do not end, their memory is lost", l->peer_id);
    pthread_mutex_lock(&a->lock);
    while (!l->closing) pthread_cond_wait(&a->moved, &a->lock);
    await_copies(l);
    if (quiet) give_back(&l->flying);
    give_back(&l->queued);
    give_back(&l->arrived);
    if (quiet) cudaStreamDestroy(l->stream);
    l->used = false;
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

void *nccl_lane(void *ctx)
{
    struct lane *l = ctx;
    const struct cuda *u = l->all->u;
    pthread_setname_np(pthread_self(), l->sends ? "lane out" : "lane in");
    MUST(u, cudaSetDevice(u->device));
    MUST(u, cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
    if ((!l->sends || get_name(l)) && join(l)) serve(l);
    end(l);
    return NULL;
}

#else

int nccl_version(struct why *why)
{
    why_set(why, ERR_UNSUPPORTED, "NCCL was not there when this was built");
    return 0;
}

void *nccl_lane(void *lane)
{
    (void)lane;
    return NULL;
}

#endif
