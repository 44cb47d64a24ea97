/* mpi/job.c - starts MPI, splits the ranks by role and by host; see job.h. */
#include "mpi/job.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "wire/link.h"

enum { FINALIZE_S = 5, PIECE_BYTES = 16 << 20 };

static void on_alarm(int number)
{
    (void)number;
    _exit(0);
}

_Noreturn void job_leave_alone(int code)
{
    fflush(NULL);
    _exit(code);
}

_Noreturn void job_leave_together(int code)
{
    if (code == 0) signal(SIGALRM, on_alarm); /* a clean end stays clean, though a peer hangs */
    alarm(FINALIZE_S);
    MPI_Finalize();
    job_leave_alone(code);
}

/* Moves the collective on; between two looks this rank sleeps, longer when nothing comes. */
static void wait_asleep(const struct job *j, MPI_Request *request)
{
    int done = 0;
    for (uint64_t nap = 20000;; nap += nap < NS_PER_MS ? nap / 8 : 0) {
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (done) return;
        loop_wait(j->loop, nap);
    }
}

void job_barrier(const struct job *j, MPI_Comm comm)
{
    MPI_Request request;
    MPI_Ibarrier(comm, &request);
    wait_asleep(j, &request);
}

void job_broadcast(const struct job *j, MPI_Comm comm, void *data, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += PIECE_BYTES) {
        uint64_t some = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        MPI_Request request;
        MPI_Ibcast((uint8_t *)data + done, (int)some, MPI_BYTE, 0, comm, &request);
        wait_asleep(j, &request);
    }
}

enum err job_agree(const struct job *j, enum err mine, struct why *why)
{
    int in[2] = { mine == OK ? 1 : 0, j->rank }, out[2];
    MPI_Request request;
    MPI_Iallreduce(in, out, 1, MPI_2INT, MPI_MINLOC, j->control, &request);
    wait_asleep(j, &request);
    if (out[0] == 1) return OK;
    int err = (int)mine;
    MPI_Bcast(&err, 1, MPI_INT, out[1], j->control);
    MPI_Bcast(why->text, sizeof why->text, MPI_CHAR, out[1], j->control);
    return (enum err)err;
}

const char *role_name(enum role role)
{
    return role == ROLE_PREFILL ? "prefill" : role == ROLE_DECODE ? "decode" : "both";
}

enum role job_role_of(const struct job *j, int rank)
{
    CHECK(rank > 0 && rank < j->size);
    uint64_t index = (uint64_t)rank - 1;
    if (index < j->config.prefill) return ROLE_PREFILL;
    if (index < j->config.prefill + j->config.decode) return ROLE_DECODE;
    return ROLE_BOTH;
}

bool job_is_spare(const struct job *j, int rank)
{
    return (uint64_t)rank > j->config.prefill + j->config.decode + j->config.both;
}

int job_device(const struct job *j)
{
    int before = 0;
    for (int i = 1; i < j->rank; i++) before += j->host_of[i] == j->host_of[j->rank];
    return before;
}

static enum err roles_fit(struct job *j, struct why *why)
{
    struct config *c = &j->config;
    if (c->prefill + c->decode + c->both == 0) c->both = 1;
    if (c->both == 0 && (c->prefill == 0 || c->decode == 0))
        return why_set(why, ERR_LIMIT, "roles: %s workers need a %s worker beside them",
                       c->prefill ? "prefill" : "decode", c->prefill ? "decode" : "prefill");
    uint64_t want = 1 + c->prefill + c->decode + c->both + c->spares;
    if (want > WORKER_COUNT_MAX + 1)
        return why_set(why, ERR_LIMIT, "roles: at most %d workers", WORKER_COUNT_MAX);
    if (want != (uint64_t)j->size)
        return why_set(why, ERR_LIMIT,
                       "ranks: %d started, but rank 0 and %llu prefill, %llu decode, %llu both, "
                       "%llu spares need %llu (mpirun -np %llu)",
                       j->size, (unsigned long long)c->prefill, (unsigned long long)c->decode,
                       (unsigned long long)c->both, (unsigned long long)c->spares,
                       (unsigned long long)want, (unsigned long long)want);
    return OK;
}

static void find_hosts(struct job *j)
{
    MPI_Comm everyone = j->control;
    if (getenv("RANKSERVE_FAKE_HOSTS")) /* tests: every rank is a host of its own */
        MPI_Comm_split(everyone, j->rank, 0, &j->host_comm);
    else
        MPI_Comm_split_type(everyone, MPI_COMM_TYPE_SHARED, j->rank, MPI_INFO_NULL, &j->host_comm);
    MPI_Comm_rank(j->host_comm, &j->host_rank);
    MPI_Comm_size(j->host_comm, &j->host_size);
    int lowest = j->rank;
    MPI_Bcast(&lowest, 1, MPI_INT, 0, j->host_comm);
    j->host_of = mem_array((size_t)j->size, sizeof *j->host_of);
    MPI_Allgather(&lowest, 1, MPI_INT, j->host_of, 1, MPI_INT, everyone);
    for (int i = 0; i < j->size; i++) j->host_count += j->host_of[i] == i;
}

/* The gateway derives the same keys from the same file; without one they are this job's own. */
static enum err make_secrets(struct job *j, struct why *why)
{
    secret_random(j->nonce, sizeof j->nonce);
    secret_random(&j->kv_secret, sizeof j->kv_secret);
    secret_random(j->link_secret, sizeof j->link_secret);
    enum err e = OK;
    if (j->config.secret_file[0]) {
        e = link_secret_read(j->config.secret_file, j->link_secret, why);
        j->kv_secret = link_kv_secret(j->link_secret);
    }
    if (e == OK && j->config.kv_secret_file[0]) {
        uint8_t shared[SECRET_BYTES];
        e = link_secret_read(j->config.kv_secret_file, shared, why);
        if (e == OK) j->kv_secret = link_kv_secret(shared);
    }
    return e;
}

/* A program built with one version runs under another one without a word: so one is said. */
static void say_library(const struct job *j)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int bytes = 0;
    MPI_Get_library_version(text, &bytes);
    if (j->rank == 0) log_info("mpi=\"%.*s\" ranks=%d", (int)strcspn(text, ",\n"), text, j->size);
}

static void name_job(struct job *j)
{
    static char id[32];
    if (j->config.job_id[0]) return;
    uint32_t number;
    secret_random(&number, sizeof number);
    snprintf(id, sizeof id, "job-%08x", number);
    j->config.job_id = id;
}

enum err job_open(struct job *j, struct why *why)
{
    int provided;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return why_set(why, ERR_IO, "MPI does not start");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN); /* copies inherit it */
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &j->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &j->size);
    char name[32];
    snprintf(name, sizeof name, "rank=%d", j->rank);
    log_name(name);
    say_library(j);
    enum err e = roles_fit(j, why);
    if (e) return e; /* every rank finds the same */
    j->role = j->rank == 0 ? 0 : job_role_of(j, j->rank);
    MPI_Comm_dup(MPI_COMM_WORLD, &j->control);
    MPI_Comm_dup(MPI_COMM_WORLD, &j->data);
    MPI_Comm_split(j->control, (int)j->role, j->rank, &j->role_comm);
    find_hosts(j);
    e = job_agree(j, j->rank == 0 ? make_secrets(j, why) : OK, why);
    if (e) return e;
    name_job(j);
    MPI_Bcast(j->nonce, sizeof j->nonce, MPI_BYTE, 0, j->control);
    MPI_Bcast(&j->kv_secret, sizeof j->kv_secret, MPI_BYTE, 0, j->control);
    return OK;
}
