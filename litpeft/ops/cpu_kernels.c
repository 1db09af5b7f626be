/* Passes of a training step in bf16 that torch splits into several on a CPU. Compiled by litpeft/ops/native.py.

   Numbers are read as bf16, computed in fp32, and written as bf16, rounded to nearest. No result depends on the number
   of threads. Widths of rows, and the numbers of a tensor, are multiples of 16: whole vectors. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { LANES = 16 };
typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef bf16 halves __attribute__((vector_size(32), aligned(2)));

#define AT(pointer) (*(floats *)(pointer))

static inline floats all(float x) { return (floats){0} + x; }

static inline floats choose(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

static inline floats read(const bf16 *x) {
#ifdef __AVX512F__  /* one instruction; GCC 12 makes five */
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
#endif
    return (floats)(__builtin_convertvector(*(const halves *)x, words) << 16);
}

static inline void write(floats x, bf16 *to) {  /* ties to even; NaN stays NaN */
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
    return;
#endif
    words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words nan = (words)(x != x);
    *(halves *)to = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), halves);
}

static inline floats rounded(floats x) {
    bf16 half[LANES];
    write(x, half);
    return read(half);
}

#define SHIFTED(x, n) __builtin_shufflevector(x, x, n, 1 + n, 2 + n, 3 + n, 4 + n, 5 + n, 6 + n, 7 + n, 8 + n, 9 + n, \
    10 + n, 11 + n, 12 + n, 13 + n, 14 + n, 15 + n)

static inline float sum_of(floats x) {
    x += SHIFTED(x, 8);
    x += SHIFTED(x, 4);
    x += SHIFTED(x, 2);
    return x[0] + x[1];
}

static inline float largest_of(floats x) {
    floats other = SHIFTED(x, 8);
    x = choose(x > other, x, other);
    other = SHIFTED(x, 4);
    x = choose(x > other, x, other);
    other = SHIFTED(x, 2);
    x = choose(x > other, x, other);
    return x[0] > x[1] ? x[0] : x[1];
}

/* e^x for x <= 0, to 1e-7 of its value: 2^n e^r with |r| <= ln(2)/2, and e^r by its Taylor series */
static inline floats exponential(floats x) {
    ints tiny = x < -80.0f;  /* becomes 0: arithmetic with numbers this small is slow */
    floats n = x * 1.44269504f + 12582912.0f;  /* adding 1.5 2^23 rounds to an integer */
    n = n - 12582912.0f;
    floats r = x - n * 0.693145752f;  /* ln(2) in two parts, so that the first product is exact */
    r = r - n * 1.42860677e-6f;
    floats p = r * (1 / 5040.0f) + 1 / 720.0f;
    p = p * r + 1 / 120.0f;
    p = p * r + 1 / 24.0f;
    p = p * r + 1 / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (floats)(((ints)p + (__builtin_convertvector(n, ints) << 23)) & ~tiny);
}

/* Dropout. A number's position is hashed with two keys to 32 random bits; those below `share` are dropped. */
typedef struct {
    uint32_t share, first_key, second_key;  /* share: dropout probability times 2^32 */
    float factor;                           /* 1 / (1 - dropout probability) */
} Dropout;

static inline ints dropped(uint32_t position, const Dropout *d) {
    words x = (words){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + position;
    x ^= d->first_key;
    x ^= x >> 16; x *= 0x21f0aaadu;
    x ^= x >> 15; x *= 0x735a2d97u;
    x ^= x >> 15; x += d->second_key;
    x ^= x >> 16; x *= 0x85ebca6bu;
    x ^= x >> 13;
    return (ints)(x < d->share);
}

/* y = x / (1 - p) where x is kept, else 0; of dy, the gradient */
void dropout(const bf16 *x, bf16 *y, int64_t count, const Dropout *d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES)
        write((floats)((ints)(read(x + i) * d->factor) & ~dropped((uint32_t)i, d)), y + i);
}

