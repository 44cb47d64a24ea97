/* mpi/shared.c - see shared.h. */
#include "mpi/shared.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/mem.h"

int shared_file(const char *name, uint64_t bytes)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

int shared_find(int pid, int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void *map(int fd, uint64_t bytes)
{
    void *at = fd < 0 ? MAP_FAILED
                      : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct made { int pid, fd; };

static void *map_theirs(const struct made *m, uint64_t bytes)
{
    int fd = bytes && m->fd >= 0 ? shared_find(m->pid, m->fd) : -1;
    void *at = map(fd, bytes);
    if (fd >= 0) close(fd);           /* the mapping lives on */
    return at;
}

void *shared_each(const struct job *j, const char *name, uint64_t bytes, struct shared_with *out)
{
    size_t ranks = (size_t)j->host_size;
    struct made mine = { (int)getpid(), bytes ? shared_file(name, bytes) : -1 };
    struct made *all = mem_array(ranks, sizeof *all);
    int *seen = mem_array(2 * ranks, sizeof *seen), *by = seen + ranks;
    void *at = map(mine.fd, bytes);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, j->host_comm);
    for (size_t i = 0; i < ranks; i++) {
        bool other = (int)i != j->host_rank;
        out[i].theirs = other ? map_theirs(&all[i], bytes) : NULL;
        seen[i] = out[i].theirs != NULL;
    }
    MPI_Alltoall(seen, 1, MPI_INT, by, 1, MPI_INT, j->host_comm);
    for (size_t i = 0; i < ranks; i++) out[i].sees_ours = at && by[i];
    if (mine.fd >= 0) close(mine.fd);
    free(all);
    free(seen);
    return at;
}
