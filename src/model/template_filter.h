/* model/template_filter.h - joins the two files of filters. */
#ifndef RANKSERVE_MODEL_TEMPLATE_FILTER_H
#define RANKSERVE_MODEL_TEMPLATE_FILTER_H

#include "model/template_run.h"

/* Filters that walk a sequence (template_filter_seq.c). */
const struct tp_builtin *tp_find_sequence_filter(const struct tp_text *name);

#endif
