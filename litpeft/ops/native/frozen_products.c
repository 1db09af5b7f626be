#ifdef _OPENMP
#include <omp.h>
#endif

#include "tiles.h"

/* Products with a frozen matrix on AMX tiles, or with the bf16 products of AVX-512. oneDNN, which torch uses, makes new
   code for each number of rows, in a few milliseconds; here any number of rows runs the same code. */
#ifdef __AVX512BF16__

enum { TILE = 16, PAIRS = 16, DEEP = 32, TALL = 64, PACKED = 1 << 19 };  /* packed: numbers of the matrix at a time */

#ifdef __AMX_BF16__
/* 32 rows and columns of sums from 32 rows of x and a packed panel of 32 columns */
static inline void block(const bf16 *x, int64_t stride, const uint32_t *panel, int64_t depth,
        float sums[4][TILE * TILE]) {
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
    _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
}
#else
static inline void block(const bf16 *x, int64_t stride, const uint32_t *panel, int64_t depth,
        float sums[4][TILE * TILE]) {
    enum { SOME = 8 };  /* rows whose sums are in registers */
    for (int first = 0; first < 2 * TILE; first += SOME, x += SOME * stride) {
        const uint32_t *pairs = panel;
        floats left[SOME], right[SOME];
        for (int i = 0; i < SOME; i++) left[i] = right[i] = all(0);
        for (int64_t k = 0; k < depth; k += DEEP, pairs += 2 * TILE * PAIRS)
            for (int p = 0; p < PAIRS; p++) {
                words a = *(const words *)(pairs + p * TILE), b = *(const words *)(pairs + (p + PAIRS) * TILE);
                for (int i = 0; i < SOME; i++) {
                    const bf16 *both = x + i * stride + k + 2 * p;
                    left[i] = times(left[i], both, a);
                    right[i] = times(right[i], both, b);
                }
            }
        for (int i = 0; i < SOME; i++) {
            float *to = sums[first / TILE * 2] + (first + i) % TILE * TILE;
            AT(to) = left[i];
            AT(to + TILE * TILE) = right[i];
        }
    }
}
#endif

/* in how many parts the panels are computed so that there are two jobs for each thread, if there are several */
static inline int64_t parts_of(int64_t panels, int64_t chunks) {
#ifdef _OPENMP
    int64_t threads = omp_get_num_threads(), parts = (2 * threads + chunks - 1) / chunks;
    if (threads > 1) return parts < panels ? parts : panels;
#endif
    return 1;
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
                if (transposed && column + 64 <= n)  /* the processor does not foresee 32 rows at a time */
                    for (int i = 0; i < 32; i++) __builtin_prefetch(w + (column + 32 + i) * k + row);
                for (int half = 0; half < 2; half++, to += TILE * PAIRS)
                    if (transposed) pack_columns(w + (column + half * TILE) * k + row, k, to, TILE);
                    else pack_rows(w + row * n + column + half * TILE, n, to, TILE);
            }
            int64_t chunks = (m + TALL - 1) / TALL, parts = parts_of(panels, chunks);
#pragma omp for schedule(static)
            for (int64_t job = 0; job < chunks * parts; job++) {
                int64_t top = job / parts * TALL, part = job % parts;  /* rows for which a panel stays in the cache */
                int64_t bottom = m - top < TALL ? m : top + TALL, last = (bottom - 1) / 32 * 32;
                ALIGNED bf16 edge[(bottom % 32 ? 32 : 0) * k + 1];
                if (bottom % 32) load(x + last * x_stride, x_stride, bottom - last, k, edge);
                for (int64_t p = part * panels / parts; p < (part + 1) * panels / parts; p++)
                    for (int64_t i = top; i < bottom; i += 32) {
                        ALIGNED float sums[4][TILE * TILE];
                        int at_edge = bottom % 32 && i == last, rows = bottom - i < 32 ? bottom - i : 32;
                        int64_t column = first + p * 32;
                        block(at_edge ? edge : x + i * x_stride, at_edge ? k : x_stride, scratch + p * k * 16, k, sums);
                        finish(sums, bias ? bias + column : 0, add, y + i * n + column, n, rows);
                    }
            }
            leave_tiles(&before);
        }
    }
}
#endif