static inline floats sigmoid(floats x) {
    ints negative = x < 0.0f;
    floats e = exponential(choose(negative, x, -x));
    return choose(negative, e, all(1)) / (e + 1.0f);
}

/* y = silu(gate) up; silu(gate) is rounded first, as where it is a tensor of its own */
void swiglu(const bf16 *gate, const bf16 *up, bf16 *y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        floats g = read(gate + i);
        write(rounded(g * sigmoid(g)) * read(up + i), y + i);
    }
}

void swiglu_backward(const bf16 *dy, const bf16 *gate, const bf16 *up, bf16 *dgate, bf16 *dup, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        floats g = read(gate + i), d = read(dy + i), part = sigmoid(g);
        write(d * read(up + i) * part * (1.0f + g * (1.0f - part)), dgate + i);
        write(d * g * part, dup + i);
    }
}

/* y = (x - mean) / sqrt(var + eps) weight + bias of each row (LayerNorm); without a bias the mean is left out, and the
   quotient is rounded before it is multiplied (RMSNorm of transformers). Keeps each row's mean and 1 / sqrt. */
void norm(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *y, float *mean, float *inverse, int64_t rows,
        int64_t width, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * width;
        bf16 *to = y + row * width;
        floats sum = {0}, squares = {0};
        if (bias)
            for (int64_t i = 0; i < width; i += LANES) sum += read(from + i);
        float centre = sum_of(sum) / width;
        for (int64_t i = 0; i < width; i += LANES) squares += (read(from + i) - centre) * (read(from + i) - centre);
        float scale = 1.0f / sqrtf(sum_of(squares) / width + eps);
        for (int64_t i = 0; i < width; i += LANES) {
            floats n = (read(from + i) - centre) * scale;
            write(bias ? n * read(weight + i) + read(bias + i) : rounded(n) * read(weight + i), to + i);
        }
        mean[row] = centre;
        inverse[row] = scale;
    }
}

/* dx = (h - mean(h) - n mean(h n)) / sqrt(var + eps), h = dy weight, n = the normalised x; mean(h) of LayerNorm only */
void norm_backward(const bf16 *dy, const bf16 *x, const bf16 *weight, const float *mean, const float *inverse, bf16 *dx,
        int64_t rows, int64_t width, int64_t centred) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * width, *grad = dy + row * width;
        float centre = mean[row], scale = inverse[row];
        floats sum = {0}, products = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            floats h = read(grad + i) * read(weight + i);
            sum += h;
            products += h * ((read(from + i) - centre) * scale);
        }
        float first = centred ? sum_of(sum) / width : 0, second = sum_of(products) / width;
        for (int64_t i = 0; i < width; i += LANES) {
            floats h = read(grad + i) * read(weight + i);
            write((h - first - (read(from + i) - centre) * scale * second) * scale, dx + row * width + i);
        }
    }
}

/* Attention of short rows: one head's scores stay in the core's cache, in fp32, in rows padded to whole vectors. */
#define PADDED(n) (((n) + LANES - 1) / LANES * LANES)

typedef struct {
    int64_t batch, heads, groups, queries, keys, width;
    int64_t query[3], key[3], value[3], mask[3], out[3];  /* strides of batch, head and row */
    float scaling;
    Dropout dropout;
} Shape;

