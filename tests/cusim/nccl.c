/* tests/cusim/nccl.c - NCCL between processes or threads, as strict as it may be.
 *
 * A send ends only when its receive has taken everything, operations of a communicator run in the
 * order of their calls, and the k-th collective must agree on every rank.  A peer that died is not
 * noticed, as NCCL need not notice it: whoever waits without a deadline is told that it hangs.
 */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "exec.h"
#include "nccl_world.h"
#include "report.h"
#include "stream.h"

enum kind_of_call { SEND, RECV, ALL_REDUCE, BROADCAST };
static const char *const call_text[] = {"send", "receive", "all-reduce", "broadcast"};

struct ncclComm {
    struct nccl_world *world;
    int rank, size, device, lock_file;
    uint64_t asked, done;               /* calls made and ended: they run one after another */
    op_id last;
    bool live;
    volatile bool aborted, broken;      /* broken: CUSIM_NCCL_FAULT */
};

struct part {
    ncclComm_t comm;
    uint64_t number;                    /* of the group among those of its communicator */
    enum kind_of_call kind;
    int peer, stage;                    /* 0 not posted, 1 posted, 2 agreed, 3 all bytes gone */
    struct nccl_terms terms;
    uint64_t from, to, bytes, moved;    /* device addresses; `moved` of `bytes` */
    bool ended;
};

struct nccl_op {
    struct op op;
    struct part *parts;
    int count;
    bool begun;
    double quiet_since;                 /* nothing has moved since, in seconds; 0: it just did */
    uint64_t seen;
};

static _Thread_local int depth;
static _Thread_local struct part *gathered;
static _Thread_local int gathered_count;
static _Thread_local cudaStream_t gathered_stream;

static enum type type_of(int t)
{
    static const enum type types[] = {
        [ncclInt8] = T_S8, [ncclUint8] = T_U8, [ncclInt32] = T_S32, [ncclUint32] = T_U32,
        [ncclInt64] = T_S64, [ncclUint64] = T_U64, [ncclFloat16] = T_F16, [ncclFloat32] = T_F32,
        [ncclFloat64] = T_F64, [ncclBfloat16] = T_BF16, [ncclFloat8e4m3] = T_B8,
        [ncclFloat8e5m2] = T_B8};
    if (t < 0 || (size_t)t >= sizeof types / sizeof *types) report(NCCL_MISUSE, "data type %d", t);
    return types[t];
}

static void moved(struct nccl_world *w) { atomic_fetch_add(&w->progress, 1); }

/* Messages and collectives: all who take part meet, and agree; then, chunk by chunk, everybody
 * writes its own, reads what it wants, and goes on when all have read. */

struct meeting {
    struct nccl_part *part, *mine;
    int count;
};

static struct meeting meeting_of(const struct part *s)
{
    const struct ncclComm *c = s->comm;
    struct nccl_world *w = c->world;
    if (s->kind > RECV) return (struct meeting){w->all, &w->all[c->rank], c->size};
    struct nccl_part *ends = s->kind == SEND ? w->pairs[c->rank][s->peer]
                                             : w->pairs[s->peer][c->rank];
    return (struct meeting){ends, &ends[s->kind], 2};
}

enum counter { POSTED, WROTE, READ };

static bool all_at(const struct meeting *m, enum counter which, uint64_t count)
{
    for (int r = 0; r < m->count; r++) {
        const struct nccl_part *p = &m->part[r];
        if (atomic_load(which == POSTED ? &p->posted : which == WROTE ? &p->wrote : &p->read) <
            count) {
            return false;
        }
    }
    return true;
}

static void agree(const struct part *s, const struct meeting *m)
{
    for (int r = 0; r < m->count; r++) {
        const struct nccl_terms *t = &m->part[r].terms, *mine = &s->terms;
        if (t->count == mine->count && t->type == mine->type && t->kind == mine->kind &&
            t->fold == mine->fold && t->root == mine->root) {
            continue;
        }
        report(NCCL_MISMATCH, "rank %d: %s of %llu of type %d, the other side: %s of %llu of type "
               "%d, root %d", s->comm->rank, call_text[s->kind], (unsigned long long)mine->count,
               mine->type, call_text[t->kind], (unsigned long long)t->count, t->type, t->root);
    }
}

