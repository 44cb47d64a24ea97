/* ctl/spec.h - a service file as `render` sees it: settings, what each worker needs, and where in
 * the file each value stands.
 *
 * Only the file counts: not the environment and not this machine, so that the same file always
 * renders to the same text.  spec.c also refuses what no target can start yet, by field.
 */
#ifndef RANKSERVE_CTL_SPEC_H
#define RANKSERVE_CTL_SPEC_H

#include <stdint.h>

#include "common/config.h"
#include "common/config_table.h"
#include "common/mem.h"
#include "common/yaml.h"

/* What a worker or a host has; 0: nobody said. */
struct need {
    uint64_t gpus;
    uint64_t memory;                  /* bytes        */
    uint64_t cpu;                     /* 1/1000 cores */
};

enum { POOL_PREFILL, POOL_DECODE, POOL_BOTH, POOL_SPARES, POOL_COUNT };

struct pool {
    const char *name;                 /* prefill | decode | both | spares     */
    uint64_t replicas;
    struct need need;
    unsigned line;                    /* of its resources                     */
    const char *from;                 /* the pool whose resources it takes    */
};

struct spec {
    struct config config;             /* defaults and the file                */
    struct yaml *yaml;
    const struct yaml_node *service;  /* the InferenceService                 */
    const struct yaml_node *policy;   /* the CachePolicy; NULL: none          */
    struct buf text;                  /* the file as it is                    */
    const char *file;                 /* its path as given                    */
    const char *base;                 /* its last component: for comments     */
    const char *name, *name_space;    /* metadata; "" without a namespace     */
    struct pool pools[POOL_COUNT];
    uint64_t workers;
    bool given_model;                 /* config.model is a flag's, not the file's */
};

/* On failure `why` has file, line and field. */
enum err spec_read(struct spec *s, const char *path, struct why *why);
void spec_close(struct spec *s);

/* Where an option's value stands: "spec.engine.maxModelLen, service.yaml:12" or "the default". */
const char *spec_origin(const struct spec *s, const struct option *o, char *out, size_t bytes);
/* The value at a dotted path below the root, or NULL. */
const struct yaml_node *spec_find(const struct spec *s, const char *path);
/* why_set() with "FILE:LINE: PATH " before the text. */
enum err spec_bad(const struct spec *s, const struct yaml_node *at, const char *path,
                  struct why *why, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* "256Gi", "500m": Kubernetes quantities.  False when `text` is none. */
bool quantity_read(const char *text, double *out);
/* Bytes with the largest binary suffix that divides them. */
const char *bytes_text(uint64_t bytes, char *out, size_t room);

#endif
