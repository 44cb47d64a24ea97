/* ctl/render.h - a service file as something that can be started: shared by the three targets.
 *
 * The same file and flags always give the same bytes: no time, path, host name or random value of
 * this machine gets in.  Every value has a comment beside it that says where it comes from.
 * render_slurm.c and render_k8s.c hold the targets; spec.c reads, pack.c places.
 */
#ifndef RANKSERVE_CTL_RENDER_H
#define RANKSERVE_CTL_RENDER_H

#include "ctl/pack.h"
#include "ctl/spec.h"

struct render {
    struct spec spec;
    struct packing pack;
    struct need host;                 /* as flags say                          */
    const char *image;                /* Kubernetes                            */
    const char *claim;                /* of a pvc:// model, else NULL          */
    const char *partition, *account, *time, *launcher; /* Slurm                */
    const char *consecutive;          /* Slurm: seconds, as it was written     */
    struct buf out;
};

enum err render_slurm(struct render *r, struct why *why);
enum err render_k8s(struct render *r, struct why *why);
enum err render_local(struct render *r, struct why *why);

/* One line per option that is not at its default: `before`, "--name=value" quoted for the shell or
 * for YAML, and a comment with its origin.  `skip`: names that the target sets itself. */
void render_options(struct render *r, const char *before, bool shell, const char *skip);
/* An option's origin as a comment, for values that stand elsewhere. */
const char *render_origin(const struct render *r, const char *option, char *out, size_t bytes);

#endif