static void reduce_chunk(const struct part *s, const struct meeting *m, uint8_t *to,
                         uint64_t bytes)
{
    enum type type = type_of(s->terms.type);
    if (type == T_B8) report(NOT_MODELLED, "a reduction of data type %d", s->terms.type);
    for (uint64_t at = 0; at < bytes; at += type_bytes(type)) {
        long double sum = 0;
        for (int r = 0; r < m->count; r++) {
            uint64_t bits = 0;
            memcpy(&bits, m->part[r].chunk + at, type_bytes(type));
            long double v = load_number(bits, type);
            if (!r) sum = v;
            else if (s->terms.fold == ncclSum) sum += v;
            else if (s->terms.fold == ncclMax ? v > sum : v < sum) sum = v;
        }
        uint64_t bits = store_number(sum, type);
        memcpy(to + at, &bits, type_bytes(type));
    }
}

static void take_chunk(const struct part *s, const struct meeting *m, uint64_t bytes)
{
    uint8_t *to = device_bytes(s->to + s->moved);
    if (s->kind == ALL_REDUCE) reduce_chunk(s, m, to, bytes);
    else if (s->kind == BROADCAST) memcpy(to, m->part[s->terms.root].chunk, bytes);
    else if (s->kind == RECV) memcpy(to, m->part[SEND].chunk, bytes);
}

/* As far as it goes; true when it has ended.  Even no bytes make a chunk: nobody posts again before
 * all have agreed. */
static bool run_part(struct part *s)
{
    struct nccl_world *w = s->comm->world;
    struct meeting m = meeting_of(s);
    uint64_t chunk = atomic_load(&m.mine->read), posted = atomic_load(&m.mine->posted);
    if (s->stage == 0) {
        if (!all_at(&m, READ, chunk)) return false;     /* somebody still reads the last one */
        m.mine->terms = s->terms;
        atomic_store(&m.mine->posted, ++posted);
        s->stage = 1;
        moved(w);
    }
    if (s->stage == 1) {
        if (!all_at(&m, POSTED, posted)) return false;
        agree(s, &m);
        s->stage = 2;
    }
    while (s->stage == 2) {
        uint64_t n = s->bytes - s->moved < CHUNK_BYTES ? s->bytes - s->moved : CHUNK_BYTES;
        if (atomic_load(&m.mine->wrote) == chunk) {
            if (!all_at(&m, READ, chunk)) return false;
            if (s->kind != RECV) memcpy(m.mine->chunk, device_bytes(s->from + s->moved), n);
            atomic_store(&m.mine->wrote, chunk + 1);
            moved(w);
        }
        if (!all_at(&m, WROTE, chunk + 1)) return false;
        take_chunk(s, &m, n);
        s->moved += n;
        atomic_store(&m.mine->read, ++chunk);
        moved(w);
        if (s->moved == s->bytes) s->stage = 3;
    }
    s->ended = all_at(&m, READ, chunk);
    return s->ended;
}

/* The operation of a stream. */

static void begin(struct nccl_op *o)
{
    struct toucher t = op_toucher(&o->op);
    for (int k = 0; k < o->count; k++) {
        const struct part *s = &o->parts[k];
        if (s->kind != RECV) shadow_bulk(&t, s->from, s->bytes, TOUCH_READ);
        if (s->kind != SEND) shadow_bulk(&t, s->to, s->bytes, TOUCH_WRITE);
    }
    o->begun = true;
}

