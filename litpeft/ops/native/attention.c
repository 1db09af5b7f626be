#include "tiles.h"

/* Attention: a head's scores, for 32 queries at a time, stay in the core's cache. They are held transposed (keys,
   queries), so that softmax and dropout work on vectors of queries and need no sums within a vector. */
typedef struct {
    int64_t batch, heads, groups, queries, keys, width;
    int64_t query[3], key[3], value[3], out[3];  /* strides of batch, head and row */
    int64_t mask[3];        /* strides of batch, head and key */
    int64_t mask_by_query;  /* whether a key has a number for each query, or one for all */
    float scaling;
    Dropout dropout;
} Shape;

/* rows of a head from their transposed fp32 (width, 32) */
static void store_transposed(const float *x, int rows, int width, bf16 *to, int64_t stride) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < width; j += LANES) {
            words r[16];
            for (int n = 0; n < LANES; n++) r[n] = *(const words *)(x + (j + n) * SIDE + i);
            transpose(r);
            for (int n = 0; n < LANES && i + n < rows; n++) write((floats)r[n], to + (i + n) * stride + j);
        }
}

static void store(const float *x, int rows, int width, bf16 *to, int64_t stride) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES) write(AT(x + i * width + j), to + i * stride + j);
}

/* the added mask of a key, for 16 queries */
static inline floats added(const Shape *s, const float *mask, int key, int query) {
    if (!mask) return all(0);
    const float *row = mask + key * s->mask[2];
    return s->mask_by_query ? AT(row + query) : all(*row);
}

/* how many keys the 32 queries from `first` attend to: later keys are masked for all of them */
static int attended(const Shape *s, const float *mask, int first) {
    int last = s->keys;
    if (!mask || !s->mask_by_query) return last;
    for (; last > 1; last--) {
        ints open = (added(s, mask, last - 1, first) > -1e30f) | (added(s, mask, last - 1, first + LANES) > -1e30f);
        int any = 0;
        for (int i = 0; i < LANES; i++) any |= open[i];
        if (any) break;
    }
    return last;
}

static inline ints dropped_scores(const Shape *s, int64_t b, int64_t h, int key, int query) {
    if (!s->dropout.share) return (ints){0};
    int64_t row = (b * s->heads + h) * s->keys + key;
    return dropped((uint32_t)(row * WHOLE(s->queries) + query), &s->dropout);
}

/* logarithm of positive numbers: those of C's library, one by one */
static inline floats logarithm(floats x) {
    for (int i = 0; i < LANES; i++) x[i] = logf(x[i]);
    return x;
}

/* the part of a tensor that belongs to one head, from one of its rows on */
#define PART(tensor, strides, b, h, row) ((tensor) + (b) * (strides)[0] + (h) * (strides)[1] + (row) * (strides)[2])

/* 32 queries as the right factor of a product: pairs of their columns (width / 2, 32) */
static void pack_queries(const bf16 *x, int width, uint32_t *to) {
    for (int half = 0; half < SIDE; half += LANES)
        for (int j = 0; j < width; j += SIDE)
            pack_columns(x + half * width + j, width, to + j / 2 * SIDE + half, SIDE);
}

/* From scores (keys, 32) of 16 queries: e^(scores - most) with dropout as the right factor of the product with values,
   log of the sum of e^scores, and the factor that is left to apply. */
static inline floats softmax(const Shape *s, int64_t b, int64_t h, int used, const float *mask, int query, float *p,
        uint32_t *pairs, float *lse) {
    floats most = all(-3e38f), sum = {0};
    for (int i = 0; i < used; i++) {
        floats x = AT(p + i * SIDE) * s->scaling + added(s, mask, i, query);
        AT(p + i * SIDE) = x;
        most = choose(x > most, x, most);
    }
    for (int i = 0; i < used; i++) {
        floats e = exponential(AT(p + i * SIDE) - most);
        sum += e;
        AT(p + i * SIDE) = (floats)((ints)e & ~dropped_scores(s, b, h, i, query));
    }
    for (int i = used; i < WHOLE(used); i++) AT(p + i * SIDE) = all(0);
    for (int i = 0; i < WHOLE(used); i += 2)
        *(words *)(pairs + i / 2 * SIDE) = pair_of(AT(p + i * SIDE), AT(p + (i + 1) * SIDE));
    AT(lse) = most + logarithm(sum);
    return s->dropout.factor / sum;
}

/* lse (batch, heads, queries in whole blocks): log of the sum of e^scores of each query, for backward */
void attention(const Shape *s, const bf16 *query, const bf16 *key, const bf16 *value, const float *mask, bf16 *out,
        float *lse) {
    int T = s->queries, S = s->keys, D = s->width, each = s->heads / s->groups;
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < s->batch * s->groups; job++) {
            int64_t b = job / s->groups, g = job % s->groups;
            ALIGNED bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], values[D * WHOLE(S)], q[SIDE * D];
            ALIGNED uint32_t queries[D / 2 * SIDE], pairs[WHOLE(S) / 2 * SIDE];
            ALIGNED float p[WHOLE(S) * SIDE], o[D * SIDE];
            load(PART(key, s->key, b, g, 0), s->key[2], S, D, k);
            load(PART(value, s->value, b, g, 0), s->value[2], S, D, v);
            load_transposed(v, WHOLE(S), D, values);
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int first = 0; first < T; first += SIDE) {
                    const float *bias = mask ? PART(mask, s->mask, b, h, 0) : 0;
                    float *sums = lse + (b * s->heads + h) * WHOLE(T) + first;
                    int rows = T - first < SIDE ? T - first : SIDE, used = attended(s, bias, first);
                    load(PART(query, s->query, b, h, first), s->query[2], rows, D, q);
                    pack_queries(q, D, queries);
                    product(WHOLE(used), SIDE, D, k, D, queries, SIDE, p, SIDE, 0);
                    floats left = softmax(s, b, h, used, bias, first, p, pairs, sums);
                    floats right = softmax(s, b, h, used, bias, first + LANES, p + LANES, pairs + LANES, sums + LANES);
                    product(D, SIDE, WHOLE(used), values, WHOLE(S), pairs, SIDE, o, SIDE, 0);
                    for (int j = 0; j < D * SIDE; j += SIDE) {
                        AT(o + j) *= left;
                        AT(o + j + LANES) *= right;
                    }
                    store_transposed(o, rows, D, PART(out, s->out, b, h, first), s->out[2]);
                }
        }
        leave_tiles(&before);
    }
}

