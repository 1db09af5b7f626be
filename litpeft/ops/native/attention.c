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

/* rows of fp32, each times a factor if there are any */
static void store(const float *x, const float *factors, int rows, int width, bf16 *to, int64_t stride) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES)
            write(AT(x + i * width + j) * all(factors ? factors[i] : 1), to + i * stride + j);
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
        floats most = larger(added(s, mask, last - 1, first), added(s, mask, last - 1, first + LANES));
        if (less(all(-1e30f), most)) break;
    }
    return last;
}

static inline lanes kept_scores(const Shape *s, int64_t b, int64_t h, int key, int query) {
    if (!s->dropout.share) return (lanes)-1;
    int64_t row = (b * s->heads + h) * s->keys + key;
    return kept((uint32_t)(row * WHOLE(s->queries) + query), &s->dropout);
}

/* the part of a tensor that belongs to one head, from one of its rows on */
#define PART(tensor, strides, b, h, row) ((tensor) + (b) * (strides)[0] + (h) * (strides)[1] + (row) * (strides)[2])

/* 32 queries as the right factor of a product: pairs of their columns (width / 2, 32) */
static void pack_queries(const bf16 *x, int width, uint32_t *to) {
    for (int half = 0; half < SIDE; half += LANES)
        for (int j = 0; j < width; j += SIDE)
            pack_columns(x + half * width + j, width, to + j / 2 * SIDE + half, SIDE);
}

/* whole blocks of rows as the right factor of a product: pairs of rows (rows / 2, width) */
static void pack_all(const bf16 *x, int rows, int width, uint32_t *to) {
    for (int i = 0; i < rows; i += SIDE)
        for (int j = 0; j < width; j += LANES) pack_rows(x + i * width + j, width, to + i / 2 * width + j, width);
}

/* pairs of rows (keys / 2, 32) to their transposition (32, keys), a left factor */
static void unpack_columns(const uint32_t *x, int keys, bf16 *to) {
    for (int half = 0; half < SIDE; half += LANES)
        for (int i = 0; i < keys; i += SIDE) {
            words r[16];
            for (int n = 0; n < LANES; n++) r[n] = *(const words *)(x + (i / 2 + n) * SIDE + half);
            transpose(r);
            for (int n = 0; n < LANES; n++) *(words *)(to + (half + n) * keys + i) = r[n];
        }
}

/* From scores (keys, 32) of 16 queries: e^(scores - most) with dropout as pairs of keys, log of the sum of e^scores,
   and the factor that is left to apply. */
static inline floats softmax(const Shape *s, int64_t b, int64_t h, int used, const float *mask, int query, float *p,
        uint32_t *pairs, float *lse) {
    floats most = all(-3e38f), sum = {0};
    for (int i = 0; i < used; i++) {
        floats x = AT(p + i * SIDE) * s->scaling + added(s, mask, i, query);
        AT(p + i * SIDE) = x;
        most = larger(x, most);
    }
    for (int i = 0; i < WHOLE(used); i += 2) {
        floats two[2] = {{0}, {0}};
        for (int n = 0; n < 2 && i + n < used; n++) {
            floats e = exponential(AT(p + (i + n) * SIDE) - most);
            sum += e;
            two[n] = only(kept_scores(s, b, h, i + n, query), e);
        }
        *(words *)(pairs + i / 2 * SIDE) = pair_of(two[0], two[1]);
    }
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
            ALIGNED bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], q[SIDE * D], shares[SIDE * WHOLE(S)];
            ALIGNED uint32_t queries[D / 2 * SIDE], values[WHOLE(S) / 2 * D], pairs[WHOLE(S) / 2 * SIDE];
            ALIGNED float p[WHOLE(S) * SIDE], o[SIDE * D], left[SIDE];
            load(PART(key, s->key, b, g, 0), s->key[2], S, D, k);
            load(PART(value, s->value, b, g, 0), s->value[2], S, D, v);
            pack_all(v, WHOLE(S), D, values);
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int first = 0; first < T; first += SIDE) {
                    const float *bias = mask ? PART(mask, s->mask, b, h, 0) : 0;
                    float *sums = lse + (b * s->heads + h) * WHOLE(T) + first;
                    int rows = T - first < SIDE ? T - first : SIDE, used = attended(s, bias, first);
                    load(PART(query, s->query, b, h, first), s->query[2], rows, D, q);
                    pack_queries(q, D, queries);
                    product(WHOLE(used), SIDE, D, k, D, queries, SIDE, p, SIDE, 0);
                    for (int n = 0; n < SIDE; n += LANES)
                        AT(left + n) = softmax(s, b, h, used, bias, first + n, p + n, pairs + n, sums + n);
                    unpack_columns(pairs, WHOLE(used), shares);
                    product(SIDE, D, WHOLE(used), shares, WHOLE(used), values, D, o, D, 0);
                    store(o, left, rows, D, PART(out, s->out, b, h, first), s->out[2]);
                }
        }
        leave_tiles(&before);
    }
}

