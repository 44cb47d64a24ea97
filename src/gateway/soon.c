/* gateway/soon.c - see soon.h. */
#include "gateway/soon.h"

void soon_asked(struct soon *s, uint64_t stream, uint64_t now_ns)
{
    if (s->stream) s->proofs = 0;     /* the last one never came */
    s->stream = stream;
    s->asked_ns = now_ns;
}

void soon_came(struct soon *s, uint64_t stream, uint64_t now_ns)
{
    if (!s->stream || s->stream != stream) return;
    s->stream = 0;
    if (now_ns - s->asked_ns > SOON_NS) s->proofs = 0;
    else if (s->proofs < SOON_PROOFS) s->proofs++;
}

uint64_t soon_until_ns(const struct soon *s)
{
    return s->stream && s->proofs == SOON_PROOFS ? s->asked_ns + SOON_NS : 0;
}