/* From scores p and the gradients dp by the dropped P (keys, 32) of 16 queries: the dropped P and the gradients by the
   scores, both as left factors (keys, 32), and the gradients as a right factor too. */
static inline void softmax_backward(const Shape *s, int64_t b, int64_t h, int used, const float *mask, int query,
        float *p, float *dp, const float *lse, bf16 *kept, bf16 *dscores, uint32_t *pairs) {
    floats total = AT(lse), delta = {0};
    for (int i = 0; i < used; i++) {
        ints out = dropped_scores(s, b, h, i, query);
        floats e = exponential(AT(p + i * SIDE) * s->scaling + added(s, mask, i, query) - total);
        AT(p + i * SIDE) = e;
        AT(dp + i * SIDE) = (floats)((ints)(AT(dp + i * SIDE) * s->dropout.factor) & ~out);
        delta += e * AT(dp + i * SIDE);
        write((floats)((ints)(e * s->dropout.factor) & ~out), kept + i * SIDE);
    }
    for (int i = 0; i < used; i++)
        write(AT(p + i * SIDE) * (AT(dp + i * SIDE) - delta) * s->scaling, dscores + i * SIDE);
    for (int i = used; i < WHOLE(used); i++) {
        write(all(0), kept + i * SIDE);
        write(all(0), dscores + i * SIDE);
    }
    for (int i = 0; i < WHOLE(used); i += 2)
        *(words *)(pairs + i / 2 * SIDE) = pair(bits(dscores + i * SIDE), bits(dscores + (i + 1) * SIDE));
}

/* dout has the strides of `out`; dquery, dkey and dvalue are (batch, tokens, heads or groups, width) */
void attention_backward(const Shape *s, const bf16 *query, const bf16 *key, const bf16 *value, const float *mask,
        const float *lse, const bf16 *dout, bf16 *dquery, bf16 *dkey, bf16 *dvalue) {
    int T = s->queries, S = s->keys, D = s->width, each = s->heads / s->groups;
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < s->batch * s->groups; job++) {
            int64_t b = job / s->groups, g = job % s->groups;
            ALIGNED bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], keys[D * WHOLE(S)], q[SIDE * D], d[SIDE * D];
            ALIGNED uint32_t q_columns[D / 2 * SIDE], d_columns[D / 2 * SIDE];
            ALIGNED uint32_t q_rows[SIDE / 2 * D], d_rows[SIDE / 2 * D], pairs[WHOLE(S) / 2 * SIDE];
            ALIGNED float p[WHOLE(S) * SIDE], dp[WHOLE(S) * SIDE], dq[D * SIDE], dk[WHOLE(S) * D], dv[WHOLE(S) * D];
            ALIGNED bf16 kept[WHOLE(S) * SIDE], dscores[WHOLE(S) * SIDE];
            load(PART(key, s->key, b, g, 0), s->key[2], S, D, k);
            load(PART(value, s->value, b, g, 0), s->value[2], S, D, v);
            load_transposed(k, WHOLE(S), D, keys);
            memset(dk, 0, sizeof dk);
            memset(dv, 0, sizeof dv);
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int first = 0; first < T; first += SIDE) {
                    const float *bias = mask ? PART(mask, s->mask, b, h, 0) : 0;
                    const float *sums = lse + (b * s->heads + h) * WHOLE(T) + first;
                    int rows = T - first < SIDE ? T - first : SIDE;
                    int used = attended(s, bias, first), whole = WHOLE(used);
                    load(PART(query, s->query, b, h, first), s->query[2], rows, D, q);
                    load(PART(dout, s->out, b, h, first), s->out[2], rows, D, d);
                    pack_queries(q, D, q_columns);
                    pack_queries(d, D, d_columns);
                    for (int j = 0; j < D; j += LANES) {
                        pack_rows(q + j, D, q_rows + j, D);
                        pack_rows(d + j, D, d_rows + j, D);
                    }
                    product(whole, SIDE, D, k, D, q_columns, SIDE, p, SIDE, 0);
                    product(whole, SIDE, D, v, D, d_columns, SIDE, dp, SIDE, 0);
                    for (int half = 0; half < SIDE; half += LANES)
                        softmax_backward(s, b, h, used, bias, first + half, p + half, dp + half, sums + half,
                                         kept + half, dscores + half, pairs + half);
                    product(whole, D, SIDE, kept, SIDE, d_rows, D, dv, D, 1);
                    product(whole, D, SIDE, dscores, SIDE, q_rows, D, dk, D, 1);
                    product(D, SIDE, whole, keys, WHOLE(S), pairs, SIDE, dq, SIDE, 0);
                    store_transposed(dq, rows, D, dquery + ((b * T + first) * s->heads + h) * D, s->heads * D);
                }
            store(dk, S, D, dkey + (b * S * s->groups + g) * D, s->groups * D);
            store(dv, S, D, dvalue + (b * S * s->groups + g) * D, s->groups * D);
        }
        leave_tiles(&before);
    }
}
