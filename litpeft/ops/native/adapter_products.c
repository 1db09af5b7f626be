#include "tiles.h"

/* Products with the factors of an adapter, whose rank r is small and padded with zeros to a multiple of FEW. A factor
   may be stored in either order: `row` and `column` are its strides. */
#define WIDE(r) UP_TO(r, FEW)

/* a factor (k, n) as pairs of its rows, padded */
static void pack_few(const bf16 *x, int64_t row, int64_t column, int64_t k, int64_t n, uint32_t *to) {
    for (int64_t i = 0; i < WIDE(k); i += 2)
        for (int64_t j = 0; j < WIDE(n); j++) {
            uint32_t even = j < n && i < k ? x[i * row + j * column] : 0;
            *to++ = j < n && i + 1 < k ? even | (uint32_t)x[(i + 1) * row + j * column] << 16 : even;
        }
}

/* low (m, r) = factor x a; x (m, k), a (k, r); k is a multiple of 32 */
void times_few(const bf16 *x, int64_t x_stride, const bf16 *a, int64_t row, int64_t column, float factor, bf16 *low,
        int64_t low_stride, int64_t m, int64_t k, int64_t r) {
    int64_t wide = WIDE(r);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
        ALIGNED uint32_t pairs[k / 2 * wide];
        pack_few(a, row, column, k, r, pairs);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            int rows = m - i < SIDE ? m - i : SIDE;
            ALIGNED float sums[SIDE * wide];
            ALIGNED bf16 edge[(rows < SIDE ? SIDE : 0) * k + 1], out[wide];
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

/* up to 32 rows of y += low b; low (rows, r) with padding, b as packed */
static inline void add_rows(const bf16 *low, const uint32_t *b, bf16 *y, int rows, int64_t n, int64_t r) {
    int64_t wide = WIDE(r);
#ifdef __AMX_BF16__
    ALIGNED float sums[SIDE * SIDE];
    for (int64_t j = 0; j < n; j += SIDE) {
        product(SIDE, SIDE, wide, low, wide, b + j, n, sums, SIDE, 0);
        for (int p = 0; p < rows * 2; p++) {
            bf16 *to = y + p / 2 * n + j + p % 2 * LANES;
            write(read(to) + AT(sums + p * LANES), to);
        }
    }
#else
    enum { SOME = 4 };  /* rows of which 32 sums each are in registers */
    for (int i = 0; i < rows; i += SOME, low += SOME * wide, y += SOME * n)
        for (int64_t j = 0; j < n; j += SIDE) {
            floats sums[SOME * 2];
            int count = 2 * (rows - i < SOME ? rows - i : SOME);
            for (int s = 0; s < SOME * 2; s++) sums[s] = s < count ? read(y + s / 2 * n + j + s % 2 * LANES) : all(0);
            for (int64_t k = 0; k < r; k += 2)
                for (int s = 0; s < SOME * 2; s++) {
                    words pairs = *(const words *)(b + k / 2 * n + j + s % 2 * LANES);
                    sums[s] = times(sums[s], low + s / 2 * wide + k, pairs);
                }
            for (int s = 0; s < count; s++) write(sums[s], y + s / 2 * n + j + s % 2 * LANES);
        }
#endif
}

/* y += low b; y (m, n), low (m, r), b (r, n); n is a multiple of 32 */
void add_few(const bf16 *low, int64_t low_stride, const bf16 *b, int64_t row, int64_t column, bf16 *y, int64_t m,
        int64_t n, int64_t r) {
    int64_t wide = WIDE(r);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
        ALIGNED uint32_t pairs[wide / 2 * n];
        pack_few(b, row, column, r, n, pairs);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            int rows = m - i < SIDE ? m - i : SIDE;
            ALIGNED bf16 left[SIDE * wide];
            load_few(low + i * low_stride, low_stride, rows, r, wide, left);
            add_rows(left, pairs, y + i * n, rows, n, r);
        }
        leave_tiles(&before);
    }
}

/* out (r, n) = lowᵀ x in fp32; low (m, r), x (m, n); n is a multiple of 32. `turned` is scratch for lowᵀ, with r up
   to a multiple of FEW and m up to one of 32 */
void sum_of_few(const bf16 *low, int64_t low_stride, const bf16 *x, int64_t x_stride, float *out, int64_t row,
        int64_t column, int64_t m, int64_t n, int64_t r, bf16 *turned) {
    int64_t wide = WIDE(r), tall = WHOLE(m);
#pragma omp parallel
    {
        Tiles before;
        use_tiles(&before);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i += SIDE) {
            bf16 left[SIDE * wide], columns[wide * SIDE];
            load_few(low + i * low_stride, low_stride, m - i < SIDE ? m - i : SIDE, r, wide, left);
            load_transposed(left, SIDE, wide, columns);
            for (int64_t j = 0; j < wide; j++) memcpy(turned + j * tall + i, columns + j * SIDE, sizeof(bf16) * SIDE);
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < n; j += SIDE) {
            enum { TALL = 256 };  /* rows whose pairs stay in the innermost cache; the sums stay in tiles as long */
            bf16 edge[SIDE * SIDE];
            ALIGNED uint32_t pairs[TALL / 2 * SIDE];
            ALIGNED float sums[wide * SIDE];
            for (int64_t top = 0; top < m; top += TALL) {
                int64_t bottom = tall - top < TALL ? tall : top + TALL;
                for (int64_t i = top; i < bottom; i += SIDE) {
                    int rows = m - i < SIDE ? m - i : SIDE;
                    const bf16 *from = x + i * x_stride + j;
                    for (int64_t n = i + SIDE; n < m && n < i + 2 * SIDE; n++) __builtin_prefetch(x + n * x_stride + j);
                    if (rows < SIDE) load(from, x_stride, rows, SIDE, edge);
                    for (int half = 0; half < SIDE; half += LANES)
                        pack_rows((rows < SIDE ? edge : from) + half, rows < SIDE ? SIDE : x_stride,
                                  pairs + (i - top) / 2 * SIDE + half, SIDE);
                }
                product(UP_TO(r, FEWEST), SIDE, bottom - top, turned + top, tall, pairs, SIDE, sums, SIDE, top > 0);
            }
            for (int64_t i = 0; i < r; i++)
                for (int64_t c = 0; c < SIDE; c++) out[i * row + (j + c) * column] = sums[i * SIDE + c];
        }
        leave_tiles(&before);
    }
}
