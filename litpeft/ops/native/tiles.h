/* Products of small blocks, on the tiles of AMX where the processor has them. */
#pragma once

#include "numbers.h"

/* 16 by 16 transposition of words */
static inline void transpose(words r[16]) {
    __m512i t[16], x[16];
    for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(&r[i]);
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
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(&r[i], x[i]);
}

/* The right factor of a product is held as pairs of its rows, 2 k and 2 k + 1: one word for each column. */
enum { SIDE = 32 };  /* sides of blocks; of those without tiles, see FEW and FEWEST */
#define ALIGNED __attribute__((aligned(64)))  /* a tile whose rows cross cache lines takes eight times as long */

static inline words pair(words even, words odd) { return even | odd << 16; }

static inline words pair_of(floats even, floats odd) {
#ifdef __AVX512BF16__
    const short order[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(order),
                                           (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    bf16 half[2 * LANES];
    write(even, half);
    write(odd, half + LANES);
    return pair((words)read(half) >> 16, (words)read(half + LANES) >> 16);
#endif
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
    for (int i = 0; i < 16; i++) r[i] = (words)_mm512_loadu_si512(x + i * stride);  /* memcpy would be a call */
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

#ifdef __AMX_BF16__
enum { FEW = SIDE, FEWEST = SIDE };  /* columns and rows of products are multiples of these */
#else
enum { FEW = LANES, FEWEST = 4 };

/* sum += two numbers of x times pairs */
static inline floats times(floats sum, const bf16 *x, words pairs) {
    uint32_t both;
    memcpy(&both, x, 4);
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)pairs);
#else
    floats even = (floats)((words){0} + (both << 16)), odd = (floats)((words){0} + (both & 0xffff0000u));
    return sum + (even * (floats)(pairs << 16) + odd * (floats)(pairs & 0xffff0000u));
#endif
}

/* some rows and vectors of c: 8 sums in registers */
static inline __attribute__((always_inline)) void some_sums(const int rows, const int vectors, int k, const bf16 *a,
        int64_t a_stride, const uint32_t *b, int64_t b_stride, float *c, int64_t c_stride, int add) {
    floats sums[8];
    for (int s = 0; s < 8; s++) sums[s] = add ? AT(c + s / vectors * c_stride + s % vectors * LANES) : all(0);
    for (int p = 0; p < k / 2; p++)
        for (int s = 0; s < rows * vectors; s++) {
            words pairs = *(const words *)(b + p * b_stride + s % vectors * LANES);
            sums[s] = times(sums[s], a + s / vectors * a_stride + 2 * p, pairs);
        }
    for (int s = 0; s < 8; s++) AT(c + s / vectors * c_stride + s % vectors * LANES) = sums[s];
}
#endif

/* c (m, n) = a (m, k) b (k, n), or c += a b, in fp32; b as pairs of rows. n and k are multiples of FEW,
   m is one of FEWEST, or of 8 if n is not one of 32 */
static void product(int m, int n, int k, const bf16 *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, float *c,
        int64_t c_stride, int add) {
#ifdef __AMX_BF16__
    for (int i = 0; i < m; i += SIDE)
        for (int j = 0; j < n; j += SIDE) {
            const bf16 *left = a + i * a_stride;
            const uint32_t *right = b + j;
            float *to = c + i * c_stride + j, *low = to + LANES * c_stride;
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
        }
#else
    for (int j = 0; j < n; j += 2 * LANES)
        if (n - j >= 2 * LANES)
            for (int i = 0; i < m; i += 4)
                some_sums(4, 2, k, a + i * a_stride, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, add);
        else
            for (int i = 0; i < m; i += 8)
                some_sums(8, 1, k, a + i * a_stride, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, add);
#endif
}

#define UP_TO(n, side) (((n) + (side) - 1) / (side) * (side))
#define WHOLE(n) UP_TO(n, SIDE)

/* rows, followed by rows of zeros up to a multiple of 32; their width is a multiple of 32 too */
static inline void load(const bf16 *x, int64_t stride, int rows, int width, bf16 *to) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += SIDE)
            _mm512_storeu_si512(to + i * width + j, _mm512_loadu_si512(x + i * stride + j));
    memset(to + rows * width, 0, sizeof(bf16) * (WHOLE(rows) - rows) * width);
}

/* rows of few columns r, with zeros up to 32 rows and to the width */
static inline void load_few(const bf16 *x, int64_t stride, int rows, int64_t r, int64_t width, bf16 *to) {
    memset(to, 0, sizeof(bf16) * SIDE * width);
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < r; j++) to[i * width + j] = x[i * stride + j];
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
