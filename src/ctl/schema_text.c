/* ctl/schema_text.c - the CRDs' own files, inside the program: `validate` needs no other file. */
#include "ctl/schema.h"

#define EMBED(name, path)                                                                        \
    __asm__(".pushsection .rodata\n" #name ":\n.incbin \"" path "\"\n" #name "_end:\n"           \
            ".byte 0\n.popsection\n");                                                           \
    extern const char name[], name##_end[]

EMBED(schema_inference_service, "k8s-mpi-operator/base/crds/inferenceservices.yaml");
EMBED(schema_cache_policy, "k8s-mpi-operator/base/crds/cachepolicies.yaml");
EMBED(schema_mpi_job, "k8s-mpi-operator/schemas/mpijob.yaml");

const struct schema_text schema_texts[SCHEMA_COUNT] = {
    { "inferenceservices.yaml", schema_inference_service, schema_inference_service_end },
    { "cachepolicies.yaml", schema_cache_policy, schema_cache_policy_end },
    { "mpijob.yaml", schema_mpi_job, schema_mpi_job_end },
};
