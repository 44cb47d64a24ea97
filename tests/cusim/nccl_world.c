/* tests/cusim/nccl_world.c - see nccl_world.h. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nccl_world.h"

struct nccl_world *world_join(const char *id, int size, int rank, int *lock_file)
{
    char path[160];
    snprintf(path, sizeof path, "/dev/shm/cusim-%.100s", id);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct nccl_world))) return NULL;
    struct nccl_world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (w == MAP_FAILED) return NULL;
    uint32_t expected = 0;
    report_if(!atomic_compare_exchange_strong(&w->size, &expected, (uint32_t)size) &&
              expected != (uint32_t)size, NCCL_MISMATCH,
              "rank %d joins a communicator of %d ranks, others said %u", rank, size, expected);
    struct flock mine = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
    int32_t nobody = 0;
    report_if(!atomic_compare_exchange_strong(&w->pid[rank], &nobody, (int32_t)getpid()) ||
              fcntl(file, F_SETLK, &mine), NCCL_MISMATCH, "rank %d joins a communicator twice",
              rank);
    if (atomic_fetch_add(&w->joined, 1) + 1 == (uint32_t)size) unlink(path);
    *lock_file = file;
    return w;
}

bool world_rank_gone(const struct nccl_world *w, int lock_file, int rank)
{
    int32_t pid = atomic_load(&w->pid[rank]);
    if (!pid || pid == (int32_t)getpid()) return false;
    struct flock its = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
    return !fcntl(lock_file, F_GETLK, &its) && its.l_type == F_UNLCK;
}

/* The file stays open: closing it would drop the locks of this process's other ranks as well. */
void world_leave(struct nccl_world *w) { munmap(w, sizeof *w); }
