/* engine/null_backend.h - a backend with a model's shape and pace, and no arithmetic.
 *
 * For capacity tests of everything around the model: scheduling, transfers, HTTP.  Tokens are a
 * hash of the history, so a request gives the same text wherever it runs.  Blocks are counted as
 * the model's would be, but no KV is stored; kv_read gives zeros of the right size.
 *
 * A step takes STEP + tokens * TOKEN microseconds, from RANKSERVE_NULL_STEP_US and
 * RANKSERVE_NULL_TOKEN_US, else as a CPU of 20 GB/s and some 200 GFLOP/s would take for this model
 * file.  It sleeps for that time, but for the last moments: it uses next to no processor.
 */
#ifndef RANKSERVE_ENGINE_NULL_BACKEND_H
#define RANKSERVE_ENGINE_NULL_BACKEND_H

#include "engine/backend.h"

extern const struct backend backend_null;

#endif
