/* tests/cusim/check/ranks.c - faults between ranks.  Rank 0 is this process; rank 1 is a thread of
 * it, or a process of its own where it is to die. */
#include <nccl.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum fault { NONE, COUNT, TYPE, NO_EVENT, NO_WAIT, ORDER, LOST, LOST_ABORT, DESTROYED, IN_FLIGHT,
             BOTH_SEND };
enum { BIG = 300 * 1000 };              /* numbers of a message: several chunks */

static ncclUniqueId id;
static enum fault fault;

struct rank {
    int rank;
    ncclComm_t comm;
    cudaStream_t compute, transfer;
    float *a, *b, *host;
};

static void open_rank(struct rank *r, int rank, int device)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t state = ncclInProgress;
    config.blocking = 0;
    r->rank = rank;
    CK(cudaSetDevice(device));
    ncclResult_t begun = ncclCommInitRankConfig(&r->comm, 2, id, rank, &config);
    EXPECT(begun == ncclSuccess || begun == ncclInProgress);
    while (state == ncclInProgress) CK(ncclCommGetAsyncError(r->comm, &state));
    EXPECT(state == ncclSuccess);
    r->compute = new_stream();
    r->transfer = new_stream();
    r->a = on_device(BIG * sizeof(float));
    r->b = on_device(BIG * sizeof(float));
    r->host = pinned(BIG * sizeof(float));
    for (int i = 0; i < BIG; i++) r->host[i] = (float)(i % 1000 + rank);
    CK(cudaMemcpyAsync(r->a, r->host, BIG * sizeof(float), cudaMemcpyHostToDevice, r->compute));
    CK(cudaStreamSynchronize(r->compute));
}

static void close_rank(struct rank *r)
{
    CK(cudaStreamSynchronize(r->transfer));
    CK(cudaStreamSynchronize(r->compute));
    CK(ncclCommDestroy(r->comm));
    if (fault == DESTROYED) CK(ncclSend(r->a, 1, ncclFloat, !r->rank, r->comm, r->transfer));
    CK(cudaFree(r->a));
    CK(cudaFree(r->b));
    CK(cudaFreeHost(r->host));
}

static float result(struct rank *r, int at)
{
    CK(cudaMemcpyAsync(r->host, r->b, BIG * sizeof(float), cudaMemcpyDeviceToHost, r->compute));
    CK(cudaStreamSynchronize(r->compute));
    return r->host[at];
}

/* A prefill rank computes, sends on another stream, computes again; a decode rank receives and
 * reads. */
static void push(struct rank *r)
{
    cudaEvent_t e = new_event();
    size_t bytes = BIG * sizeof(float);
    if (r->rank == 0) {
        CK(cudaMemsetAsync(r->b, 0, bytes, r->compute));
        CK(cudaStreamSynchronize(r->compute));
        CK(cudaMemcpyAsync(r->b, r->a, bytes, cudaMemcpyDeviceToDevice, r->compute));
        CK(cudaEventRecord(e, r->compute));
        if (fault != NO_EVENT) CK(cudaStreamWaitEvent(r->transfer, e, 0));
        CK(ncclSend(r->b, fault == COUNT ? BIG - 1 : BIG, fault == TYPE ? ncclInt32 : ncclFloat, 1,
                    r->comm, r->transfer));
        CK(cudaEventRecord(e, r->transfer));
        if (fault != IN_FLIGHT) CK(cudaStreamWaitEvent(r->compute, e, 0));
        CK(cudaMemsetAsync(r->b, 0, bytes, r->compute));
    } else {
        CK(cudaMemsetAsync(r->b, 0, bytes, r->compute));
        CK(cudaStreamSynchronize(r->compute));
        CK(ncclRecv(r->b, BIG, ncclFloat, 0, r->comm, r->transfer));
        CK(cudaEventRecord(e, r->transfer));
        if (fault != NO_WAIT) CK(cudaStreamWaitEvent(r->compute, e, 0));
        float last = result(r, BIG - 1);
        CK(cudaStreamSynchronize(r->transfer));
        EXPECT(last == 999);
    }
}

/* Each sends and receives: rank 1 receives first, or both send, so that both wait. */
static void exchange(struct rank *r)
{
    bool first = !r->rank || fault == BOTH_SEND;
    if (first) CK(ncclSend(r->a, BIG, ncclFloat, !r->rank, r->comm, r->compute));
    CK(ncclRecv(r->b, BIG, ncclFloat, !r->rank, r->comm, r->compute));
    if (!first) CK(ncclSend(r->a, BIG, ncclFloat, !r->rank, r->comm, r->compute));
    EXPECT(result(r, 5) == 5 + !r->rank);
}