/* c (m, n) = a (m, k) b (k, n), or c += a b; a has any strides, n is a multiple of 16 */
static void product(int m, int n, int k, const float *a, int row, int column, const float *b, float *c, int add) {
    for (int j = 0; j < n; j += 2 * LANES) {
        int pair = j + LANES < n;
        for (int i = 0; i < m; i += 4) {  /* 4 rows by 2 vectors: 8 sums in registers */
            int rows = m - i < 4 ? m - i : 4;
            const float *a0 = a + (int64_t)i * row, *a1 = rows > 1 ? a0 + row : a0, *a2 = rows > 2 ? a1 + row : a0;
            const float *a3 = rows > 3 ? a2 + row : a0, *from = b + j;
            floats left[4] = {0}, right[4] = {0};
            for (int p = 0; p < k; p++, from += n, a0 += column, a1 += column, a2 += column, a3 += column) {
                left[0] += *a0 * AT(from); left[1] += *a1 * AT(from);
                left[2] += *a2 * AT(from); left[3] += *a3 * AT(from);
                if (pair) {
                    right[0] += *a0 * AT(from + LANES); right[1] += *a1 * AT(from + LANES);
                    right[2] += *a2 * AT(from + LANES); right[3] += *a3 * AT(from + LANES);
                }
            }
            for (int s = 0; s < rows; s++) {
                float *to = c + (int64_t)(i + s) * n + j;
                AT(to) = add ? AT(to) + left[s] : left[s];
                if (pair) AT(to + LANES) = add ? AT(to + LANES) + right[s] : right[s];
            }
        }
    }
}

static void load(const bf16 *x, int64_t stride, int rows, int width, float factor, float *out) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES) AT(out + i * width + j) = read(x + i * stride + j) * factor;
}

static void load_transposed(const bf16 *x, int64_t stride, int rows, int width, float *out) {
    int padded = PADDED(rows);
    memset(out, 0, sizeof(float) * width * padded);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES) {
            floats row = read(x + i * stride + j);
            for (int lane = 0; lane < LANES; lane++) out[(j + lane) * padded + i] = row[lane];
        }
}

static void store(const float *x, int rows, int width, float factor, bf16 *out, int64_t stride) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES) write(AT(x + i * width + j) * factor, out + i * stride + j);
}

/* p (T, S): e^(scores - their largest) of one head, not yet divided by their sum; 1 / sum of each row into inverse (T) */
static void unnormalised(const Shape *s, const float *query, const float *keys, const float *mask, float *p,
        float *inverse) {
    int T = s->queries, S = s->keys, padded = PADDED(S);
    float added[padded];
    product(T, padded, s->width, query, s->width, 1, keys, p, 0);
    for (int t = 0; t < T; t++, p += padded) {
        if (t == 0 || s->mask[2]) {
            for (int i = 0; i < S; i++) added[i] = mask ? mask[t * s->mask[2] + i] : 0;
            for (int i = S; i < padded; i++) added[i] = -3e38f;
        }
        floats most = all(-3e38f), sum = {0};
        for (int i = 0; i < padded; i += LANES) {
            floats x = AT(p + i) + AT(added + i);
            AT(p + i) = x;
            most = choose(x > most, x, most);
        }
        float largest = largest_of(most);
        for (int i = 0; i < padded; i += LANES) {
            floats x = exponential(AT(p + i) - largest);
            AT(p + i) = x;
            sum += x;
        }
        inverse[t] = 1.0f / sum_of(sum);
    }
}

static inline ints dropped_scores(const Shape *s, int64_t b, int64_t h, int position) {
    if (!s->dropout.share) return (ints){0};
    return dropped((uint32_t)((b * s->heads + h) * s->queries * PADDED(s->keys) + position), &s->dropout);
}

void attention(const Shape *s, const bf16 *query, const bf16 *key, const bf16 *value, const float *mask, bf16 *out) {
    int T = s->queries, S = s->keys, D = s->width, padded = PADDED(S), each = s->heads / s->groups;
#pragma omp parallel for schedule(static)
    for (int64_t job = 0; job < s->batch * s->groups; job++) {
        int64_t b = job / s->groups, g = job % s->groups;
        float q[T * D], k[D * padded], v[S * D], p[T * padded], o[T * D], inverse[T];
        load_transposed(key + b * s->key[0] + g * s->key[1], s->key[2], S, D, k);
        load(value + b * s->value[0] + g * s->value[1], s->value[2], S, D, 1, v);
        for (int64_t h = g * each; h < (g + 1) * each; h++) {
            load(query + b * s->query[0] + h * s->query[1], s->query[2], T, D, s->scaling, q);
            unnormalised(s, q, k, mask ? mask + b * s->mask[0] + h * s->mask[1] : 0, p, inverse);
            for (int i = 0; i < T * padded && s->dropout.share; i += LANES)
                AT(p + i) = (floats)((ints)AT(p + i) & ~dropped_scores(s, b, h, i));
            product(T, D, S, p, padded, 1, v, o, 0);
            for (int t = 0; t < T; t++)
                store(o + t * D, 1, D, s->dropout.factor * inverse[t],
                      out + b * s->out[0] + h * s->out[1] + t * s->out[2], 0);
        }
    }
}

