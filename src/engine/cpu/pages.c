/* engine/cpu/pages.c - large memory straight from the kernel; see cpu.h. */
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/mem.h"
#include "engine/cpu/cpu.h"

void *pages_try(uint64_t bytes)
{
    void *at = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    if (bytes >= 2 << 20) madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

bool pages_touch(void *at, uint64_t bytes)
{
    return madvise(at, bytes, MADV_POPULATE_WRITE) == 0;
}

void *pages_take(uint64_t bytes)
{
    void *at = pages_try(bytes);
    if (!at) die("out of memory: %" PRIu64 " bytes", bytes);
    return at;
}

void pages_give(void *at, uint64_t bytes)
{
    if (at) munmap(at, bytes ? bytes : 1);
}

/* Is all of it in one mapping that is read-only and backed by a file? */
static bool is_file(uintptr_t from, uintptr_t end)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    bool yes = false;
    while (f && !yes && fgets(line, sizeof line, f)) {
        uintptr_t low, high;
        unsigned long inode;
        char mode[5];
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %*s %lu", &low, &high, mode,
                   &inode) == 4) {
            yes = low <= from && end <= high && inode != 0 && mode[1] == '-';
        }
    }
    if (f) fclose(f);
    return yes;
}

void pages_release_file(const void *at, uint64_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)at + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)at + bytes) / page * page;
    if (from < end && is_file(from, end)) madvise((void *)from, end - from, MADV_DONTNEED);
}