/* A message waits for those before it in the same direction of the same group. */
static bool is_first(const struct nccl_op *o, int k)
{
    const struct part *s = &o->parts[k];
    for (int j = 0; j < k; j++) {
        const struct part *e = &o->parts[j];
        if (e->ended || e->comm != s->comm) continue;
        if (e->kind == s->kind && e->peer == s->peer) return false;
    }
    return true;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

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
    sim_lock();
    bool stuck = device_is_stuck(c->device);
    sim_unlock();
    uint64_t at = atomic_load(&w->progress);
    atomic_store(&w->stuck[c->rank], stuck ? at + 1 : 0);
    if (!stuck || at != o->seen) {
        o->seen = at;
        o->quiet_since = seconds();
    } else if (seconds() - o->quiet_since > 0.5) {
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
    bool ended = true;
    ncclComm_t waits = NULL;
    for (int k = 0; k < o->count; k++) {
        struct part *s = &o->parts[k];
        if (s->ended || s->comm->aborted) continue;
        if (s->comm->broken) return false;
        if (s->comm->done + 1 != s->number) return false;       /* on another stream, before it */
        if (!o->begun) begin(o);
        if (!is_first(o, k) || !run_part(s)) {
            ended = false;
            waits = s->comm;
        }
    }
    if (!ended) {
        look_for_deadlock(o, waits);
        return false;
    }
    for (int k = 0; k < o->count; k++) o->parts[k].comm->done = o->parts[k].number;
    return true;
}

static void prepare_nccl(struct op *op)
{
    struct nccl_op *o = (struct nccl_op *)op;
    for (int k = 0; k < o->count; k++) o->parts[k].comm->last = op->id;
}

static void release_nccl(struct op *op) { free(((struct nccl_op *)op)->parts); }

const struct op_type nccl_op_type = {sizeof(struct nccl_op), prepare_nccl, run_nccl,
                                      release_nccl};

static void comm_check(ncclComm_t c, const char *call)
{
    if (!c || !c->live) report(DEAD_HANDLE, "%s on a communicator that was destroyed", call);
}

static bool is_complete(const struct ncclComm *c)
{
    return atomic_load(&c->world->joined) >= (uint32_t)c->size;
}

static ncclResult_t flush(void)
{
    if (!gathered_count) return ncclSuccess;
    struct nccl_op *o = op_new(&nccl_op_type);
    o->parts = gathered;
    o->count = gathered_count;
    for (int k = 0; k < o->count; k++) {
        struct part *s = &o->parts[k];
        bool again = false;
        for (int j = 0; j < k; j++) again |= o->parts[j].comm == s->comm;
        s->number = again ? s->comm->asked : ++s->comm->asked;
        s->terms.kind = s->kind == RECV ? SEND : (int32_t)s->kind;
    }
    const struct part *first = &o->parts[0];
    cudaStream_t s = gathered_stream;
    gathered = NULL;
    gathered_count = 0;
    stream_add(s, &o->op, "NCCL of rank %d: %s of %llu%s", first->comm->rank,
               call_text[first->kind], (unsigned long long)first->terms.count,
               o->count > 1 ? " and more" : "");
    return ncclSuccess;
}

/* CUSIM_NCCL_FAULT=N: the N-th message of this process is where its communicator breaks. */
static void maybe_break(ncclComm_t c)
{
    static _Atomic uint64_t messages;
    uint64_t at = setting_number("CUSIM_NCCL_FAULT", 0);
    if (at && atomic_fetch_add(&messages, 1) + 1 == at) c->broken = true;
}

static ncclResult_t add(struct part part, size_t count, ncclDataType_t type, cudaStream_t stream)
{
    ncclComm_t c = part.comm;
    comm_check(c, call_text[part.kind]);
    stream_check(stream, call_text[part.kind]);
    if (!is_complete(c)) {
        report(NCCL_MISUSE, "%s before all ranks have joined", call_text[part.kind]);
    }
    if (c->device != stream->device) {
        report(WRONG_DEVICE, "a communicator of device %d on a stream of device %d", c->device,
               stream->device);
    }
    if (part.kind <= RECV && (part.peer < 0 || part.peer >= c->size)) return ncclInvalidArgument;
    if (gathered_count && gathered_stream != stream) {
        report(NOT_MODELLED, "an NCCL group over several streams");
    }
    maybe_break(c);
    part.terms.count = count;
    part.terms.type = (int32_t)type;
    part.bytes = count * type_bytes(type_of(type));
    gathered = must_grow(gathered, (size_t)gathered_count, sizeof *gathered);
    gathered[gathered_count++] = part;
    gathered_stream = stream;
    return depth ? ncclSuccess : flush();
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return add((struct part){.comm = c, .kind = SEND, .peer = peer, .from = (uint64_t)from}, count,
               type, s);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return add((struct part){.comm = c, .kind = RECV, .peer = peer, .to = (uint64_t)to}, count,
               type, s);
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t fold, ncclComm_t c, cudaStream_t s)
{
    if (fold != ncclSum && fold != ncclMax && fold != ncclMin) {
        report(NOT_MODELLED, "ncclAllReduce with operator %d", (int)fold);
    }
    return add((struct part){.comm = c, .kind = ALL_REDUCE, .from = (uint64_t)from,
                             .to = (uint64_t)to, .terms.fold = (int32_t)fold}, count, type, s);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t c, cudaStream_t s)
{
    comm_check(c, "broadcast");
    return add((struct part){.comm = c, .kind = BROADCAST, .terms.root = root,
                             .from = (uint64_t)(c->rank == root ? from : to), .to = (uint64_t)to},
               count, type, s);
}

/* nccl.h declares these two without (void). */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (!depth) report(NCCL_MISUSE, "ncclGroupEnd without ncclGroupStart");
    return --depth ? ncclSuccess : flush();
}

