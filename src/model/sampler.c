/* model/sampler.c - choosing a token; see sampler.h.
 *
 * No sort of the vocabulary: candidates are counted and weighed in buckets of equal logit range, in
 * descending order.  Each filter, and the draw, finds the one bucket where it ends and sorts only
 * that.  The sums are taken in one fixed order (by id within a bucket, then bucket by bucket), in
 * double, so that the result is the same on every machine.
 */
#include "model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

enum { BUCKETS = 1024, DROPPED = UINT16_MAX, NO_BUCKET = -1 };

#define GREEDY_BELOW 1e-5f            /* vLLM's bound */
#define TEMPERATURE_MAX 1e4f
#define DEPTH_MAX 60.0                /* e^-60 of the best: below what 53 random bits can hit */
#define LOGPROB_MIN (-9999.0)

struct candidate {
    float logit;
    int32_t id;
};

struct sampler {
    uint32_t vocab;
    float *adjusted;                  /* (V) logits after bias and penalties                 */
    uint16_t *bucket_of;              /* (V) or DROPPED                                      */
    struct candidate *sorted;         /* (V) the bucket gathered last, best first            */
    uint32_t sorted_count;
    int sorted_bucket;                /* which, or NO_BUCKET                                 */
    uint32_t *stamp, *count;          /* (V) in history this time? how often in the output?  */
    int32_t *touched;                 /* (V) ids in history, each once                       */
    uint32_t now;                     /* the stamp of this call                              */
    /* What is left after the filters so far. */
    double weight[BUCKETS];           /* sum of e^((logit - best) / temperature)             */
    uint32_t members[BUCKETS];
    int buckets;                      /* in use; the last may be cut to members[] of its own */
    double total;
};

struct sampler *sampler_open(uint32_t vocab)
{
    CHECK(vocab > 0 && vocab <= VOCAB_MAX);
    struct sampler *s = mem_alloc(sizeof *s);
    s->vocab = vocab;
    s->adjusted = mem_array(vocab, sizeof *s->adjusted);
    s->bucket_of = mem_array(vocab, sizeof *s->bucket_of);
    s->sorted = mem_array(vocab, sizeof *s->sorted);
    s->stamp = mem_array(vocab, sizeof *s->stamp);
    s->count = mem_array(vocab, sizeof *s->count);
    s->touched = mem_array(vocab, sizeof *s->touched);
    return s;
}

void sampler_close(struct sampler *s)
{
    if (!s) return;
    free(s->adjusted);
    free(s->bucket_of);
    free(s->sorted);
    free(s->stamp);
    free(s->count);
    free(s->touched);
    free(s);
}

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c[4] = { counter[0], counter[1], counter[2], counter[3] }, k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c[0] * 0xd2511f53u, b = (uint64_t)c[2] * 0xcd9e8d57u;
        uint32_t next[4] = { (uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b,
                             (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a };
        memcpy(c, next, sizeof c);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    memcpy(out, c, sizeof c);
}

/* [0, 1), 53 bits. */
static double uniform(uint64_t seed, uint32_t position)
{
    uint32_t counter[4] = { position, 0, 0, 0 };
    uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) }, out[4];
    philox4x32(counter, key, out);
    return ((double)(out[0] >> 5) * 67108864.0 + (double)(out[1] >> 6)) * 0x1p-53;
}

/* e^x for -700 <= x <= 0, to 14 digits: the C library's differs in the last bit between machines
 * with and without FMA, and is slower. */
