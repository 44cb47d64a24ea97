/* engine/backend.c - finds a backend by name.
 *
 * CUDA is a shared object of its own beside the program, loaded when asked for: its libraries are
 * large, and no CPU job shall need them.  It stays loaded as long as the process.
 */
#include "engine/backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/null_backend.h"

static char missing[256] = "is not part of this build";

static const struct backend *cuda_load(void)
{
    char program[PATH_MAX], path[PATH_MAX + 32];
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof program - 1);
    if (bytes <= 0) return NULL;
    program[bytes] = '\0';
    char *name = strrchr(program, '/');
    if (!name) return NULL;
    *name = '\0';
    snprintf(path, sizeof path, "%s/rankserve-cuda.so", program);
    if (access(path, R_OK) != 0) return NULL;
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object) snprintf(missing, sizeof missing, "does not load: %.200s", dlerror());
    return object ? dlsym(object, "backend_cuda") : NULL;
}

const char *backend_missing(void)
{
    return missing;
}

const struct backend *backend_find(const char *name)
{
    if (strcmp(name, "cpu") == 0) return &backend_cpu;
    if (strcmp(name, "null") == 0) return &backend_null;
    if (strcmp(name, "cuda") == 0) return cuda_load();
    return NULL;
}
