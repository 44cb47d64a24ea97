/* common/service.h - the InferenceService document: the one file that configures all programs. */
#ifndef RANKSERVE_COMMON_SERVICE_H
#define RANKSERVE_COMMON_SERVICE_H

#include "common/config.h"

/* Sets in *c what the document says.  On failure `why` has the path, the line, the field. */
enum err service_load(struct config *c, const char *path, struct why *why);

#endif
