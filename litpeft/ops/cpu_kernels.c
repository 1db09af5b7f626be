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

/* y = x Phi(x), and its derivative Phi(x) + x phi(x), which backward multiplies with: the two share their functions.
   Phi(-z) = erfcx(z / sqrt(2)) e^(-z^2 / 2) / 2 for z >= 0, where erfcx is a polynomial of 1 / (1 + 0.51 z / sqrt(2)),
   fitted to 1e-6 of its value. */
void gelu(const bf16 *x, bf16 *y, bf16 *slope, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        floats v = read(x + i), z = choose(v < 0.0f, -v, v), e = exponential(z * z * -0.5f);
        floats t = 1.0f / (1.0f + z * 0.36062446f);
        floats p = t * 0.0945284366607666f - 0.3592321276664734f;
        p = p * t + 0.3585771322250366f;
        p = p * t + 0.054963480681180954f;
        p = p * t + 0.27909812331199646f;
        p = p * t + 0.28414663672447205f;
        p = p * t + 0.2879178822040558f;
        floats tail = p * t * e * 0.5f, cdf = choose(v < 0.0f, tail, 1.0f - tail);
        write(v * cdf, y + i);
        write(cdf + v * e * 0.39894228f, slope + i);
    }
}

/* y = a b */
void multiply(const bf16 *a, const bf16 *b, bf16 *y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) write(read(a + i) * read(b + i), y + i);
}

/* y = (x - mean) / sqrt(var + eps) weight + bias of each row (LayerNorm); without a bias the mean is left out, and the
   quotient is rounded before it is multiplied (RMSNorm of transformers). Keeps each row's mean and 1 / sqrt. With a
   residual, x is first replaced by drop(x) + residual, which is written to `sums`. */
void norm(const bf16 *x, const bf16 *residual, bf16 *sums, const bf16 *weight, const bf16 *bias, bf16 *y, float *mean,
        float *inverse, int64_t rows, int64_t width, float eps, const Dropout *d) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t first = row * width;
        const bf16 *from = x + first;
        floats sum = {0}, squares = {0};
        if (residual) {
            for (int64_t i = first; i < first + width; i += LANES) {
                floats kept = read(x + i);
                if (d->share) kept = (floats)((ints)(kept * d->factor) & ~dropped((uint32_t)i, d));
                write(kept + read(residual + i), sums + i);
            }
            from = sums + first;
        }
        if (bias)
            for (int64_t i = 0; i < width; i += LANES) sum += read(from + i);
        float centre = sum_of(sum) / width;
        for (int64_t i = 0; i < width; i += LANES) squares += (read(from + i) - centre) * (read(from + i) - centre);
        float scale = 1.0f / sqrtf(sum_of(squares) / width + eps);
        for (int64_t i = 0; i < width; i += LANES) {
            floats n = (read(from + i) - centre) * scale;
            write(bias ? n * read(weight + i) + read(bias + i) : rounded(n) * read(weight + i), y + first + i);
        }
        mean[row] = centre;
        inverse[row] = scale;
    }
}

/* dx = (h - mean(h) - n mean(h n)) / sqrt(var + eps), h = dy weight, n = the normalised x; mean(h) of LayerNorm only.
   `kept`, if given, gets the gradient by the x that was dropped. */
void norm_backward(const bf16 *dy, const bf16 *x, const bf16 *weight, const float *mean, const float *inverse, bf16 *dx,
        bf16 *kept, int64_t rows, int64_t width, int64_t centred, const Dropout *d) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t begin = row * width;
        const bf16 *from = x + begin, *grad = dy + begin;
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
            floats out = (h - first - (read(from + i) - centre) * scale * second) * scale;
            write(out, dx + begin + i);
            if (kept) write((floats)((ints)(out * d->factor) & ~dropped((uint32_t)(begin + i), d)), kept + begin + i);
        }
    }
}

