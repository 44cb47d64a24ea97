/* ctl/sim_seed.c - small jobs of every shape with every misfortune, each from one number. */
#include "ctl/sim.h"

/* About two H100 with a model of 32 billion: 16,000 prompt tokens a second, 262 kB of KV each. */
const struct sim_engine sim_engine_usual = {
    .prefill_token_ns = 46875, .prefill_context_ns = 500, .step_ns = 8e6, .step_seq_ns = 1e5,
    .chunk_tokens = 512, .seqs = 128, .cache_tokens = 500000, .kv_token_bytes = 262144,
    .link_bytes_s = 25e9,
};

void sim_run_seed(uint64_t seed, uint32_t requests, struct sim_engine e, struct sim_result *out)
{
    struct sim_load load;
    struct sim_options o = {
        .policy = (enum sched_policy)(seed % POLICY_COUNT), .seed = seed, .speed = 1,
        .prefill = (uint32_t)(seed / 8 % 3), .decode = (uint32_t)(seed / 8 % 3), .engine = e,
        .max_queue = seed % 5 ? REQ_COUNT_MAX : 20, .metrics_ns = seed % 2 * 50000000,
    };
    if (seed / 24 % 2 || o.prefill == 0) o.both = 2 + (uint32_t)(seed % 3);
    if (seed % 11 == 0) o.decode_policy = 1 + (uint32_t)(seed / 11 % POLICY_COUNT);
    o.engine.cache_tokens = 8000 + (uint32_t)(seed % 4) * 8000;
    o.engine.seqs = 8 + (uint32_t)(seed % 3) * 20;
    o.chaos = (struct sim_chaos){
        .deaths_per_s = (double)(seed % 3) * 0.5, .cancel_share = 0.1, .deadline_share = 0.1,
        .delay_ns = seed % 4 * 5000000, .slow_share = 0.2,
        .switches_per_s = (double)(seed / 3 % 4) * 0.3,
    };
    o.switch_interval_ns = seed / 5 % 4 * 900000000;
    sim_load_mix(seed, requests, 20 + (double)(seed % 7) * 15, 16, &load);
    sim_load_reach(&load, sim_cache_blocks(&load, &o));
    sim_run(&load, &o, out);
    sim_load_release(&load);
}
