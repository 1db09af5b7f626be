/* Numbers of the C functions for training in bf16: read as bf16, computed in fp32 in vectors of 16, and written as
   bf16, rounded to nearest. Widths of rows, and the numbers of a tensor, are multiples of 16. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <immintrin.h>

enum { LANES = 16 };
typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef bf16 halves __attribute__((vector_size(32), aligned(2)));

#define AT(pointer) (*(floats *)(pointer))

static inline floats all(float x) { return (floats){0} + x; }

/* one bit for each lane */
typedef __mmask16 lanes;

static inline lanes less(floats a, floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }

static inline floats choose(lanes mask, floats a, floats b) {
    return (floats)_mm512_mask_blend_ps(mask, (__m512)b, (__m512)a);
}

static inline floats only(lanes mask, floats x) { return (floats)_mm512_maskz_mov_ps(mask, (__m512)x); }

static inline floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }

static inline floats read(const bf16 *x) {  /* GCC 12 makes five instructions of __builtin_convertvector */
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
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

static inline void write_two(floats left, floats right, bf16 *to) {
#ifdef __AVX512BF16__
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
#else
    write(left, to);
    write(right, to + LANES);
#endif
}

static inline floats rounded(floats x) {
    bf16 half[LANES];
    write(x, half);
    return read(half);
}

static inline float sum_of(floats x) { return _mm512_reduce_add_ps((__m512)x); }

/* e^x for x <= 0, to 1e-7 of its value: 2^n e^r with |r| <= ln(2)/2, and e^r by its Taylor series. Below -80 it
   becomes 0: arithmetic with numbers this small is slow. */
static inline floats exponential(floats x) {
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
    return (floats)_mm512_maskz_scalef_ps(~less(x, all(-80)), (__m512)p, (__m512)n);
}

/* 1 / x, to 1e-7 of its value: one step of Newton's after an estimate, faster than a division */
static inline floats reciprocal(floats x) {
    floats r = (floats)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
}

/* log(x) for positive x, to 1e-7: x = 2^n m with 0.75 <= m < 1.5, and log(m) = 2 artanh((m - 1) / (m + 1)) by its
   Taylor series */
static inline floats logarithm(floats x) {
    floats m = (floats)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    floats n = (floats)_mm512_getexp_ps((__m512)x);
    n = choose(less(m, all(1)), n + 1.0f, n);  /* 1.5 <= x / 2^n < 2 became 0.75 <= m < 1 */
    floats s = (m - 1.0f) * reciprocal(m + 1.0f), square = s * s;
    floats p = square * (2 / 9.0f) + 2 / 7.0f;
    p = p * square + 2 / 5.0f;
    p = p * square + 2 / 3.0f;
    p = p * square + 2.0f;
    return n * 0.693147181f + p * s;
}

/* x Phi(x), and its derivative Phi(x) + x phi(x): the two share their functions. Phi(-z) = erfcx(z / sqrt(2))
   e^(-z^2 / 2) / 2 for z >= 0, where erfcx is a polynomial of 1 / (1 + 0.51 z / sqrt(2)), fitted to 1e-6 of its
   value. */
static inline floats gelu_of(floats x, floats *slope) {
    lanes negative = less(x, all(0));
    floats z = choose(negative, -x, x), e = exponential(z * z * -0.5f);
    floats t = reciprocal(1.0f + z * 0.36062446f);
    floats p = t * 0.0945284366607666f - 0.3592321276664734f;
    p = p * t + 0.3585771322250366f;
    p = p * t + 0.054963480681180954f;
    p = p * t + 0.27909812331199646f;
    p = p * t + 0.28414663672447205f;
    p = p * t + 0.2879178822040558f;
    floats tail = p * t * e * 0.5f, cdf = choose(negative, tail, 1.0f - tail);
    *slope = cdf + x * e * 0.39894228f;
    return x * cdf;
}

/* Dropout. A number's position is hashed with two keys to 32 random bits; those below `share` are dropped. */
typedef struct {
    uint32_t share, first_key, second_key;  /* share: dropout probability times 2^32 */
    float factor;                           /* 1 / (1 - dropout probability) */
} Dropout;

static inline lanes kept(uint32_t position, const Dropout *d) {
    words x = (words){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + position;
    x ^= d->first_key;
    x ^= x >> 16; x *= 0x21f0aaadu;
    x ^= x >> 15; x *= 0x735a2d97u;
    x ^= x >> 15; x += d->second_key;
    x ^= x >> 16; x *= 0x85ebca6bu;
    x ^= x >> 13;
    return _mm512_cmpge_epu32_mask((__m512i)x, _mm512_set1_epi32(d->share));
}