static inline double exp_same(double x)
{
    const double round = 0x1.8p52;    /* adding it leaves the nearest integer in the low bits */
    double shifted = x * 1.4426950408889634 + round;
    double n = shifted - round;
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33; /* ln 2, in two parts */
    double p = 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    double power;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;       /* the low bits of `shifted` are n */
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* Vectors of 16 bytes, which every machine of interest has.  The operations on each element, and
 * the order of the sums (element i in lane i % LANES), are the same everywhere. */
typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
typedef double doubles __attribute__((vector_size(16)));
typedef int64_t longs __attribute__((vector_size(16)));
enum { FLOATS = 4, LANES = 8, PAIRS = LANES / 2 };

static inline floats floats_at(const float *at)
{
    floats v;
    memcpy(&v, at, sizeof v);
    return v;
}

static inline doubles pair_at(const float *at)
{
    return (doubles){ (double)at[0], (double)at[1] };
}

/* The greater of each two; the second where one is NaN. */
static inline floats greater(floats a, floats b)
{
    ints first = a > b;
    return (floats)(((ints)a & first) | ((ints)b & ~first));
}

/* exp_same of each lane above -700, 0 of the others and of NaN. */
static inline doubles exp_lanes(doubles x)
{
    longs counts = x > -700.0;
    const double round = 0x1.8p52;
    doubles shifted = x * 1.4426950408889634 + round;
    doubles n = shifted - round;
    doubles r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    doubles p = r * (1.0 / 39916800) + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    p *= (doubles)(((longs)shifted + 1023) << 52);
    return (doubles)((longs)p & counts);
}

/* The best id; NaN never is.  -inf everywhere: 0. */
static int32_t best_of(const float *logits, uint32_t vocab)
{
    enum { STRETCH = 512 };
    uint32_t from = 0;
    float most = -INFINITY;
    for (uint32_t first = 0; first + STRETCH <= vocab; first += STRETCH) {
        floats a = { most, most, most, most }, b = a;
        for (uint32_t i = first; i < first + STRETCH; i += 2 * FLOATS) {
            a = greater(floats_at(logits + i), a);
            b = greater(floats_at(logits + i + FLOATS), b);
        }
        a = greater(a, b);
        for (int i = 0; i < FLOATS; i++) {
            if (a[i] > most) most = a[i], from = first;
        }
    }
    int32_t best = 0;
    for (uint32_t i = vocab / STRETCH * STRETCH; i < vocab; i++) {
        if (logits[i] > most) most = logits[i], from = i;
    }
    for (uint32_t i = from; i < vocab && most > -INFINITY; i++) {
        if (logits[i] == most) return (int32_t)i;
    }
    return best;
}

static bool in_vocab(const struct sampler *s, int32_t id)
{
    return id >= 0 && (uint32_t)id < s->vocab;
}

/* Lists the ids of the history once each in `touched`, and counts those of the output. */
static uint32_t count_history(struct sampler *s, const struct sample_input *in)
{
    uint32_t touched = 0;
    if (++s->now == 0) {
        memset(s->stamp, 0, s->vocab * sizeof *s->stamp);
        s->now = 1;
    }
    for (uint32_t i = 0; i < in->history_count; i++) {
        int32_t id = in->history[i];
        if (!in_vocab(s, id)) continue;
        if (s->stamp[id] != s->now) {
            s->stamp[id] = s->now;
            s->count[id] = 0;
            s->touched[touched++] = id;
        }
        if (i >= in->prompt_count) s->count[id]++;
    }
    return touched;
}

static bool has_penalties(const struct sampling *p)
{
    return (p->repetition_penalty != 1 && p->repetition_penalty > 0) ||
           p->frequency_penalty != 0 || p->presence_penalty != 0;
}

static void add_penalties(struct sampler *s, const struct sample_input *in)
{
    const struct sampling *p = in->params;
    double repetition = p->repetition_penalty > 0 ? (double)p->repetition_penalty : 1;
    uint32_t touched = count_history(s, in);
    for (uint32_t i = 0; i < touched; i++) {
        int32_t id = s->touched[i];
        double logit = (double)s->adjusted[id];
        logit = logit > 0 ? logit / repetition : logit * repetition;
        if (s->count[id]) {
            logit -= (double)p->frequency_penalty * s->count[id];
            logit -= (double)p->presence_penalty;
        }
        s->adjusted[id] = (float)logit;
    }
}

/* The logits to choose from: the raw ones when nothing changes them. */
static const float *adjust(struct sampler *s, const struct sample_input *in)
{
    const struct sampling *p = in->params;
    uint32_t output = in->history_count - in->prompt_count;
    bool too_early = output < p->min_tokens && p->stop_id_count > 0;
    if (p->bias_count == 0 && !too_early && !has_penalties(p)) return in->logits;
    memcpy(s->adjusted, in->logits, s->vocab * sizeof *s->adjusted);
    for (uint16_t i = 0; i < p->bias_count; i++) {
        if (in_vocab(s, in->bias[i].id)) s->adjusted[in->bias[i].id] += in->bias[i].bias;
    }
    for (uint16_t i = 0; too_early && i < p->stop_id_count && i < STOP_IDS_MAX; i++) {
        if (in_vocab(s, p->stop_ids[i])) s->adjusted[p->stop_ids[i]] = -INFINITY;
    }
    if (has_penalties(p)) add_penalties(s, in);
    return s->adjusted;
}

static double weight_of(float logit, float best, double per_degree)
{
    return logit == best ? 1.0 : exp_same(((double)logit - (double)best) * per_degree);
}

/* Sorts the candidates that min_p leaves into their buckets, and counts them. */
static void fill_buckets(struct sampler *s, const float *logits, float best, double per_degree,
                         double min_p)
{
    /* Below the power of two under min_p nothing need be weighed. */
    int exponent;
    frexp(min_p, &exponent);
    double depth_max = min_p > 0 ? 1e-3 + (1 - exponent) * 0.6931471805599453 : DEPTH_MAX;
    if (depth_max > DEPTH_MAX) depth_max = DEPTH_MAX;
    double low = (double)best - depth_max / per_degree, scale = BUCKETS / depth_max * per_degree;
    memset(s->members, 0, sizeof s->members);
    s->buckets = BUCKETS;
    s->sorted_bucket = NO_BUCKET;
    for (uint32_t i = 0; i < s->vocab; i++) {
        float logit = logits[i];
        s->bucket_of[i] = DROPPED;
        if (!((double)logit >= low)) continue;
        if (min_p > 0 && weight_of(logit, best, per_degree) < min_p) continue;
        /* Two infinities have no difference. */
        double depth = logit == best ? 0 : ((double)best - (double)logit) * scale;
        int bucket = depth < BUCKETS - 1 ? (int)depth : BUCKETS - 1;
        s->bucket_of[i] = (uint16_t)bucket;
        s->members[bucket]++;
    }
}

/* Adds up to LANES weights to their buckets, if these are below `whole`. */
static void weigh_some(struct sampler *s, const float *logits, const uint16_t *bucket_of,
                       uint32_t left, int whole, float best, double per_degree)
{
    uint32_t count = left < LANES ? left : LANES;
    bool any = false;
    for (uint32_t i = 0; i < count; i++) any |= bucket_of[i] < whole;
    if (!any) return;
    doubles weights[PAIRS];
    bool wide = count == LANES && !isinf(best);
    for (int j = 0; wide && j < PAIRS; j++) {
        weights[j] = exp_lanes((pair_at(logits + 2 * j) - (double)best) * per_degree);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (bucket_of[i] >= whole) continue;
        s->weight[bucket_of[i]] += wide ? weights[i / 2][i % 2] :
                                          weight_of(logits[i], best, per_degree);
    }
}

/* Sums the weights of what is left: the last bucket may have been cut to its best members. */
static void weigh_buckets(struct sampler *s, const float *logits, float best, double per_degree)
{
    int last = s->buckets - 1, whole = s->sorted_bucket == last ? last : s->buckets;
    memset(s->weight, 0, sizeof s->weight);
    for (uint32_t i = 0; i < s->vocab; i += LANES) {
        weigh_some(s, logits + i, s->bucket_of + i, s->vocab - i, whole, best, per_degree);
    }
    for (uint32_t i = 0; whole == last && i < s->members[last]; i++) {
        s->weight[last] += weight_of(s->sorted[i].logit, best, per_degree);
    }
    s->total = 0;
    for (int b = 0; b < s->buckets; b++) s->total += s->weight[b];
}

static bool comes_before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(struct candidate *at, uint32_t root, uint32_t count)
{
    struct candidate moving = at[root];
    for (uint32_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && comes_before(at[child], at[child + 1])) child++;
        if (!comes_before(moving, at[child])) break;
        at[root] = at[child];
    }
    at[root] = moving;
}

