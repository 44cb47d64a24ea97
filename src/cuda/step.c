/* cuda/step.c - the kernels of a step, in order; decode steps as graphs.
 *
 * A layer is seven launches, whatever is in the step: norm; q, k, v (rotated and stored by the
 * product itself); attention; output product (adds to the residual); norm; gate and up (with
 * SwiGLU); down product.  Qwen3 has one more: its heads are normed before they are rotated and
 * stored, all in one.  (Products that go to cuBLAS are outside this count.)
 *
 * A step of decoding sequences only is captured once per rounded size and replayed; what changes
 * from step to step is in the uploaded plan, at the same offsets.
 */
#include <string.h>

#include "common/log.h"
#include "cuda/cuda.h"

uint32_t act_bytes(const struct cuda *u)
{
    return u->act == ACT_F32 ? 4 : 2;
}

struct kv_layer kv_layer_of(const struct cuda *u, uint32_t layer)
{
    int shift = 0;
    while (1u << shift < u->c.block_tokens) shift++;
    return (struct kv_layer){
        .base = u->kv + layer * u->layer_bytes, .block_bytes = (int64_t)u->block_bytes,
        .token_shift = shift, .kv_heads = (int)u->model->h.kv_heads,
        .head_dim = (int)u->model->h.head_dim, .element = u->kv_element,
    };
}

static const void *planned(const struct cuda *u, uint64_t at)
{
    return u->plan.device + at;
}

/* --- products -------------------------------------------------------------------------------- */

static struct gemm_out out_of(const struct matrix *m, int kind)
{
    return (struct gemm_out){ .kind = kind, .columns = (int)pad_to(m->out, 2), .factor = 1 };
}

static void product(struct cuda *u, const struct matrix *m, const void *in,
                    const struct gemm_out *out)
{
    uint32_t done = u->plan.blas_rows, left = u->plan.rows - done;
    const uint8_t *rest = (const uint8_t *)in + (uint64_t)done * (uint32_t)m->w.in * act_bytes(u);
    struct gemm_out last = *out;
    if (done) {
        blas_product(u, m, in, out);
        last = blas_rest(u, out);
    }
    if (left) MUST(u, k_gemm(&m->w, rest, m->w.in, (int)left, &last, u->compute));
}

static struct qkv_out qkv_target(const struct cuda *u, uint32_t layer)
{
    const struct hparams *h = &u->model->h;
    return (struct qkv_out){
        .rows = planned(u, u->plan.rows_at), .q = u->q, .q_is_float = u->act == ACT_F32,
        .heads = (int)h->heads, .kv = kv_layer_of(u, layer),
        .rope = { .table = u->rope_table, .dims = (int)h->rope_dims },
    };
}

static void qkv(struct cuda *u, uint32_t layer)
{
    const struct hparams *h = &u->model->h;
    const struct layer *y = &u->layers[layer];
    struct qkv_out target = qkv_target(u, layer);
    uint32_t width = (h->heads + 2 * h->kv_heads) * h->head_dim;
    struct gemm_out out = out_of(&y->qkv, u->separate_rope ? OUT_STORE : OUT_QKV);
    out.bias = y->qkv_bias;
    out.f32 = u->qkv;
    out.f32_stride = width;
    out.qkv = target;
    product(u, &y->qkv, u->normed, &out);
    if (!u->separate_rope) return;
    MUST(u, k_rope_store(u->qkv, width, (int)u->plan.rows, y->q_norm, y->k_norm, h->norm_eps,
                         &target, u->compute));
}

static void add_to_residual(struct cuda *u, const struct matrix *m, const void *in,
                            const float *bias)
{
    struct gemm_out out = out_of(m, OUT_ADD);
    if (in == u->hidden && u->act == ACT_F16) out.factor = 1 / HIDDEN_SCALE;
    out.bias = bias;
    out.f32 = u->x;
    out.f32_stride = u->model->h.dim;
    product(u, m, in, &out);
}

static void gate_up(struct cuda *u, const struct layer *y)
{
    struct gemm_out out = out_of(&y->gate_up, OUT_SWIGLU);
    out.act = u->hidden;
    out.act_stride = y->down.w.in;
    out.act_type = u->act;
    product(u, &y->gate_up, u->normed, &out);
}

static void norm(struct cuda *u, const float *weight)
{
    const struct hparams *h = &u->model->h;
    MUST(u, k_norm(u->x, weight, NULL, (int)u->plan.rows, (int)h->dim, h->norm_eps, u->normed,
                   pad_to(h->dim, GEMM_PAD_IN), u->act, u->compute));
}

/* --- attention ------------------------------------------------------------------------------- */

static void attention(struct cuda *u, uint32_t layer)
{
    const struct hparams *h = &u->model->h;
    const struct plan *p = &u->plan;
    struct attend_call c = {
        .q = u->q, .out = u->attended, .out_stride = u->layers[layer].o.w.in, .act_type = u->act,
        .heads = (int)h->heads, .scale = h->attention_scale * 1.4426950408889634f,
        .kv = kv_layer_of(u, layer), .items = planned(u, p->items_at),
        .tables = planned(u, p->tables_at), .part_out = u->part_out,
        .part_state = u->part_state, .parts_done = u->parts_done,
    };
    if (u->tensor_attention)
        MUST(u, k_attend(&c, (int)p->tiles, (int)p->splits, u->compute));
    else
        MUST(u, k_attend_any(&c, (int)p->tiles, u->compute));
}

/* --- the whole ------------------------------------------------------------------------------- */