/* Communicators. */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static _Atomic uint32_t count;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    sim_open();
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%d-%llx-%u", (int)getpid(),
             (unsigned long long)t.tv_sec * 1000000000ull + (unsigned long long)t.tv_nsec,
             atomic_fetch_add(&count, 1));
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    sim_open();
    *out = NULL;
    if (depth) report(NOT_MODELLED, "communicators made inside a group");
    if (size < 1 || rank < 0 || rank >= size) return ncclInvalidArgument;
    if (size > RANKS_MAX) report(NOT_MODELLED, "a communicator of more than %d ranks", RANKS_MAX);
    if (!sim_devices()) return ncclUnhandledCudaError;
    struct ncclComm *c = must_alloc(sizeof *c);
    *c = (struct ncclComm){.rank = rank, .size = size, .device = current_device(), .live = true};
    id.internal[sizeof id.internal - 1] = 0;
    c->world = world_join(id.internal, size, rank, &c->lock_file);
    if (!c->world) return ncclSystemError;
    *out = c;
    if (config && config->blocking == 0) return is_complete(c) ? ncclSuccess : ncclInProgress;
    double until = seconds() + (double)setting_number("CUSIM_PATIENCE", 60);
    while (!is_complete(c)) {
        if (seconds() > until) report(NO_PROGRESS, "ncclCommInitRank: %u of %d ranks have come",
                                      atomic_load(&c->world->joined), size);
        usleep(200);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(out, size, id, rank, NULL);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *result)
{
    comm_check(c, "ncclCommGetAsyncError");
    *result = c->broken ? ncclRemoteError : is_complete(c) ? ncclSuccess : ncclInProgress;
    return ncclSuccess;
}

/* Ends what this rank has under way; peers are not told. */
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    comm_check(c, "ncclCommAbort");
    c->live = false;
    c->aborted = true;
    sim_lock();
    stream_poke();
    sim_unlock();
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    comm_check(c, "ncclCommFinalize");
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    comm_check(c, "ncclCommDestroy");
    if (!clock_before(c->last, &host_clock)) {
        report(NCCL_MISUSE, "ncclCommDestroy while operations of rank %d may still run", c->rank);
    }
    c->live = false;
    world_leave(c->world, c->lock_file);
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