/* Heap sort: in place and never slow, whatever the logits.  Equal logits come sorted already. */
static void sort_candidates(struct candidate *at, uint32_t count)
{
    uint32_t in_order = 1;
    while (in_order < count && comes_before(at[in_order - 1], at[in_order])) in_order++;
    if (in_order >= count) return;
    for (uint32_t i = count / 2; i-- > 0;) sift_down(at, i, count);
    for (uint32_t last = count - 1; last > 0; last--) {
        struct candidate worst = at[0];
        at[0] = at[last];
        at[last] = worst;
        sift_down(at, 0, last);
    }
}

static void gather(struct sampler *s, const float *logits, int bucket)
{
    if (s->sorted_bucket == bucket) return;
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        if (s->bucket_of[i] == bucket) {
            s->sorted[count++] = (struct candidate){ logits[i], (int32_t)i };
        }
    }
    sort_candidates(s->sorted, count);
    s->sorted_count = count;
    s->sorted_bucket = bucket;
}

/* Only counts matter here: it comes before the weighing, which then has little to weigh. */
static void keep_top_k(struct sampler *s, const float *logits, uint32_t k)
{
    for (int b = 0; b < s->buckets; b++) {
        if (s->members[b] < k) {
            k -= s->members[b];
            continue;
        }
        gather(s, logits, b);
        s->members[b] = k;
        s->buckets = b + 1;
        return;
    }
}

