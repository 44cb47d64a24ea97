/* tests/unit/common_service_test.c - the InferenceService document. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/config_table.h"
#include "common/log.h"
#include "common/service.h"

#define HEAD "apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\nmetadata:\n  name: s\n"

static enum err load(struct config *c, const char *text, struct why *why)
{
    config_defaults(c);
    enum err e = service_read(c, text, strlen(text), "s.yaml", why);
    return e == OK ? config_check(c, why) : e;
}

static void refused(const char *text, const char *part)
{
    struct config c;
    struct why why = { "" };
    assert_int_not_equal(load(&c, text, &why), OK);
    if (!strstr(why.text, part)) fail_msg("'%s' does not say '%s'", why.text, part);
}

static void the_example_of_the_architecture_page_is_read(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    config_defaults(&c);
    static const char text[] =
        "apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\n"
        "metadata:\n  name: llama-3.1-70b-service\n  namespace: production\n"
        "spec:\n  model:\n    modelUri: \"hf://meta-llama/Llama-3.1-70B-Instruct\"\n"
        "    quantization: \"fp8\"\n    tensorParallelSize: 4\n"
        "  serving:\n    prefill:\n      replicas: 2\n      resources:\n        limits:\n"
        "          nvidia.com/gpu: 4\n          memory: \"256Gi\"\n"
        "    decode:\n      replicas: 4\n      autoscaling:\n        enabled: true\n"
        "        minReplicas: 4\n        maxReplicas: 16\n        targetLatency: \"100ms\"\n"
        "  caching:\n    enabled: true\n    redis:\n      cluster: \"redis-cluster\"\n"
        "    prefixCaching:\n      enabled: true\n      maxPrefixLength: 4096\n"
        "---\napiVersion: serving.llm-d.ai/v1alpha1\nkind: CachePolicy\n"
        "metadata:\n  name: conversation-cache-policy\n"
        "spec:\n  selector:\n    matchLabels:\n      app: \"chat-application\"\n"
        "  caching:\n    strategy: \"prefix-aware\"\n    ttl: \"1h\"\n    maxEntries: 10000\n"
        "  eviction:\n    policy: \"lru\"\n    memoryThreshold: \"80%\"\n"
        "  routing:\n    cacheLocalityWeight: 0.7\n    latencyWeight: 0.3\n";
    if (service_read(&c, text, sizeof text - 1, "s.yaml", &why) != OK) fail_msg("%s", why.text);
    assert_string_equal(c.model, "hf://meta-llama/Llama-3.1-70B-Instruct");
    assert_int_equal(c.tensor_parallel_size, 4);
    assert_int_equal(c.prefill, 2);
    assert_int_equal(c.decode, 4);
    assert_true(c.enable_prefix_caching);
    assert_string_equal(c.redis, "redis-cluster");
}

static void engine_takes_every_option_by_its_camel_case_name(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    static const char text[] =
        HEAD "spec:\n  model: {modelUri: file:///m/x.gguf}\n  serving:\n    both: {replicas: 3}\n"
        "  engine:\n    maxModelLen: 8k\n    blockSize: 32\n    kvCacheMemoryBytes: 256Mi\n"
        "    enableChunkedPrefill: false\n    servedModelName: x\n";
    if (load(&c, text, &why) != OK) fail_msg("%s", why.text);
    assert_string_equal(c.model, "/m/x.gguf");
    assert_int_equal(c.both, 3);
    assert_int_equal(c.max_model_len, 8000);
    assert_int_equal(c.block_size, 32);
    assert_int_equal(c.kv_cache_memory_bytes, 256 << 20);
    assert_false(c.enable_chunked_prefill);
    assert_string_equal(c.served_model_name, "x");
}

static void caching_switched_off_wins(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    assert_int_equal(load(&c, HEAD "spec:\n  caching:\n    enabled: false\n    prefixCaching:\n"
                          "      enabled: true\n", &why), OK);
    assert_false(c.enable_prefix_caching);
    assert_int_equal(load(&c, HEAD "spec:\n  caching:\n    prefixCaching: {enabled: false}\n",
                          &why), OK);
    assert_false(c.enable_prefix_caching);
}

static void unknown_fields_are_named_with_line_and_neighbour(void **state)
{
    (void)state;
    refused(HEAD "spec:\n  modle: {}\n", "s.yaml:6: spec.modle is unknown; did you mean model?");
    refused(HEAD "spec:\n  model:\n    modelURL: x\n", "s.yaml:7: spec.model.modelURL is unknown");
    refused(HEAD "spec:\n  engine:\n    maxModelLength: 1\n",
            "spec.engine.maxModelLength is unknown; did you mean maxModelLen?");
    refused(HEAD "spec:\n  engine:\n    runDir: /x\n", "spec.engine.runDir is unknown");
    refused(HEAD "spec:\n  serving:\n    decoed: {replicas: 1}\n", "did you mean decode?");
    refused(HEAD "spek: {}\n", "s.yaml:5: spek is unknown; did you mean spec?");
}

static void values_of_the_wrong_kind_are_refused(void **state)
{
    (void)state;
    refused(HEAD "spec:\n  serving:\n    both: {replicas: \"2\"}\n",
            "s.yaml:7: spec.serving.both.replicas must be a whole number from 1");
    refused(HEAD "spec:\n  serving:\n    both: {replicas: 0}\n", "whole number from 1");
    refused(HEAD "spec:\n  serving:\n    both: {replicas: 5000}\n", "from 0 to 1024");
    refused(HEAD "spec:\n  serving: 3\n", "spec.serving must hold fields");
    refused(HEAD "spec:\n  model: {modelUri: [a]}\n", "single value");
    refused(HEAD "spec:\n  model: {quantization: fp4}\n", "one of: none gptq awq fp8");
    refused(HEAD "spec:\n  caching: {enabled: maybe}\n", "true or false");
    refused(HEAD "spec:\n  caching: {enabled: [false]}\n", "single value");
    refused(HEAD "spec:\n  engine: {maxModelLen: {a: 1}}\n", "single value");
    refused(HEAD "spec:\n  engine: 4\n", "must hold fields");
    refused(HEAD "spec:\n  model: {modelUri: \"file://host/x\"}\n", "three slashes");
}

static void the_head_is_checked(void **state)
{
    (void)state;
    refused("", "holds no InferenceService");
    refused("just text\n", "not an InferenceService document");
    refused("kind: Pod\n", "s.yaml:1: kind must be");
    refused("apiVersion: v1\nkind: InferenceService\nmetadata: {name: x}\n", "apiVersion must be");
    refused("apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\n", "metadata.name");
    refused(HEAD "---\n" HEAD, "a second InferenceService");
}

int main(void)
{
    log_set_level("error");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_of_the_architecture_page_is_read),
        cmocka_unit_test(engine_takes_every_option_by_its_camel_case_name),
        cmocka_unit_test(caching_switched_off_wins),
        cmocka_unit_test(unknown_fields_are_named_with_line_and_neighbour),
        cmocka_unit_test(values_of_the_wrong_kind_are_refused),
        cmocka_unit_test(the_head_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
