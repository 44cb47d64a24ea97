/* mpi/weights.c - who reads the model file, who receives it, and what a host's ranks share.
 *
 * One rank of each host leads it.  Rank 0 leads its own and reads the file; the others lead hosts
 * that receive its bytes into a memfd (shared.h).  Ranks beside rank 0 map the same file.
 * The memfd lies in huge pages where the kernel has them: all weights are read in every step, and
 * in pages of 4 KB that takes a fifth longer.
 */
#include "mpi/weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "mpi/shared.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25              /* Linux 6.1 */
#endif

enum { PAGE = 4096 };

/* Memory shared by the ranks of a host, writable by all of them. */
struct shared {
    int fd;
    void *at;
    uint64_t bytes;
};

/* Of the file and of its mappings: whole huge pages. */
static uint64_t file_bytes(uint64_t bytes)
{
    return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

/* At an address that a huge page may have; NULL: no room. */
static void *map_file(int fd, uint64_t bytes, int protection)
{
    uint64_t room = bytes + HUGE_PAGE;
    uint8_t *from = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (from == MAP_FAILED) return NULL;
    uint64_t before = -(uintptr_t)from % HUGE_PAGE;
    uint8_t *at = from + before;
    if (mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(from, room);
        return NULL;
    }
    if (before) munmap(from, before);
    munmap(at + bytes, HUGE_PAGE - before);
    return at;
}

static enum err shared_map(struct shared *s, int protection, struct why *why)
{
    s->at = map_file(s->fd, file_bytes(s->bytes), protection);
    if (s->at) return OK;
    return why_set(why, ERR_MEMORY, "cannot map %llu bytes of weights: %s",
                   (unsigned long long)s->bytes, strerror(errno));
}

/* Shared memory is in small pages by default (shmem_enabled), but a program may ask for a huge one
 * where at least one small page is there.  A refusal costs speed only; but from Linux 5.14 on
 * all of the file has memory then.  False and errno: there is not so much. */
static bool take_pages(int fd, uint64_t bytes)
{
    uint8_t *at = map_file(fd, bytes, PROT_READ | PROT_WRITE);
    bool huge = true, there = at != NULL;
    for (uint64_t i = 0; there && i < bytes; i += HUGE_PAGE) {
        there = mem_populate(at + i, PAGE);
        if (there && huge) huge = madvise(at + i, HUGE_PAGE, MADV_COLLAPSE) == 0;
        if (there && !huge) there = mem_populate(at + i, HUGE_PAGE);
    }
    int error = errno;
    if (at) munmap(at, bytes);
    errno = error;
    return there;
}

/* Collective over the host. */
static enum err shared_open(struct shared *s, const struct job *j, const char *name,
                            struct why *why)
{
    struct { struct shared_name where; int error; } first = { 0 };
    if (j->host_rank == 0) {
        s->fd = shared_file(name, file_bytes(s->bytes), &first.where);
        bool there = s->fd >= 0 && take_pages(s->fd, file_bytes(s->bytes));
        first.error = there ? 0 : errno;
    }
    job_broadcast(j, j->host_comm, &first, sizeof first);
    int error = first.error;
    if (j->host_rank != 0 && !error) {
        s->fd = shared_find(&first.where);
        error = s->fd < 0 ? errno : 0;
    }
    enum err e = OK;
    if (error)
        e = why_set(why, ERR_MEMORY, "rank %d: no shared memory of %llu bytes: %s", j->rank,
                    (unsigned long long)s->bytes, strerror(error));
    return e ? e : shared_map(s, PROT_READ | PROT_WRITE, why);
}

/* From now on nobody writes by mistake. */
static enum err shared_freeze(struct shared *s, struct why *why)
{
    munmap(s->at, file_bytes(s->bytes));
    enum err e = shared_map(s, PROT_READ, why);
    close(s->fd); /* the mapping lives on */
    return e;
}

/* -- the file --------------------------------------------------------------------------------- */

static enum err receive_on_other_hosts(struct weights *w, const struct job *j, struct why *why)
{
    bool with_reader = j->host_of[j->rank] == 0;
    uint64_t bytes = 0;
    const void *file = j->rank == 0 ? gguf_image(w->file, &bytes) : NULL;
    job_broadcast(j, j->control, &bytes, sizeof bytes);
    struct shared s = { .fd = -1, .bytes = bytes };
    enum err e = with_reader ? OK : shared_open(&s, j, "rankserve-weights", why);
    e = job_agree(j, e, why);
    if (e) return e;
    MPI_Comm leaders;
    MPI_Comm_split(j->control, j->host_rank == 0 ? 0 : MPI_UNDEFINED, j->rank, &leaders);
    if (j->host_rank == 0) {
        job_broadcast(j, leaders, j->rank == 0 ? (void *)(uintptr_t)file : s.at, bytes);
        MPI_Comm_free(&leaders);
    }
    job_barrier(j, j->host_comm);
    if (!with_reader) e = shared_freeze(&s, why);
    if (!with_reader && !e)
        e = gguf_open_image(&w->file, s.at, bytes, j->config.model, why);
    return job_agree(j, e, why);
}

static enum err open_file(struct weights *w, const struct job *j, struct why *why)
{
    /* First the reader alone: a bad file is one line, and quickly. */
    enum err e = j->rank == 0 ? gguf_open(&w->file, j->config.model, why) : OK;
    e = job_agree(j, e, why);
    if (e) return e;
    if (j->rank != 0 && j->host_of[j->rank] == 0) e = gguf_open(&w->file, j->config.model, why);
    e = job_agree(j, e, why);
    if (!e && j->host_count > 1) e = receive_on_other_hosts(w, j, why);
    return e;
}

static enum err open_model(struct weights *w, const struct job *j, struct why *why)
{
    enum err e = job_agree(j, model_open(&w->model, w->file, why), why);
    if (e) return e;
    struct hash128 digest = w->model->digest;
    job_broadcast(j, j->control, &digest, sizeof digest);
    if (!hash_equal(digest, w->model->digest))
        e = why_set(why, ERR_FORMAT, "model: rank %d finds another file at %s than rank 0", j->rank,
                    j->config.model);
    return job_agree(j, e, why);
}

/* -- what the backend makes of it ------------------------------------------------------------- */

static enum isa common_isa(const struct job *j, enum isa best)
{
    int mine = j->rank == 0 ? ISA_COUNT : (int)best, lowest; /* rank 0 never computes */
    MPI_Allreduce(&mine, &lowest, 1, MPI_INT, MPI_MIN, j->control);
    return (enum isa)lowest;
}

static enum err pack(struct weights *w, const struct job *j, struct why *why)
{
    struct shared s = { .fd = -1, .bytes = w->table->packed_bytes(w->model, w->isa) };
    bool alone = j->rank == 0 && j->host_size == 1;
    if (s.bytes == 0) return OK; /* the same on every rank: same model, same instructions */
    enum err e = alone ? OK : shared_open(&s, j, "rankserve-packed", why);
    e = job_agree(j, e, why);
    if (e || alone) return e;
    w->table->pack(w->model, w->isa, s.at, (uint32_t)j->host_rank, (uint32_t)j->host_size);
    job_barrier(j, j->host_comm);
    e = shared_freeze(&s, why);
    w->packed = s.at;
    return e;
}

/* The first two workers whose GPUs differ; every rank finds the same two. */
static enum err alike(const struct weights *w, const struct job *j, struct why *why)
{
    if (!w->table->capability) return OK;
    int mine = j->rank > 0 ? w->table->capability(job_device(j)) : 0, first = 1;
    int *all = mem_array((size_t)j->size, sizeof *all);
    MPI_Allgather(&mine, 1, MPI_INT, all, 1, MPI_INT, j->control);
    enum err e = OK;
    while (first < j->size && !all[first]) first++;
    for (int i = first + 1; !e && i < j->size; i++)
        if (all[i] && all[i] != all[first])
            e = why_set(why, ERR_UNSUPPORTED, "backend %s: rank %d has compute capability %d.%d and"
                        " rank %d %d.%d: the GPUs of a job must be alike", j->config.backend, first,
                        all[first] / 10, all[first] % 10, i, all[i] / 10, all[i] % 10);
    free(all);
    return e;
}

enum err weights_open(struct weights *w, const struct job *j, struct why *why)
{
    enum isa best;
    enum err e = isa_find(&best, why);
    w->table = backend_find(j->config.backend);
    if (!w->table) e = why_set(why, ERR_UNSUPPORTED, "backend: %s %s", j->config.backend,
                               backend_missing());
    e = job_agree(j, e, why);
    if (!e) e = open_file(w, j, why);
    if (!e) e = open_model(w, j, why);
    if (!e) e = alike(w, j, why);
    if (e) return e;
    bool oracle = strcmp(j->config.activations, "float") == 0; /* it is plain C everywhere */
    w->isa = oracle ? ISA_PLAIN : common_isa(j, best);
    if (w->table->packed_bytes) e = pack(w, j, why);
    return job_agree(j, e, why);
}
