/* common/service.h - the InferenceService document: the one file that configures all programs.
 *
 * The same YAML that Kubernetes gets, with an optional CachePolicy document in the same stream.
 * service.c holds the table of its fields; `spec.engine` takes every option of the option table by
 * its camelCase name (--max-model-len is spec.engine.maxModelLen), but for those with a field of
 * their own.  A CachePolicy whose selector does not match the service's labels is left out, and
 * named in the log.  A field that nothing uses yet is checked, accepted, and named in the log.
 */
#ifndef RANKSERVE_COMMON_SERVICE_H
#define RANKSERVE_COMMON_SERVICE_H

#include <stddef.h>

#include "common/config.h"
#include "common/mem.h"

/* Sets in *c what the documents say.  On failure `why` has the file, the line, the field. */
enum err service_load(struct config *c, const char *path, struct why *why);
/* The same from memory; `name` stands in messages. */
enum err service_read(struct config *c, const char *data, size_t bytes, const char *name,
                      struct why *why);
/* A file with one CachePolicy and nothing else: its settings into *c, all others at their defaults,
 * and its selector, "k=v,k=v", into `selector`. */
enum err service_load_policy(struct config *c, const char *path, struct buf *selector,
                             struct why *why);

#endif