/* From scores p and the gradients dp by the dropped P (keys, 32) of 16 queries: the dropped P and the gradients by the
   scores, both as left factors (keys, 32), and the gradients as pairs of keys too. */
static inline void softmax_backward(const Shape *s, int64_t b, int64_t h, int used, const float *mask, int query,
        float *p, float *dp, const float *lse, bf16 *dropped, bf16 *dscores, uint32_t *pairs) {
    floats total = AT(lse), delta = {0};
    for (int i = 0; i < used; i++) {
        lanes stay = kept_scores(s, b, h, i, query);
        floats e = exponential(AT(p + i * SIDE) * s->scaling + added(s, mask, i, query) - total);
        AT(p + i * SIDE) = e;
        AT(dp + i * SIDE) = only(stay, AT(dp + i * SIDE) * s->dropout.factor);
        delta += e * AT(dp + i * SIDE);
        write(only(stay, e * s->dropout.factor), dropped + i * SIDE);
    }
    for (int i = used; i < WHOLE(used); i++) write(all(0), dropped + i * SIDE);
    for (int i = 0; i < WHOLE(used); i += 2) {
        floats two[2] = {{0}, {0}};
        for (int n = 0; n < 2; n++) {
            int at = (i + n) * SIDE;
            if (i + n < used) two[n] = AT(p + at) * (AT(dp + at) - delta) * s->scaling;
            write(two[n], dscores + at);
        }
        *(words *)(pairs + i / 2 * SIDE) = pair_of(two[0], two[1]);
    }
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
            ALIGNED bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], q[SIDE * D], d[SIDE * D];
            ALIGNED uint32_t keys[WHOLE(S) / 2 * D], q_columns[D / 2 * SIDE], d_columns[D / 2 * SIDE];
            ALIGNED uint32_t q_rows[SIDE / 2 * D], d_rows[SIDE / 2 * D], pairs[WHOLE(S) / 2 * SIDE];
            ALIGNED float p[WHOLE(S) * SIDE], dp[WHOLE(S) * SIDE], dq[SIDE * D], dk[WHOLE(S) * D], dv[WHOLE(S) * D];
            ALIGNED bf16 dropped[WHOLE(S) * SIDE], dscores[WHOLE(S) * SIDE], by_query[SIDE * WHOLE(S)];
            load(PART(key, s->key, b, g, 0), s->key[2], S, D, k);
            load(PART(value, s->value, b, g, 0), s->value[2], S, D, v);
            pack_all(k, WHOLE(S), D, keys);
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
                    pack_all(q, SIDE, D, q_rows);
                    pack_all(d, SIDE, D, d_rows);
                    product(whole, SIDE, D, k, D, q_columns, SIDE, p, SIDE, 0);
                    product(whole, SIDE, D, v, D, d_columns, SIDE, dp, SIDE, 0);
                    for (int half = 0; half < SIDE; half += LANES)
                        softmax_backward(s, b, h, used, bias, first + half, p + half, dp + half, sums + half,
                                         dropped + half, dscores + half, pairs + half);
                    product(whole, D, SIDE, dropped, SIDE, d_rows, D, dv, D, 1);
                    product(whole, D, SIDE, dscores, SIDE, q_rows, D, dk, D, 1);
                    unpack_columns(pairs, whole, by_query);
                    product(SIDE, D, whole, by_query, whole, keys, D, dq, D, 0);
                    store(dq, 0, rows, D, dquery + ((b * T + first) * s->heads + h) * D, s->heads * D);
                }
            store(dk, 0, S, D, dkey + (b * S * s->groups + g) * D, s->groups * D);
            store(dv, 0, S, D, dvalue + (b * S * s->groups + g) * D, s->groups * D);
        }
        leave_tiles(&before);
    }
}