/* 16 by 16 transposition of words */
static inline void transpose(words r[16]) {
#ifdef __AVX512F__
    __m512i t[16], *x = (__m512i *)r;
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            uint32_t kept = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = kept;
        }
#endif
}

/* The right factor of a product is held as pairs of its rows, 2 k and 2 k + 1: one word for each column. */
enum { SIDE = 32 };  /* factors have multiples of 32 rows and columns */

static inline words pair(words even, words odd) { return even | odd << 16; }

static inline words pair_of(floats even, floats odd) {
    bf16 half[2 * LANES];
    write(even, half);
    write(odd, half + LANES);
    return pair((words)read(half) >> 16, (words)read(half + LANES) >> 16);
}

static inline words bits(const bf16 *x) { return (words)read(x) >> 16; }

/* pairs of 32 rows of 16 columns */
static inline void pack_rows(const bf16 *x, int64_t stride, uint32_t *to, int64_t to_stride) {
    for (int k = 0; k < SIDE; k += 2, to += to_stride)
        *(words *)to = pair(bits(x + k * stride), bits(x + (k + 1) * stride));
}

/* the same of a factor that is stored transposed: 16 rows of 32 columns */
static inline void pack_columns(const bf16 *x, int64_t stride, uint32_t *to, int64_t to_stride) {
    words r[16];
    for (int i = 0; i < 16; i++) memcpy(&r[i], x + i * stride, sizeof r[i]);
    transpose(r);
    for (int i = 0; i < 16; i++) *(words *)(to + i * to_stride) = r[i];
}

#ifdef __AMX_BF16__
typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } Tiles;

static inline void use_tiles(Tiles *before) {
    Tiles tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) { tiles.bytes[i] = 64; tiles.rows[i] = 16; }
    _tile_storeconfig(before);
    _tile_loadconfig(&tiles);
}

static inline void leave_tiles(const Tiles *before) {
    if (before->palette) _tile_loadconfig(before);
    else _tile_release();
}
#else
typedef int Tiles;
static inline void use_tiles(Tiles *before) { *before = 0; }
static inline void leave_tiles(const Tiles *before) { (void)before; }
#endif

