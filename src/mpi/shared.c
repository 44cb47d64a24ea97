/* mpi/shared.c - see shared.h. */
#include "mpi/shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"

/* Nobody makes it shorter below those who have mapped it. */
enum { SEALS = F_SEAL_SHRINK | F_SEAL_SEAL };

int shared_file(const char *name, uint64_t bytes, struct shared_name *out)
{
    struct stat st;
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    *out = (struct shared_name){ .pid = (int)getpid(), .fd = -1 };
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0 &&
        fstat(fd, &st) == 0) {
        out->device = st.st_dev;
        out->inode = st.st_ino;
        return out->fd = fd;
    }
    if (fd >= 0) close(fd);
    return -1;
}

/* Looked at before it is opened: what another process has there may be anything. */
static bool is_that(const char *path, const struct shared_name *n)
{
    struct stat st;
    if (stat(path, &st) != 0) return false;
    if (st.st_dev == n->device && st.st_ino == n->inode) return true;
    errno = ESTALE;
    return false;
}

int shared_find(const struct shared_name *n)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", n->pid, n->fd);
    int fd = is_that(path, n) ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0 || (fcntl(fd, F_GET_SEALS) & SEALS) == SEALS) return fd;
    close(fd);
    errno = ESTALE;
    return -1;
}

static void *map(int fd, uint64_t bytes)
{
    void *at = fd < 0 ? MAP_FAILED
                      : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void *map_theirs(const struct shared_name *n, uint64_t bytes)
{
    int fd = bytes && n->fd >= 0 ? shared_find(n) : -1;
    void *at = map(fd, bytes);
    if (fd >= 0) close(fd);           /* the mapping lives on */
    return at;
}

void *shared_each(const struct job *j, const char *name, uint64_t bytes, struct shared_with *out)
{
    size_t ranks = (size_t)j->host_size;
    struct shared_name mine = { .fd = -1 }, *all = mem_array(ranks, sizeof *all);
    if (bytes) shared_file(name, bytes, &mine);
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
