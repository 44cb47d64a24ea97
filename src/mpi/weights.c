/* mpi/weights.c - first version */
#include "mpi/weights.h"

#include <string.h>

enum err weights_open(struct weights *w, const struct job *j, struct why *why)
{
    enum err e = gguf_open(&w->file, j->config.model, why);
    if (!e) e = model_open(&w->model, w->file, why);
    w->table = backend_find(j->config.backend);
    if (!e && !w->table) e = why_set(why, ERR_UNSUPPORTED, "backend: there is no %s", j->config.backend);
    e = job_agree(j, e, why);
    if (e) return e;
    w->isa = isa_best();
    return OK;
}