/* c (m, n) = a (m, k) b (k, n), or c += a b, in fp32; b as pairs of rows; all sides are multiples of 32 */
static void product(int m, int n, int k, const bf16 *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, float *c,
        int64_t c_stride, int add) {
    for (int i = 0; i < m; i += SIDE)
        for (int j = 0; j < n; j += SIDE) {
            const bf16 *left = a + i * a_stride;
            const uint32_t *right = b + j;
            float *to = c + i * c_stride + j;
#ifdef __AMX_BF16__
            float *low = to + LANES * c_stride;
            if (add) {
                _tile_loadd(0, to, c_stride * 4); _tile_loadd(1, to + LANES, c_stride * 4);
                _tile_loadd(2, low, c_stride * 4); _tile_loadd(3, low + LANES, c_stride * 4);
            } else { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
            for (int p = 0; p < k; p += SIDE, left += SIDE, right += SIDE / 2 * b_stride) {
                _tile_loadd(4, left, a_stride * 2);
                _tile_loadd(5, left + LANES * a_stride, a_stride * 2);
                _tile_loadd(6, right, b_stride * 4);
                _tile_loadd(7, right + LANES, b_stride * 4);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, c_stride * 4); _tile_stored(1, to + LANES, c_stride * 4);
            _tile_stored(2, low, c_stride * 4); _tile_stored(3, low + LANES, c_stride * 4);
#else
            for (int row = 0; row < SIDE; row += 4) {  /* 4 rows by 2 vectors: 8 sums in registers */
                floats sums[4][2];
                for (int s = 0; s < 8; s++)
                    sums[s / 2][s % 2] = add ? AT(to + (row + s / 2) * c_stride + s % 2 * LANES) : all(0);
                for (int p = 0; p < k / 2; p++)
                    for (int s = 0; s < 8; s++) {
                        words both = *(const words *)(right + p * b_stride + s % 2 * LANES);
                        uint32_t x;
                        memcpy(&x, left + (row + s / 2) * a_stride + 2 * p, 4);
#ifdef __AVX512BF16__
                        sums[s / 2][s % 2] = (floats)_mm512_dpbf16_ps(
                            (__m512)sums[s / 2][s % 2], (__m512bh)_mm512_set1_epi32(x), (__m512bh)both);
#else
                        floats even = (floats)((words){0} + (x << 16)), odd = (floats)((words){0} + (x & 0xffff0000u));
                        sums[s / 2][s % 2] += even * (floats)(both << 16) + odd * (floats)(both & 0xffff0000u);
#endif
                    }
                for (int s = 0; s < 8; s++) AT(to + (row + s / 2) * c_stride + s % 2 * LANES) = sums[s / 2][s % 2];
            }
#endif
        }
}

/* Attention: a head's scores, for 32 queries at a time, stay in the core's cache. They are held transposed (keys,
   queries), so that softmax and dropout work on vectors of queries and need no sums within a vector. */
typedef struct {
    int64_t batch, heads, groups, queries, keys, width;
    int64_t query[3], key[3], value[3], out[3];  /* strides of batch, head and row */
    int64_t mask[3], mask_by_query;              /* strides of batch, head and key; a row has numbers for all queries, or one */
    float scaling;
    Dropout dropout;
} Shape;

#define WHOLE(n) (((n) + SIDE - 1) / SIDE * SIDE)

/* rows, followed by rows of zeros up to a multiple of 32 */
static void load(const bf16 *x, int64_t stride, int rows, int width, bf16 *to) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES) *(halves *)(to + i * width + j) = *(const halves *)(x + i * stride + j);
    memset(to + rows * width, 0, sizeof(bf16) * (WHOLE(rows) - rows) * width);
}

/* (rows, width) to (width, rows); both are multiples of 16 */
static void load_transposed(const bf16 *x, int rows, int width, bf16 *to) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < width; j += LANES) {
            words r[16];
            for (int n = 0; n < LANES; n++) r[n] = bits(x + (i + n) * width + j);
            transpose(r);
            for (int n = 0; n < LANES; n++)
                *(halves *)(to + (j + n) * rows + i) = __builtin_convertvector(r[n], halves);
        }
}

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

/* Products with a frozen matrix on AMX tiles. oneDNN, which torch uses, makes new code for each number of rows, in a
   few milliseconds; here any number of rows runs the same code. */
#ifdef __AMX_BF16__

enum { TILE = 16, PAIRS = 16, DEEP = 32, TALL = 64, PACKED = 1 << 19 };  /* packed: numbers of the matrix at a time */

/* 32 rows and columns of sums from 32 rows of x and a packed panel of 32 columns */
static inline void block(const bf16 *x, int64_t stride, const uint32_t *panel, int64_t depth, float sums[4][TILE * TILE]) {
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
}

static inline void finish(float sums[4][TILE * TILE], const bf16 *bias, int add, bf16 *y, int64_t stride, int rows) {
    floats left = bias ? read(bias) : all(0), right = bias ? read(bias + TILE) : all(0);
    for (int i = 0; i < rows; i++, y += stride) {
        const float *from = sums[i < TILE ? 0 : 2] + i % TILE * TILE;
        write(AT(from) + (add ? read(y) : left), y);
        write(AT(from + TILE * TILE) + (add ? read(y + TILE) : right), y + TILE);
    }
}

/* y (m, n) = x (m, k) w + bias, or y += x w; w is (k, n), or stored as (n, k) if `transposed`; k and n are multiples of
   32, and rows of x start `x_stride` numbers apart */