static void work(struct rank *r)
{
    if (fault == ORDER && r->rank) CK(ncclSend(r->a, 8, ncclFloat, 0, r->comm, r->transfer));
    push(r);
    CK(cudaStreamSynchronize(r->transfer));
    CK(cudaStreamSynchronize(r->compute));
    exchange(r);
}

static void *other_rank(void *unused)
{
    struct rank r;
    open_rank(&r, 1, 1);
    work(&r);
    close_rank(&r);
    return unused;
}

static void two(int planted)
{
    struct rank r;
    pthread_t thread;
    fault = (enum fault)planted;
    CK(ncclGetUniqueId(&id));
    CK(pthread_create(&thread, NULL, other_rank, NULL));
    open_rank(&r, 0, 0);
    work(&r);
    close_rank(&r);
    CK(pthread_join(thread, NULL));
}

/* Rank 1 as a process that gets the id through the environment, and ends when asked to. */
static void other_process(int unused)
{
    struct rank r;
    (void)unused;
    fault = (enum fault)atoi(getenv("CHECK_FAULT"));
    snprintf(id.internal, sizeof id.internal, "%s", getenv("CHECK_ID"));
    open_rank(&r, 1, 0);
    if (fault == LOST || fault == LOST_ABORT) _exit(0);
    work(&r);
    close_rank(&r);
}

static void start_other(void)
{
    char number[16];
    CK(ncclGetUniqueId(&id));
    snprintf(number, sizeof number, "%d", (int)fault);
    setenv("CHECK_ID", id.internal, 1);
    setenv("CHECK_FAULT", number, 1);
    pid_t child = fork();
    if (child) return;
    execl("/proc/self/exe", "check", "rank 1 of another row", (char *)NULL);
    _exit(127);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void two_processes(int planted)
{
    struct rank r;
    int status = 0;
    fault = (enum fault)planted;
    start_other();
    open_rank(&r, 0, 0);
    if (fault == LOST || fault == LOST_ABORT) {
        CK(ncclRecv(r.b, BIG, ncclFloat, 1, r.comm, r.transfer));
        double until = seconds() + 0.5;
        while (fault == LOST_ABORT && cudaStreamQuery(r.transfer) == cudaErrorNotReady) {
            if (seconds() < until) continue;
            CK(ncclCommAbort(r.comm));
            until = 1e30;
        }
        CK(cudaStreamSynchronize(r.transfer));
        CK(cudaFree(r.a));
        CK(cudaFree(r.b));
        CK(cudaFreeHost(r.host));
    } else {
        work(&r);
        close_rank(&r);
    }
    wait(&status);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void nothing(int unused) { (void)unused; }
static void as_rank_1(int unused)
{
    if (getenv("CHECK_ID")) other_process(unused);
    else nothing(unused);
}

const struct row rank_rows[] = {
    {"rank 1 of another row", NULL, as_rank_1, 0, NULL},
    {"two ranks push and exchange", NULL, two, NONE, NULL},
    {"the same in two processes", NULL, two_processes, NONE, NULL},
    {"counts of a message differ", "nccl-mismatch", two, COUNT, NULL},
    {"types of a message differ", "nccl-mismatch", two, TYPE, NULL},
    {"counts of a message differ between processes", "nccl-mismatch", two_processes, COUNT, NULL},
    {"a send does not wait for what it sends", "race-between-streams", two, NO_EVENT, NULL},
    {"a reader does not wait for the receive", "race-between-streams", two, NO_WAIT, NULL},
    {"a buffer is written before it was sent", "race-between-streams", two, IN_FLIGHT, NULL},
    {"the order of messages is a circle", "nccl-deadlock", two, ORDER, NULL},
    {"both ranks send first", "nccl-deadlock", two, BOTH_SEND, NULL},
    {"both ranks send first, two processes", "nccl-deadlock", two_processes, BOTH_SEND, NULL},
    {"a lost rank is found by deadline and abort", NULL, two_processes, LOST_ABORT, NULL},
    {"a lost rank is waited for without a deadline", "nccl-peer-gone", two_processes, LOST, NULL},
    {"a communicator is used after its end", "dead-handle", two, DESTROYED, NULL},
    {NULL, NULL, NULL, 0, NULL},
};
