/* tests/unit/populate.h - does the kernel give memory ahead of its use?  (mem_populate) */
#ifndef RANKSERVE_TESTS_UNIT_POPULATE_H
#define RANKSERVE_TESTS_UNIT_POPULATE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/mem.h"

/* False before Linux 5.14: there what a test expects of memory that is not there cannot be. */
static inline bool kernel_populates(void)
{
    size_t page = 4096;
    void *at = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool known = madvise(at, page, MADV_POPULATE_WRITE) == 0 || errno != EINVAL;
    munmap(at, page);
    return known;
}

#endif
