/* tests/cusim/nccl.c - NCCL between processes or threads, as strict as it may be.
 *
 * A send ends only when its receive has taken everything, operations of a communicator run in the
 * order of their calls, and both ends must say the same.  A peer that died is not noticed, as NCCL
 * need not notice it: whoever waits without a deadline is told that it hangs.
 */
#include <nccl.h>
#include <time.h>
#include <unistd.h>

#include "exec.h"
#include "nccl_world.h"
#include "stream.h"

enum kind_of_call { SEND, RECV };
static const char *const call_text[] = {"send", "receive"};

struct ncclComm {
    struct nccl_world *world;
    int rank, size, device, lock_file;
    uint64_t asked, done;               /* calls made and ended: they run one after another */
    op_id last;
    bool live;
    volatile bool aborted, broken;      /* broken: CUSIM_NCCL_FAULT */
};

struct nccl_op {
    struct op op;
    ncclComm_t comm;
    uint64_t number;                    /* among those of its communicator */
    enum kind_of_call kind;
    int peer, stage;                    /* 0 not posted, 1 posted, 2 agreed, 3 all bytes gone */
    struct nccl_terms terms;
    uint64_t at, bytes, moved;          /* device address; `moved` of `bytes` */
    bool begun;
    double quiet_since;                 /* nothing has moved since, in seconds; 0: it just did */
    uint64_t seen;
};

static void moved(struct nccl_world *w) { atomic_fetch_add(&w->progress, 1); }

/* Both ends meet, and agree; then, chunk by chunk, one writes, the other reads, and they go on when
 * both have. */

static struct nccl_part *ends_of(const struct nccl_op *o)
{
    const struct ncclComm *c = o->comm;
    return o->kind == SEND ? c->world->pairs[c->rank][o->peer]
                           : c->world->pairs[o->peer][c->rank];
}

static bool both_at(const struct nccl_part *ends, int counter, uint64_t n)
{
    return atomic_load(&ends[0].count[counter]) >= n && atomic_load(&ends[1].count[counter]) >= n;
}

static void agree(const struct nccl_op *o, const struct nccl_terms *its)
{
    const struct nccl_terms *mine = &o->terms;
    if (its->count == mine->count && its->type == mine->type) return;
    report(NCCL_MISMATCH, "rank %d: %s of %lu of type %d, the other side: %lu of type %d",
           o->comm->rank, call_text[o->kind], mine->count, mine->type, its->count, its->type);
}

/* As far as it goes; true when it has ended.  Even no bytes make a chunk: nobody posts again before
 * both have agreed. */
static bool run_message(struct nccl_op *o)
{
    struct nccl_world *w = o->comm->world;
    struct nccl_part *ends = ends_of(o), *mine = &ends[o->kind];
    uint64_t chunk = atomic_load(&mine->count[READ]), posted = atomic_load(&mine->count[POSTED]);
    if (o->stage == 0) {
        if (!both_at(ends, READ, chunk)) return false;  /* the other still reads the last one */
        mine->terms = o->terms;
        atomic_store(&mine->count[POSTED], ++posted);
        o->stage = 1;
        moved(w);
    }
    if (o->stage == 1) {
        if (!both_at(ends, POSTED, posted)) return false;
        agree(o, &ends[!o->kind].terms);
        o->stage = 2;
    }
    while (o->stage == 2) {
        uint64_t n = o->bytes - o->moved < CHUNK_BYTES ? o->bytes - o->moved : CHUNK_BYTES;
        uint8_t *bytes = device_bytes(o->at + o->moved);
        if (atomic_load(&mine->count[WROTE]) == chunk) {
            if (!both_at(ends, READ, chunk)) return false;
            if (o->kind == SEND) memcpy(mine->chunk, bytes, n);
            atomic_store(&mine->count[WROTE], chunk + 1);
            moved(w);
        }
        if (!both_at(ends, WROTE, chunk + 1)) return false;
        if (o->kind == RECV) memcpy(bytes, ends[SEND].chunk, n);
        o->moved += n;
        atomic_store(&mine->count[READ], ++chunk);
        moved(w);
        if (o->moved == o->bytes) o->stage = 3;
    }
    return both_at(ends, READ, chunk);
}

/* The operation of a stream. */

static bool all_stuck(const struct ncclComm *c, uint64_t at)
{
    for (int r = 0; r < c->size; r++) {
        if (atomic_load(&c->world->stuck[r]) != at + 1) return false;
    }
    return true;
}

/* Nothing moved here.  Hosts of all ranks wait, and nobody's device can go on: a deadlock; a host
 * that waits for a rank that is dead: a hang. */
static void look_for_deadlock(struct nccl_op *o, ncclComm_t c)
{
    struct nccl_world *w = c->world;
    bool stuck = device_is_stuck(c->device);
    uint64_t at = atomic_load(&w->progress);
    atomic_store(&w->stuck[c->rank], stuck ? at + 1 : 0);
    if (!stuck || at != o->seen) {
        o->seen = at;
        o->quiet_since = seconds_now();
    } else if (seconds_now() - o->quiet_since > 0.5) {
        for (int r = 0; r < c->size; r++) {
            if (!world_rank_gone(w, c->lock_file, r)) continue;
            report(NCCL_PEER_GONE, "the host waits for ever: rank %d has ended", r);
        }
        if (!all_stuck(c, at)) return;
        stream_list();
        report(NCCL_DEADLOCK, "rank %d and all others wait for one another", c->rank);
    }
}

