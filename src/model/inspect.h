/* model/inspect.h - a model file as a person reads it: its parameters and tensors. */
#ifndef RANKSERVE_MODEL_INSPECT_H
#define RANKSERVE_MODEL_INSPECT_H

#include "common/mem.h"
#include "model/gguf.h"

/* Appends aligned lines: every key with its value (long ones cut), every tensor with type, shape
 * (OUT, IN) and bytes, then the totals of each type. */
void model_inspect(const struct gguf *g, struct buf *out);

#endif