/* The bucket in which the running sum passes `target` (or reaches it, with `reach`); the last one
 * should rounding keep the sum below.  *before: the sum of those before it. */
static int find_bucket(const struct sampler *s, double target, bool reach, double *before)
{
    double sum = 0;
    int found = 0;
    *before = 0;
    for (int b = 0; b < s->buckets; b++) {
        if (s->members[b] == 0) continue;
        found = b;
        *before = sum;
        sum += s->weight[b];
        if (sum > target || (reach && sum >= target)) break;
    }
    return found;
}

/* The fewest of the best that reach p of what is left. */
static void keep_top_p(struct sampler *s, const float *logits, float best, double per_degree,
                       double p)
{
    double enough = p * s->total, before, weight = 0;
    int bucket = find_bucket(s, enough, true, &before);
    uint32_t kept = 0;
    gather(s, logits, bucket);
    while (kept < s->members[bucket] && (kept == 0 || before + weight < enough)) {
        weight += weight_of(s->sorted[kept++].logit, best, per_degree);
    }
    s->buckets = bucket + 1;
    s->members[bucket] = kept;
    s->weight[bucket] = weight;
    s->total = before + weight;
}

static int32_t draw(struct sampler *s, const float *logits, float best, double per_degree,
                    double random)
{
    double target = random * s->total, sum;
    int bucket = find_bucket(s, target, false, &sum);
    gather(s, logits, bucket);
    uint32_t last = s->members[bucket] - 1;
    for (uint32_t i = 0; i < last; i++) {
        sum += weight_of(s->sorted[i].logit, best, per_degree);
        if (sum > target) return s->sorted[i].id;
    }
    return s->sorted[last].id;
}

static int32_t choose(struct sampler *s, const struct sample_input *in)
{
    const struct sampling *p = in->params;
    const float *logits = adjust(s, in);
    int32_t first = best_of(logits, s->vocab);
    float best = logits[first];
    if (!(p->temperature >= GREEDY_BELOW) || !(best > -INFINITY)) return first;

    double degrees = (double)(p->temperature < TEMPERATURE_MAX ? p->temperature : TEMPERATURE_MAX);
    double per_degree = 1.0 / degrees;
    fill_buckets(s, logits, best, per_degree, p->min_p < 1 ? (double)p->min_p : 1.0);
    if (p->top_k > 0 && (uint32_t)p->top_k < s->vocab) {
        keep_top_k(s, logits, (uint32_t)p->top_k);
    }
    weigh_buckets(s, logits, best, per_degree);
    if (p->top_p < 1) keep_top_p(s, logits, best, per_degree, (double)p->top_p);
    return draw(s, logits, best, per_degree, uniform(p->seed, in->history_count));
}