static bool run_nccl(struct op *op)
{
    struct nccl_op *o = (struct nccl_op *)op;
    ncclComm_t c = o->comm;
    if (c->broken && !c->aborted) return false;
    if (!c->aborted) {
        if (c->done + 1 != o->number) return false;     /* on another stream, before it */
        if (!o->begun) {
            struct toucher t = op_toucher(op);
            shadow_bulk(&t, o->at, o->bytes, o->kind == SEND ? TOUCH_READ : TOUCH_WRITE);
        }
        o->begun = true;
        if (!run_message(o)) {
            look_for_deadlock(o, c);
            return false;
        }
    }
    c->done = o->number;
    return true;
}

static void prepare_nccl(struct op *op) { ((struct nccl_op *)op)->comm->last = op->id; }

const struct op_type nccl_op_type = {sizeof(struct nccl_op), prepare_nccl, run_nccl, NULL};

static bool is_complete(const struct ncclComm *c)
{
    return atomic_load(&c->world->joined) >= (uint32_t)c->size;
}

/* CUSIM_NCCL_FAULT=N: the N-th message of this process is where its communicator breaks. */
static void maybe_break(ncclComm_t c)
{
    static _Atomic uint64_t messages;
    uint64_t at = setting_number("CUSIM_NCCL_FAULT", 0);
    if (at && atomic_fetch_add(&messages, 1) + 1 == at) c->broken = true;
}

static size_t number_bytes(ncclDataType_t type)
{
    static const uint8_t bytes[] = {
        [ncclInt8] = 1, [ncclUint8] = 1, [ncclInt32] = 4, [ncclUint32] = 4, [ncclInt64] = 8,
        [ncclUint64] = 8, [ncclFloat16] = 2, [ncclFloat32] = 4, [ncclFloat64] = 8,
        [ncclBfloat16] = 2, [ncclFloat8e4m3] = 1, [ncclFloat8e5m2] = 1};
    report_if((size_t)type >= sizeof bytes, NCCL_MISUSE, "data type %d", (int)type);
    return bytes[type];
}

static ncclResult_t message(enum kind_of_call kind, const void *at, size_t count,
                            ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s)
{
    check_alive(c, "a communicator", call_text[kind]);
    stream_check(s, call_text[kind]);
    report_if(!is_complete(c), NCCL_MISUSE, "%s before all ranks have joined", call_text[kind]);
    report_if(c->device != s->device, WRONG_DEVICE,
              "a communicator of device %d on a stream of device %d", c->device, s->device);
    if (peer < 0 || peer >= c->size) return ncclInvalidArgument;
    maybe_break(c);
    struct nccl_op *o = op_new(&nccl_op_type);
    o->comm = c, o->number = ++c->asked;
    o->kind = kind, o->peer = peer;
    o->terms = (struct nccl_terms){.count = count, .type = (int32_t)type};
    o->at = (uint64_t)at, o->bytes = count * number_bytes(type);
    stream_add(s, &o->op, "NCCL of rank %d: %s of %zu", c->rank, call_text[kind], count);
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return message(SEND, from, count, type, peer, c, s);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return message(RECV, to, count, type, peer, c, s);
}

/* Communicators. */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static _Atomic uint32_t count;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    sim_open();
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%d-%lx-%lx-%u", (int)getpid(), t.tv_sec, t.tv_nsec,
             atomic_fetch_add(&count, 1));
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    sim_open();
    *out = NULL;
    if (size < 1 || rank < 0 || rank >= size) return ncclInvalidArgument;
    report_if(size > RANKS_MAX, NOT_MODELLED, "a communicator of more than %d ranks", RANKS_MAX);
    if (!sim_devices()) return ncclUnhandledCudaError;
    struct ncclComm *c = must_alloc(sizeof *c);
    *c = (struct ncclComm){.rank = rank, .size = size, .device = current_device(), .live = true};
    id.internal[sizeof id.internal - 1] = 0;
    c->world = world_join(id.internal, size, rank, &c->lock_file);
    if (!c->world) return ncclSystemError;
    *out = c;
    report_if(!config || config->blocking, NOT_MODELLED, "a communicator that blocks");
    return is_complete(c) ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *result)
{
    check_alive(c, "a communicator", "ncclCommGetAsyncError");
    *result = c->broken ? ncclRemoteError : is_complete(c) ? ncclSuccess : ncclInProgress;
    return ncclSuccess;
}

/* Ends what this rank has under way; peers are not told. */
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    check_alive(c, "a communicator", "ncclCommAbort");
    c->live = false;
    c->aborted = true;
    stream_poke();
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    check_alive(c, "a communicator", "ncclCommDestroy");
    report_if(!clock_before(c->last, &host_clock), NCCL_MISUSE,
              "ncclCommDestroy while operations of rank %d may still run", c->rank);
    c->live = false;
    world_leave(c->world);
    return ncclSuccess;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = (int)setting_number("CUSIM_NCCL_VERSION", NCCL_VERSION_CODE);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const text[] = {
        "no error", "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage", "remote process exited or there was a network error",
        "NCCL operation in progress"};
    return (size_t)r < sizeof text / sizeof *text ? text[r] : "unknown result code";
}