/* dout has the strides of `out`; dquery, dkey and dvalue are (batch, tokens, heads or groups, width) */
void attention_backward(const Shape *s, const bf16 *query, const bf16 *key, const bf16 *value, const float *mask,
        const bf16 *dout, bf16 *dquery, bf16 *dkey, bf16 *dvalue) {
    int T = s->queries, S = s->keys, D = s->width, padded = PADDED(S), each = s->heads / s->groups;
#pragma omp parallel for schedule(static)
    for (int64_t job = 0; job < s->batch * s->groups; job++) {
        int64_t b = job / s->groups, g = job % s->groups;
        float q[T * D], d[T * D], k[S * D], keys[D * padded], values[D * padded], p[T * padded], dp[T * padded];
        float dq[T * D], dk[S * D], dv[S * D], inverse[T];
        load(key + b * s->key[0] + g * s->key[1], s->key[2], S, D, 1, k);
        load_transposed(key + b * s->key[0] + g * s->key[1], s->key[2], S, D, keys);
        load_transposed(value + b * s->value[0] + g * s->value[1], s->value[2], S, D, values);
        for (int64_t h = g * each; h < (g + 1) * each; h++) {
            load(query + b * s->query[0] + h * s->query[1], s->query[2], T, D, s->scaling, q);
            load(dout + b * s->out[0] + h * s->out[1], s->out[2], T, D, s->dropout.factor, d);
            unnormalised(s, q, keys, mask ? mask + b * s->mask[0] + h * s->mask[1] : 0, p, inverse);
            product(T, padded, D, d, D, 1, values, dp, 0);
            for (int t = 0; t < T; t++) {  /* dp: P (drop(dp) - sum of drop(dp) P), then p: drop(P) */
                float *row = p + t * padded, *drow = dp + t * padded;
                floats sum = {0}, P[padded / LANES];
                for (int i = 0; i < padded; i += LANES) {
                    ints out = dropped_scores(s, b, h, t * padded + i);
                    floats whole = AT(row + i) * inverse[t];
                    P[i / LANES] = whole;
                    AT(row + i) = (floats)((ints)whole & ~out);
                    AT(drow + i) = (floats)((ints)AT(drow + i) & ~out);
                    sum += AT(drow + i) * whole;
                }
                float total = sum_of(sum);
                for (int i = 0; i < padded; i += LANES) AT(drow + i) = P[i / LANES] * (AT(drow + i) - total);
            }
            product(S, D, T, p, 1, padded, d, dv, h > g * each);
            product(S, D, T, dp, 1, padded, q, dk, h > g * each);
            product(T, D, S, dp, padded, 1, k, dq, 0);
            store(dq, T, D, s->scaling, dquery + (b * T * s->heads + h) * D, s->heads * D);
        }
        store(dk, S, D, 1, dkey + (b * S * s->groups + g) * D, s->groups * D);
        store(dv, S, D, 1, dvalue + (b * S * s->groups + g) * D, s->groups * D);
    }
}

/* Products with a frozen matrix on AMX tiles. oneDNN, which torch uses, makes new code for each number of rows, in a
   few milliseconds; here any number of rows runs the same code. */
#ifdef __AMX_BF16__

enum { TILE = 16, PAIRS = 16, DEEP = 32, PACKED = 1 << 19 };  /* numbers of the matrix that are packed at a time */

typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } Tiles;