/* NaN as -inf. */
static float tame(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* log of the sum of e^logit, as its two parts: best + the result. */
static double log_sum(const float *logits, uint32_t vocab, float best)
{
    doubles lanes[PAIRS] = { 0 };
    double sum = 0;
    uint32_t i = 0;
    for (; !isinf(best) && i + LANES <= vocab; i += LANES) {
        for (int j = 0; j < PAIRS; j++) {
            lanes[j] += exp_lanes(pair_at(logits + i + 2 * j) - (double)best);
        }
    }
    for (int j = 0; j < PAIRS; j++) sum += lanes[j][0] + lanes[j][1];
    for (; i < vocab; i++) {
        if (logits[i] == best) {
            sum += 1.0;
        } else if ((double)logits[i] - (double)best > -700) {
            sum += exp_same((double)logits[i] - (double)best);
        }
    }
    return log(sum);
}

static float logprob_of(float logit, float best, double log_total)
{
    double difference = logit == best ? 0 : (double)tame(logit) - (double)best;
    double logprob = difference - log_total;
    return (float)(logprob > LOGPROB_MIN ? logprob : LOGPROB_MIN);
}

static uint32_t rank_of(const float *logits, uint32_t vocab, int32_t id)
{
    float own = tame(logits[id]);
    uint32_t better = 0, whole = vocab / FLOATS * FLOATS;
    ints more = { 0 };
    for (uint32_t i = 0; i < whole; i += FLOATS) more -= floats_at(logits + i) > own;
    for (int i = 0; i < FLOATS; i++) better += (uint32_t)more[i];
    for (uint32_t i = whole; i < vocab; i++) better += logits[i] > own;
    for (int32_t i = 0; i < id; i++) better += tame(logits[i]) == own;
    return better + 1;
}

/* The best `count` logits, best first; returns how many there are. */
static uint16_t list_top(const float *logits, uint32_t vocab, uint16_t count,
                         struct candidate best[TOP_LOGPROBS_MAX])
{
    uint16_t have = 0;
    for (uint32_t i = 0; count > 0 && i < vocab; i++) {
        float logit = tame(logits[i]);
        if (have == count && !(logit > best[have - 1].logit)) continue;
        uint16_t at = have < count ? have++ : (uint16_t)(have - 1);
        for (; at > 0 && logit > best[at - 1].logit; at--) best[at] = best[at - 1];
        best[at] = (struct candidate){ logit, (int32_t)i };
    }
    return have;
}

void sampler_score(struct sampler *s, const float *logits, int32_t id, uint32_t position,
                   uint16_t top_count, struct token_record *record, struct top_logprob *top)
{
    CHECK(in_vocab(s, id));
    struct candidate best[TOP_LOGPROBS_MAX];
    float most = tame(logits[best_of(logits, s->vocab)]);
    double log_total = most > -INFINITY ? log_sum(logits, s->vocab, most) : INFINITY;
    uint16_t wanted = top_count < TOP_LOGPROBS_MAX ? top_count : TOP_LOGPROBS_MAX;
    uint16_t have = list_top(logits, s->vocab, wanted, best);
    for (uint16_t i = 0; i < have; i++) {
        top[i] = (struct top_logprob){ best[i].id, logprob_of(best[i].logit, most, log_total) };
    }
    *record = (struct token_record){
        .position = position,
        .id = id,
        .logprob = logprob_of(logits[id], most, log_total),
        .rank = rank_of(logits, s->vocab, id),
        .top_count = have,
        .finish = FINISH_NONE,
    };
}

void sampler_draw(struct sampler *s, const struct sample_input *in, struct token_record *record,
                  struct top_logprob *top)
{
    CHECK(in->prompt_count <= in->history_count);
    int32_t id = choose(s, in);
    if (in->params->flags & SAMPLING_LOGPROBS) {
        sampler_score(s, in->logits, id, in->history_count, in->params->top_count, record, top);
        return;
    }
    *record = (struct token_record){ .position = in->history_count, .id = id };
}