void product_with_frozen(const bf16 *x, int64_t x_stride, const bf16 *w, int64_t transposed, const bf16 *bias,
        int64_t add, bf16 *y, int64_t m, int64_t n, int64_t k, uint32_t *scratch) {
    int64_t wide = PACKED / k / DEEP * DEEP;
    wide = wide < DEEP ? DEEP : wide > n ? n : wide;
    for (int64_t first = 0; first < n; first += wide) {
        int64_t panels = (n - first < wide ? n - first : wide) / 32;
#pragma omp parallel
        {
            Tiles before;
            use_tiles(&before);
#pragma omp for schedule(static)
            for (int64_t job = 0; job < panels * (k / DEEP); job++) {
                int64_t column = first + job / (k / DEEP) * 32, row = job % (k / DEEP) * DEEP;
                uint32_t *to = scratch + job * 2 * TILE * PAIRS;
                for (int half = 0; half < 2; half++, to += TILE * PAIRS)
                    if (transposed) pack_columns(w + (column + half * TILE) * k + row, k, to, TILE);
                    else pack_rows(w + row * n + column + half * TILE, n, to, TILE);
            }
#pragma omp for schedule(static)
            for (int64_t top = 0; top < m; top += TALL) {  /* a panel stays in the innermost cache for all of these rows */
                int64_t bottom = m - top < TALL ? m : top + TALL, last = (bottom - 1) / 32 * 32;
                bf16 edge[(bottom % 32 ? 32 : 0) * k + 1] __attribute__((aligned(64)));
                if (bottom % 32) load(x + last * x_stride, x_stride, bottom - last, k, edge);
                for (int64_t p = 0; p < panels; p++)
                    for (int64_t i = top; i < bottom; i += 32) {
                        float sums[4][TILE * TILE] __attribute__((aligned(64)));
                        int at_edge = bottom % 32 && i == last;
                        block(at_edge ? edge : x + i * x_stride, at_edge ? k : x_stride, scratch + p * k * 16, k, sums);
                        finish(sums, bias ? bias + first + p * 32 : 0, add, y + i * n + first + p * 32, n, bottom - i < 32 ? bottom - i : 32);
                    }
            }
            leave_tiles(&before);
        }
    }
}
#endif

/* Products with the factors of an adapter, whose rank r is small; one side of each is padded to 32. A factor may be
   stored in either order: `row` and `column` are its strides. */

/* 32 columns of a factor (k, r) as pairs of rows, k padded with zeros */
static void pack_few(const bf16 *x, int64_t row, int64_t column, int64_t k, int64_t columns, uint32_t *to, int64_t stride) {
    for (int64_t i = 0; i < WHOLE(k); i += 2, to += stride)
        for (int64_t j = 0; j < SIDE; j++) {
            uint32_t even = j < columns && i < k ? x[i * row + j * column] : 0;
            to[j] = j < columns && i + 1 < k ? even | (uint32_t)x[(i + 1) * row + j * column] << 16 : even;
        }
}

/* rows of few columns, with zeros up to 32 rows and whole columns */
static void load_few(const bf16 *x, int64_t stride, int rows, int64_t r, bf16 *to) {
    memset(to, 0, sizeof(bf16) * SIDE * WHOLE(r));
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < r; j++) to[i * WHOLE(r) + j] = x[i * stride + j];
}

/* low (m, r) = factor x a; x (m, k), a (k, r); k is a multiple of 32 */
void times_few(const bf16 *x, int64_t x_stride, const bf16 *a, int64_t row, int64_t column, float factor, bf16 *low,
        int64_t low_stride, int64_t m, int64_t k, int64_t r) {
    int64_t wide = WHOLE(r);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
        uint32_t pairs[k / 2 * wide] __attribute__((aligned(64)));
        for (int64_t j = 0; j < wide; j += SIDE) pack_few(a + j * column, row, column, k, r - j, pairs + j, wide);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            int rows = m - i < SIDE ? m - i : SIDE;
            float sums[SIDE * wide] __attribute__((aligned(64)));
            bf16 edge[(rows < SIDE ? SIDE : 0) * k + 1] __attribute__((aligned(64))), out[wide];
            if (rows < SIDE) load(x + i * x_stride, x_stride, rows, k, edge);
            product(SIDE, wide, k, rows < SIDE ? edge : x + i * x_stride, rows < SIDE ? k : x_stride, pairs, wide, sums,
                    wide, 0);
            for (int n = 0; n < rows; n++) {
                for (int64_t j = 0; j < wide; j += LANES) write(AT(sums + n * wide + j) * factor, out + j);
                for (int64_t j = 0; j < r; j++) low[(i + n) * low_stride + j] = out[j];
            }
        }
        leave_tiles(&before);
    }
}