/* 16 columns of the right factor by 32 rows, as pairs of rows: to[pair][column] = (b[2 pair][column], b[2 pair + 1][column]) */
static inline void pack_rows(const bf16 *from, int64_t stride, uint32_t *to) {
    for (int pair = 0; pair < PAIRS; pair++, from += 2 * stride, to += TILE) {
        __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
        __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + stride)));
        _mm512_storeu_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

/* the same of a matrix that is stored transposed: a 16 by 16 transposition of pairs */
static inline void pack_columns(const bf16 *from, int64_t stride, uint32_t *to) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + TILE * i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_si512(to + TILE * (i + 4), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_si512(to + TILE * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_si512(to + TILE * (i + 12), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
}

/* 32 rows and columns of y from 32 rows of x and a packed panel of 32 columns */
static inline void block(const bf16 *x, int64_t stride, const uint32_t *panel, int64_t depth, const bf16 *bias, int add,
        bf16 *y, int64_t y_stride, int rows) {
    float sums[4][TILE * TILE];
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < depth; k += DEEP, panel += 2 * TILE * PAIRS) {
        _tile_loadd(4, x + k, stride * 2);
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + TILE * PAIRS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + k + TILE * stride, stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64); _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
    floats left = bias ? read(bias) : all(0), right = bias ? read(bias + TILE) : all(0);
    for (int i = 0; i < rows; i++, y += y_stride) {
        const float *from = sums[i < TILE ? 0 : 2] + i % TILE * TILE;
        write(AT(from) + (add ? read(y) : left), y);
        write(AT(from + TILE * TILE) + (add ? read(y + TILE) : right), y + TILE);
    }
}

/* y (m, n) = x (m, k) w + bias, or y += x w; w is (k, n), or stored as (n, k) if `transposed`; k and n are multiples of
   32, and rows of x start `x_stride` numbers apart */
void product_with_frozen(const bf16 *x, int64_t x_stride, const bf16 *w, int64_t transposed, const bf16 *bias,
        int64_t add, bf16 *y, int64_t m, int64_t n, int64_t k, uint32_t *scratch) {
    int64_t wide = PACKED / k / DEEP * DEEP, blocks = (m + 31) / 32;
    wide = wide < DEEP ? DEEP : wide > n ? n : wide;
    for (int64_t first = 0; first < n; first += wide) {
        int64_t panels = (n - first < wide ? n - first : wide) / 32;
#pragma omp parallel
        {
            Tiles tiles = {.palette = 1}, before;
            for (int i = 0; i < 8; i++) { tiles.bytes[i] = 64; tiles.rows[i] = 16; }
            _tile_storeconfig(&before);
            _tile_loadconfig(&tiles);
#pragma omp for schedule(static)
            for (int64_t job = 0; job < panels * (k / DEEP); job++) {
                int64_t column = first + job / (k / DEEP) * 32, row = job % (k / DEEP) * DEEP;
                uint32_t *to = scratch + job * 2 * TILE * PAIRS;
                for (int half = 0; half < 2; half++, to += TILE * PAIRS)
                    if (transposed) pack_columns(w + (column + half * TILE) * k + row, k, to);
                    else pack_rows(w + row * n + column + half * TILE, n, to);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < blocks; i++) {
                int rows = m - i * 32 < 32 ? m - i * 32 : 32;
                const bf16 *from = x + i * 32 * x_stride;
                int64_t stride = x_stride;
                bf16 edge[rows < 32 ? 32 * k : 1];
                if (rows < 32) {
                    memset(edge, 0, sizeof edge);
                    for (int r = 0; r < rows; r++) memcpy(edge + r * k, from + r * x_stride, 2 * k);
                    from = edge; stride = k;
                }
                for (int64_t p = 0; p < panels; p++)
                    block(from, stride, scratch + p * k * 16, k, bias ? bias + first + p * 32 : 0, add,
                          y + i * 32 * n + first + p * 32, n, rows);
            }
            if (before.palette) _tile_loadconfig(&before);
            else _tile_release();
        }
    }
}
#endif