void head_run(struct cuda *u, uint32_t first, uint32_t rows)
{
    struct gemm_out out = out_of(&u->head, OUT_STORE);
    const uint8_t *in = (const uint8_t *)u->final +
                        (uint64_t)first * (uint32_t)u->head.w.in * act_bytes(u);
    out.f32 = u->logits;
    out.f32_stride = u->head.w.out;
    MUST(u, k_gemm(&u->head.w, in, u->head.w.in, (int)rows, &out, u->compute));
    MUST(u, k_argmax(u->logits, u->head.w.out, (int)u->model->h.vocab, (int)rows, u->best,
                     u->compute));
    MUST(u, cudaMemcpyAsync(u->best_host, u->best, rows * sizeof *u->best, cudaMemcpyDeviceToHost,
                            u->compute));
    u->logits_first = first;
}

/* events: mark each layer's KV as complete. */
static void run_layers(struct cuda *u, bool events)
{
    const struct hparams *h = &u->model->h;
    const struct plan *p = &u->plan;
    MUST(u, k_embed(&u->embedding.w, planned(u, p->rows_at), (int)p->rows, (int)h->dim, u->x,
                    u->compute));
    for (uint32_t i = 0; i < h->layers; i++) {
        const struct layer *y = &u->layers[i];
        norm(u, y->attn_norm);
        qkv(u, i);
        if (events) MUST(u, cudaEventRecord(u->layer_event[i], u->compute));
        attention(u, i);
        add_to_residual(u, &y->o, u->attended, y->o_bias);
        norm(u, y->ffn_norm);
        gate_up(u, y);
        add_to_residual(u, &y->down, u->hidden, NULL);
    }
    if (p->logits == 0) return;
    MUST(u, k_norm(u->x, u->output_norm, planned(u, p->pick_at), (int)p->logits, (int)h->dim,
                   h->norm_eps, u->final, u->head.w.in, u->act, u->compute));
    head_run(u, 0, p->logits < u->logit_rows_max ? p->logits : u->logit_rows_max);
}

/* --- graphs ---------------------------------------------------------------------------------- */

static struct graph *graph_find(struct cuda *u)
{
    for (uint32_t i = 0; i < u->graph_count; i++) {
        struct graph *g = &u->graphs[i];
        if (g->rows == u->plan.rows && g->splits == u->plan.splits) return g;
    }
    return NULL;
}

/* Room for one more: the one not used for longest goes. */
static struct graph *graph_room(struct cuda *u)
{
    if (u->graph_count < GRAPHS_MAX) return &u->graphs[u->graph_count++];
    struct graph *oldest = &u->graphs[0];
    for (uint32_t i = 1; i < GRAPHS_MAX; i++)
        if (u->graphs[i].used < oldest->used) oldest = &u->graphs[i];
    MUST(u, cudaGraphExecDestroy(oldest->exec));
    return oldest;
}

static struct graph *graph_make(struct cuda *u)
{
    cudaGraph_t made;
    struct graph *g = graph_room(u);
    *g = (struct graph){ .rows = u->plan.rows, .splits = u->plan.splits };
    MUST(u, cudaStreamBeginCapture(u->compute, cudaStreamCaptureModeThreadLocal));
    run_layers(u, false);
    MUST(u, cudaStreamEndCapture(u->compute, &made));
    MUST(u, cudaGraphInstantiate(&g->exec, made, 0));
    MUST(u, cudaGraphDestroy(made));
    return g;
}

static void run_graph(struct cuda *u)
{
    struct graph *g = graph_find(u);
    if (!g) g = graph_make(u);
    g->used = u->steps;
    u->logits_first = 0;
    MUST(u, cudaGraphLaunch(g->exec, u->compute));
}

/* --- a step ---------------------------------------------------------------------------------- */

static void follow_layers(struct cuda *u, const struct step *s)
{
    for (uint32_t i = 0; i < u->model->h.layers; i++) {
        MUST(u, cudaEventSynchronize(u->layer_event[i]));
        atomic_store(s->layers_done, i + 1);
        s->notify(s->notify_ctx);
    }
}

/* Says what the step writes, for reads beside it; NULL: it has ended. */
static void running(struct cuda *u, const struct step *s)
{
    pthread_mutex_lock(&u->lock);
    u->write_count = s ? s->seq_count : 0;
    for (uint32_t i = 0; i < u->write_count; i++) {
        const struct step_seq *q = &s->seqs[i];
        u->writes[i] = (struct written){ .block = q->blocks[q->first / u->c.block_tokens],
                                         .first = q->first, .end = q->first + q->count };
    }
    pthread_mutex_unlock(&u->lock);
}

enum err cuda_step(void *self, const struct step *s)
{
    struct cuda *u = self;
    CHECK(s->token_count >= 1 && s->token_count <= u->c.step_tokens_max);
    CHECK(s->logit_count <= s->token_count && s->seq_count <= u->c.step_seqs_max);
    MUST(u, cudaSetDevice(u->device));
    bool as_graph = plan_step(u, s) && u->plan.rows <= u->logit_rows_max;
    bool follow = s->notify && s->layers_done;
    running(u, s);
    u->steps++;
    u->final_count = s->logit_count;
    MUST(u, cudaStreamWaitEvent(u->compute, u->written, 0));
    MUST(u, cudaMemcpyAsync(u->plan.device, u->plan.host, u->plan.bytes, cudaMemcpyHostToDevice,
                            u->compute));
    if (as_graph && !follow && !u->eager) {
        run_graph(u);
    } else {
        run_layers(u, true);
        if (follow) follow_layers(u, s);
    }
    MUST(u, cudaStreamSynchronize(u->compute));
    running(u, NULL);
    if (s->layers_done) atomic_store(s->layers_done, u->model->h.layers);
    return OK;
}