/* y += low b; y (m, n), low (m, r), b (r, n); n is a multiple of 32 */
void add_few(const bf16 *low, int64_t low_stride, const bf16 *b, int64_t row, int64_t column, bf16 *y, int64_t m,
        int64_t n, int64_t r) {
    int64_t wide = WHOLE(r);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
        uint32_t pairs[wide / 2 * n] __attribute__((aligned(64)));
        for (int64_t j = 0; j < n; j += SIDE) pack_few(b + j * column, row, column, r, SIDE, pairs + j, n);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            int rows = m - i < SIDE ? m - i : SIDE;
            bf16 left[SIDE * wide] __attribute__((aligned(64)));
            float sums[SIDE * SIDE] __attribute__((aligned(64)));
            load_few(low + i * low_stride, low_stride, rows, r, left);
            for (int64_t j = 0; j < n; j += SIDE) {
                product(SIDE, SIDE, wide, left, wide, pairs + j, n, sums, SIDE, 0);
                for (int p = 0; p < rows * 2; p++) {
                    bf16 *to = y + (i + p / 2) * n + j + p % 2 * LANES;
                    write(read(to) + AT(sums + p * LANES), to);
                }
            }
        }
        leave_tiles(&before);
    }
}

/* out (r, n) = lowᵀ x in fp32; low (m, r), x (m, n); n is a multiple of 32. `turned` is scratch for lowᵀ: r by m, both
   up to a multiple of 32. */
void sum_of_few(const bf16 *low, int64_t low_stride, const bf16 *x, int64_t x_stride, float *out, int64_t row,
        int64_t column, int64_t m, int64_t n, int64_t r, bf16 *turned) {
    int64_t wide = WHOLE(r), tall = WHOLE(m);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            bf16 left[SIDE * wide], columns[wide * SIDE];
            load_few(low + i * low_stride, low_stride, m - i < SIDE ? m - i : SIDE, r, left);
            load_transposed(left, SIDE, wide, columns);
            for (int64_t j = 0; j < wide; j++) memcpy(turned + j * tall + i, columns + j * SIDE, sizeof(bf16) * SIDE);
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < n; j += SIDE) {
            bf16 edge[SIDE * SIDE];
            uint32_t pairs[SIDE / 2 * SIDE] __attribute__((aligned(64)));
            float sums[wide * SIDE] __attribute__((aligned(64)));
            memset(sums, 0, sizeof sums);
            for (int64_t i = 0; i < m; i += SIDE) {
                int rows = m - i < SIDE ? m - i : SIDE;
                const bf16 *from = x + i * x_stride + j;
                if (rows < SIDE) load(from, x_stride, rows, SIDE, edge);
                for (int half = 0; half < SIDE; half += LANES)
                    pack_rows((rows < SIDE ? edge : from) + half, rows < SIDE ? SIDE : x_stride, pairs + half, SIDE);
                product(wide, SIDE, SIDE, turned + i, tall, pairs, SIDE, sums, SIDE, 1);
            }
            for (int64_t i = 0; i < r; i++)
                for (int64_t c = 0; c < SIDE; c++) out[i * row + (j + c) * column] = sums[i * SIDE + c];
        }
        leave_tiles(&before);
    }
}
