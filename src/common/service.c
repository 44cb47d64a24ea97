/* common/service.c - reads an InferenceService document into the settings; see service.h. */
#include "common/service.h"

enum err service_load(struct config *c, const char *path, struct why *why)
{
    (void)c;
    return why_set(why, ERR_UNSUPPORTED, "%.200s: service documents are not read yet", path);
}
