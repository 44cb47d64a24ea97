/* common/config.h - every setting of every program, in one table that parses, explains and prints.
 *
 * The table (config_table.c) has a row per option: name (as vLLM has it where vLLM has one), kind,
 * field, default, bounds, which programs take it, and why it exists; service.c maps the fields of
 * the InferenceService document to it.  --help and --print-config are made from it; what
 * --print-config prints can be read back with --config.  Order, later wins: defaults,
 * -f service.yaml, --config FILE, RANKSERVE_* environment (--max-model-len is
 * RANKSERVE_MAX_MODEL_LEN), command line.
 * Owner: main() of each program; read-only afterwards.
 */
#ifndef RANKSERVE_COMMON_CONFIG_H
#define RANKSERVE_COMMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/check.h"

enum program { PROGRAM_RANKSERVE = 1, PROGRAM_GATEWAY = 2, PROGRAM_CTL = 4 };

struct config {
    /* The model. */
    const char *model;                /* path or URI; "" : the default model                  */
    const char *served_model_name;    /* "": the file's own name, shortened                   */
    uint64_t max_model_len;           /* 0: the model's context, capped by the KV pool        */

    /* The job. */
    uint64_t prefill, decode, both;   /* workers of each role                                 */
    uint64_t spares;
    uint64_t threads;                 /* compute threads per worker; 0: the host's cores      */
    const char *backend;              /* cpu | cuda | null                                    */
    const char *policy;
    const char *decode_policy;        /* "same": as policy                                    */
    bool enable_pd_role_switch;
    uint64_t pd_role_switch_interval_ms;
    const char *labels;               /* "app=chat,tier=1": what a CachePolicy selects by     */
    const char *run_dir;              /* sockets, secret, status; "": made by `up`            */
    const char *link;                 /* rank 0 listens / gateway connects: path or HOST:PORT */
    const char *link_listen;          /* rank 0 also listens here; "": nowhere else           */
    const char *jobs;                 /* of the gateway: a directory of endpoint files        */
    const char *jobs_name;            /* only jobs of this name; "": all                      */
    const char *secret_file;          /* 0600, the link's secret                              */
    const char *status_file;          /* rank 0 writes how the job ended                      */
    const char *job_id;
    const char *name;                 /* of the service, in its endpoint file                 */

    /* The engine, as in vLLM. */
    uint64_t block_size;
    uint64_t kv_cache_memory_bytes;   /* per worker; 0: auto                                   */
    const char *kv_cache_dtype;       /* auto (f16), f16, f32, int8, fp8 and other names      */
    const char *kv_connector;         /* auto | nccl | mpi                                    */
    uint64_t max_num_seqs;
    uint64_t max_num_batched_tokens;
    uint64_t long_prefill_token_threshold;
    uint64_t step_time_target_ms;     /* of steps with decodes; 0: from what these take alone */
    bool enable_chunked_prefill;
    bool enable_prefix_caching;

    /* The prefix cache: what a CachePolicy says (common/cache_policy.h).  0: no limit. */
    uint64_t max_prefix_length;       /* tokens                                               */
    uint64_t cache_ttl_ms;
    uint64_t cache_max_entries;       /* blocks                                               */
    double cache_memory_threshold;    /* share of the pool                                    */
    double cache_locality_weight, latency_weight;

    /* The view that jobs share (kv/shared_view.h). */
    const char *redis;                /* where; "": none                                      */
    const char *redis_password_file;  /* 0600                                                 */
    const char *redis_cacert;         /* PEM; "": whom the system believes                    */
    const char *redis_cert;           /* PEM, ours; "": none                                  */
    const char *redis_key;            /* PEM, 0600                                            */
    const char *redis_sni;            /* the servers' name; "": each one's host               */
    bool redis_insecure;              /* believe whoever answers                              */
    const char *kv_secret_file;       /* 0600; of blocks' keys; "": from the link's secret    */

    double gpu_memory_utilization;
    const char *linear_backend;       /* auto (rankserve) | rankserve | cublas                */
    uint64_t tensor_parallel_size;    /* 1 for now                                            */
    uint64_t pipeline_parallel_size;  /* only 1 is accepted                                   */
    const char *activations;          /* auto | float: plain-C oracle                         */
    uint64_t max_queue;               /* waiting requests before 429                          */
    uint64_t seed;                    /* default seed of requests without one; 0: random      */

    /* HTTP. */
    const char *listen;               /* HOST:PORT; port 0: any free one                      */
    const char *uds;                  /* also listen on this Unix socket; "": no              */
    const char *endpoint_file;
    const char *api_key_file;         /* 0600; one key a line; "": RANKSERVE_API_KEY or none  */
    const char *chat_template;        /* a file that replaces the model's own; "": its own    */
    uint64_t max_logprobs;
    bool debug_headers;
    uint64_t drain_timeout_s;

    const char *log_level;
};

/* Fills *c from defaults, environment and arguments for this program; keeps pointers into argv and
 * into memory that lives as long as the process.  argv may hold positional words: they are moved to
 * argv[1..] and counted in *words_out (NULL: none allowed).  --help prints and exits 0,
 * --print-config prints and exits 0.  On failure: one line, with the nearest name for a typo. */
enum err config_load(struct config *c, enum program program, int argc, char **argv, int *words_out,
                     struct why *why);
/* All options of the table, one `name = value` a line, in the form that --config reads. */
void config_print(const struct config *c, enum program program, FILE *out);
/* argv for another program of the suite: every option that `program` takes and that is not at its
 * default, as "--name=value" texts appended to argv (NULL-terminated, the caller frees). */
char **config_arguments(const struct config *c, enum program program);

#endif
