#include "tiles.h"

/* Attention: a head's scores, for 32 queries at a time, stay in the core's cache. They are held transposed (keys,
   queries), so that softmax and dropout work on vectors of queries and need no sums within a vector. */
typedef struct {
    int64_t batch, heads, groups, queries, keys, width;
    int64_t query[3], key[3], value[3], out[3];  /* strides of batch, head and row */
    int64_t mask[3], mask_by_query;              /* strides of batch, head and key; a row has numbers for all queries, or one */
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
            bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], values[D * WHOLE(S)], q[SIDE * D];
            uint32_t queries[D / 2 * SIDE], pairs[WHOLE(S) / 2 * SIDE];
            float p[WHOLE(S) * SIDE], o[D * SIDE];
            load(key + b * s->key[0] + g * s->key[1], s->key[2], S, D, k);
            load(value + b * s->value[0] + g * s->value[1], s->value[2], S, D, v);
            load_transposed(v, WHOLE(S), D, values);
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int first = 0; first < T; first += SIDE) {
                    const float *bias = mask ? mask + b * s->mask[0] + h * s->mask[1] : 0;
                    int rows = T - first < SIDE ? T - first : SIDE, used = attended(s, bias, first);
                    load(query + b * s->query[0] + h * s->query[1] + first * s->query[2], s->query[2], rows, D, q);
                    for (int half = 0; half < SIDE; half += LANES)
                        for (int d = 0; d < D; d += SIDE) pack_columns(q + half * D + d, D, queries + d / 2 * SIDE + half, SIDE);
                    product(WHOLE(used), SIDE, D, k, D, queries, SIDE, p, SIDE, 0);
                    for (int half = 0; half < SIDE; half += LANES) {
                        floats most = all(-3e38f), sum = {0};
                        for (int i = 0; i < used; i++) {
                            floats x = AT(p + i * SIDE + half) * s->scaling + added(s, bias, i, first + half);
                            AT(p + i * SIDE + half) = x;
                            most = choose(x > most, x, most);
                        }
                        for (int i = 0; i < used; i++) {
                            floats e = exponential(AT(p + i * SIDE + half) - most);
                            sum += e;
                            AT(p + i * SIDE + half) = (floats)((ints)e & ~dropped_scores(s, b, h, i, first + half));
                        }
                        for (int i = used; i < WHOLE(used); i++) AT(p + i * SIDE + half) = all(0);
                        for (int i = 0; i < WHOLE(used); i += 2)
                            *(words *)(pairs + i / 2 * SIDE + half) = pair_of(AT(p + i * SIDE + half), AT(p + (i + 1) * SIDE + half));
                        AT(lse + (b * s->heads + h) * WHOLE(T) + first + half) = most + logarithm(sum);
                        AT(o + half) = s->dropout.factor / sum;
                    }
                    floats left = AT(o), right = AT(o + LANES);
                    product(D, SIDE, WHOLE(used), values, WHOLE(S), pairs, SIDE, o, SIDE, 0);
                    for (int d = 0; d < D; d++) { AT(o + d * SIDE) *= left; AT(o + d * SIDE + LANES) *= right; }
                    store_transposed(o, rows, D, out + b * s->out[0] + h * s->out[1] + first * s->out[2], s->out[2]);
                }
        }
        leave_tiles(&before);
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
            bf16 k[WHOLE(S) * D], v[WHOLE(S) * D], keys[D * WHOLE(S)], q[SIDE * D], d[SIDE * D];
            uint32_t columns[2][D / 2 * SIDE], by_row[2][SIDE / 2 * D], pairs[WHOLE(S) / 2 * SIDE];
            float p[WHOLE(S) * SIDE], dp[WHOLE(S) * SIDE], dq[D * SIDE], dk[WHOLE(S) * D], dv[WHOLE(S) * D];
            bf16 kept[WHOLE(S) * SIDE], dscores[WHOLE(S) * SIDE];
            load(key + b * s->key[0] + g * s->key[1], s->key[2], S, D, k);
            load(value + b * s->value[0] + g * s->value[1], s->value[2], S, D, v);
            load_transposed(k, WHOLE(S), D, keys);
            memset(dk, 0, sizeof dk);
            memset(dv, 0, sizeof dv);
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int first = 0; first < T; first += SIDE) {
                    const float *bias = mask ? mask + b * s->mask[0] + h * s->mask[1] : 0;
                    int rows = T - first < SIDE ? T - first : SIDE, used = attended(s, bias, first), whole = WHOLE(used);
                    load(query + b * s->query[0] + h * s->query[1] + first * s->query[2], s->query[2], rows, D, q);
                    load(dout + b * s->out[0] + h * s->out[1] + first * s->out[2], s->out[2], rows, D, d);
                    for (int c = 0; c < D; c += LANES) {
                        pack_rows(q + c, D, by_row[0] + c, D);
                        pack_rows(d + c, D, by_row[1] + c, D);
                    }
                    for (int half = 0; half < SIDE; half += LANES)
                        for (int c = 0; c < D; c += SIDE) {
                            pack_columns(q + half * D + c, D, columns[0] + c / 2 * SIDE + half, SIDE);
                            pack_columns(d + half * D + c, D, columns[1] + c / 2 * SIDE + half, SIDE);
                        }
                    product(whole, SIDE, D, k, D, columns[0], SIDE, p, SIDE, 0);
                    product(whole, SIDE, D, v, D, columns[1], SIDE, dp, SIDE, 0);
                    for (int half = 0; half < SIDE; half += LANES) {
                        floats total = AT(lse + (b * s->heads + h) * WHOLE(T) + first + half), delta = {0};
                        for (int i = 0; i < used; i++) {  /* P, and the gradients by P with dropout */
                            float *x = p + i * SIDE + half, *dx = dp + i * SIDE + half;
                            ints out = dropped_scores(s, b, h, i, first + half);
                            floats e = exponential(AT(x) * s->scaling + added(s, bias, i, first + half) - total);
                            AT(x) = e;
                            AT(dx) = (floats)((ints)(AT(dx) * s->dropout.factor) & ~out);
                            delta += e * AT(dx);
                            write((floats)((ints)(e * s->dropout.factor) & ~out), kept + i * SIDE + half);
                        }
                        for (int i = 0; i < used; i++) {
                            floats ds = AT(p + i * SIDE + half) * (AT(dp + i * SIDE + half) - delta) * s->scaling;
                            write(ds, dscores + i * SIDE + half);
                        }
                        for (int i = used; i < whole; i++) {
                            write(all(0), kept + i * SIDE + half);
                            write(all(0), dscores + i * SIDE + half);
                        }
                        for (int i = 0; i < whole; i += 2)
                            *(words *)(pairs + i / 2 * SIDE + half) =
                                pair(bits(dscores + i * SIDE + half), bits(dscores + (i + 1) * SIDE + half));
                    }
                    product(whole, D, SIDE, kept, SIDE, by_row[1], D, dv, D, 1);
                    product(whole, D, SIDE, dscores, SIDE, by_row[0], D, dk, D, 1);
                    product(D, SIDE, whole, keys, WHOLE(S), pairs, SIDE, dq, SIDE, 0);
                    store_transposed(dq, rows, D, dquery + ((b * T + first) * s->heads + h) * D, s->heads * D);
                }
            store(dk, S, D, dkey + (b * S * s->groups + g) * D, s->groups * D);
            store(dv, S, D, dvalue + (b * S * s->groups + g) * D, s->groups * D);
        }
        leave_tiles(&before);
    }
}
