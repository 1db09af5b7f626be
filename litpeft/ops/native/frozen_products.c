#ifdef _OPENMP
#include <omp.h>
#endif

#include "tiles.h"

/* Products with a frozen matrix on AMX tiles, or with the bf16 products of AVX-512. oneDNN, which torch uses, makes new
   code for each number of rows, in a few milliseconds; here any number of rows runs the same code. */
#ifdef __AVX512BF16__

enum { TILE = 16, PAIRS = 16, DEEP = 32, PACKED = 1 << 19 };  /* packed: numbers of the matrix at a time */
enum { PLAIN, ADD, GELU };  /* what is done with the sums besides adding the bias; as in the Python file */

/* A block of 32 by 32 sums that is still to be finished: a few rows at a time, between the products of the next block,
   as the processor multiplies tiles beside its other work. */
typedef struct {
    const float *sums;
    const bf16 *bias;
    bf16 *y, *slope;
    int64_t stride;
    int kind, row, rows;
} Rest;

static inline void finish_rows(Rest *rest, int count) {
    if (rest->row == rest->rows) return;
    floats left = rest->bias ? read(rest->bias) : all(0), right = rest->bias ? read(rest->bias + TILE) : all(0);
    int end = rest->rows - rest->row < count ? rest->rows : rest->row + count;
    for (; rest->row < end; rest->row++) {
        const float *from = rest->sums + rest->row / TILE * 2 * TILE * TILE + rest->row % TILE * TILE;
        bf16 *y = rest->y + rest->row * rest->stride;
        floats a = AT(from) + left, b = AT(from + TILE * TILE) + right;
        if (rest->kind == ADD) {
            a += read(y);
            b += read(y + TILE);
        } else if (rest->kind == GELU) {
            floats a_slope, b_slope;
            a = gelu_of(rounded(a), &a_slope);
            b = gelu_of(rounded(b), &b_slope);
            write_two(a_slope, b_slope, rest->slope + rest->row * rest->stride);
        }
        write_two(a, b, y);
    }
}

/* 32 rows as the left factor of a product */
typedef struct { const bf16 *rows; int64_t stride, depth; } Left;

#ifdef __AMX_BF16__
/* Add to 32 rows and columns of sums in tiles the products of 32 rows of x and a packed panel of 32 columns. The panel
   is read once for these rows and must not displace them from the innermost cache: it is loaded as a stream. */
static inline void add_products(Left left, const uint32_t *panel, int count, Rest *rest) {
    const bf16 *x = left.rows;
    int64_t stride = left.stride;
    for (int64_t k = 0; k < left.depth; k += DEEP, panel += 2 * TILE * PAIRS) {
        _tile_loadd(4, x + k, stride * 2);
        _tile_stream_loadd(6, panel, 64);
        _tile_stream_loadd(7, panel + TILE * PAIRS, 64);
        _tile_loadd(5, x + k + TILE * stride, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        finish_rows(rest, count);
    }
}

/* 32 rows and columns of sums: left times panel, and low times factors */
static inline void block(Left left, const uint32_t *panel, Left low, const uint32_t *factors, float *sums, Rest *rest) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    add_products(left, panel, (2 * TILE * DEEP + left.depth - 1) / left.depth, rest);
    add_products(low, factors, 0, rest);
    _tile_stored(0, sums, 64); _tile_stored(1, sums + TILE * TILE, 64);
    _tile_stored(2, sums + 2 * TILE * TILE, 64); _tile_stored(3, sums + 3 * TILE * TILE, 64);
}
#else
enum { SOME = 8 };  /* rows whose sums are in registers */

/* add to the sums of some rows from `first` on, of 32 columns */
static inline void add_products(Left left, int first, const uint32_t *panel, floats sums[2 * SOME]) {
    const bf16 *x = left.rows + first * left.stride;
    for (int64_t k = 0; k < left.depth; k += DEEP, panel += 2 * TILE * PAIRS)
        for (int p = 0; p < PAIRS; p++) {
            words a = *(const words *)(panel + p * TILE), b = *(const words *)(panel + (p + PAIRS) * TILE);
            for (int i = 0; i < SOME; i++) {
                const bf16 *both = x + i * left.stride + k + 2 * p;
                sums[i] = times(sums[i], both, a);
                sums[SOME + i] = times(sums[SOME + i], both, b);
            }
        }
}

static inline void block(Left left, const uint32_t *panel, Left low, const uint32_t *factors, float *sums, Rest *rest) {
    for (int first = 0; first < 2 * TILE; first += SOME) {
        floats some[2 * SOME];
        for (int i = 0; i < 2 * SOME; i++) some[i] = all(0);
        add_products(left, first, panel, some);
        add_products(low, first, factors, some);
        for (int i = 0; i < SOME; i++) {
            float *to = sums + first / TILE * 2 * TILE * TILE + (first + i) % TILE * TILE;
            AT(to) = some[i];
            AT(to + TILE * TILE) = some[SOME + i];
        }
    }
    finish_rows(rest, 2 * TILE);
}
#endif

/* in how many parts the panels are computed so that there are two jobs for each thread, if there are several */
static inline int64_t parts_of(int64_t panels, int64_t blocks) {
#ifdef _OPENMP
    int64_t threads = omp_get_num_threads(), parts = (2 * threads + blocks - 1) / blocks;
    if (threads > 1) return parts < panels ? parts : panels;
#endif
    return 1;
}

/* 32 rows, or fewer and zeros, times other rows */
static void load_times(const bf16 *x, int64_t stride, const bf16 *multiplier, int rows, int64_t width, bf16 *to) {
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j += LANES)
            write(read(x + i * stride + j) * read(multiplier + i * width + j), to + i * width + j);
    memset(to + rows * width, 0, sizeof(bf16) * (2 * TILE - rows) * width);
}

/* 32 columns of an adapter's factor (r, n) as pairs of its rows, like a panel; `depth` is r up to a multiple of 32 */
static void pack_factor(const bf16 *x, int64_t row, int64_t column, int64_t r, int64_t depth, uint32_t *to) {
    memset(to, 0, sizeof(uint32_t) * depth / 2 * 32);
    for (int64_t i = 0; i < r; i += 2)
        for (int half = 0; half < 2; half++)
            for (int j = 0; j < TILE; j++) {
                const bf16 *from = x + i * row + (half * TILE + j) * column;
                to[((i / DEEP * 2 + half) * PAIRS + i % DEEP / 2) * TILE + j] =
                    *from | (i + 1 < r ? (uint32_t)from[row] << 16 : 0);
            }
}

/* y (m, n) = x (m, k) w + low (m, r) factor (r, n) + bias. w is (k, n), or stored as (n, k) if `transposed`; k and n are
   multiples of 32; rows of x and of low start `x_stride` and `low_stride` numbers apart; row and column are the strides
   of the factor, and r is 0 without an adapter. With a multiplier (m, k), x is multiplied by it first. If the kind is
   ADD, the sums are added to y; if it is GELU, y is gelu(sums) and `slope` (m, n) its derivative. */
void product_with_frozen(const bf16 *x, int64_t x_stride, const bf16 *multiplier, const bf16 *w, int64_t transposed,
        const bf16 *low, int64_t low_stride, const bf16 *factor, int64_t row, int64_t column, int64_t r,
        const bf16 *bias, int64_t kind, bf16 *y, bf16 *slope, int64_t m, int64_t n, int64_t k, uint32_t *scratch) {
    int64_t wide = PACKED / k / DEEP * DEEP, steps = k / DEEP, few = UP_TO(r, DEEP);
    wide = wide < DEEP ? DEEP : wide > n ? n : wide;
    uint32_t *factors = scratch + wide * k / 2;
    for (int64_t first = 0; first < n; first += wide) {
        int64_t panels = (n - first < wide ? n - first : wide) / 32;
#pragma omp parallel
        {
            Tiles before;
            use_tiles(&before);
#pragma omp for schedule(static) nowait
            for (int64_t job = 0; job < panels * steps; job++) {  /* along the rows of w */
                int64_t panel = transposed ? job / steps : job % panels, step = transposed ? job % steps : job / panels;
                int64_t right = first + panel * 32, down = step * DEEP;
                uint32_t *to = scratch + (panel * steps + step) * 2 * TILE * PAIRS;
                if (transposed && right + 64 <= n)  /* the processor does not foresee 32 rows at a time */
                    for (int i = 0; i < 32; i++) __builtin_prefetch(w + (right + 32 + i) * k + down);
                for (int half = 0; half < 2; half++, to += TILE * PAIRS)
                    if (transposed) pack_columns(w + (right + half * TILE) * k + down, k, to, TILE);
                    else pack_rows(w + down * n + right + half * TILE, n, to, TILE);
            }
#pragma omp for schedule(static)
            for (int64_t p = 0; p < (r ? panels : 0); p++)
                pack_factor(factor + (first + p * 32) * column, row, column, r, few, factors + p * few * 16);
            int64_t blocks = (m + 31) / 32, parts = parts_of(panels, blocks);
            ALIGNED float sums[2][4 * TILE * TILE];
            Rest rest = {.rows = 0};
            int turn = 0;
#pragma omp for schedule(static)
            for (int64_t job = 0; job < blocks * parts; job++) {
                int64_t top = job / parts * 32, part = job % parts;
                int rows = m - top < 32 ? m - top : 32;
                ALIGNED bf16 copy[multiplier || rows < 32 ? 32 * k : 1], low_copy[r ? 32 * few : 1];
                Left left = {x + top * x_stride, x_stride, k}, right = {low_copy, few, few};
                if (multiplier) load_times(left.rows, x_stride, multiplier + top * k, rows, k, copy);
                else if (rows < 32) load(left.rows, x_stride, rows, k, copy);
                if (multiplier || rows < 32) left = (Left){copy, k, k};
                if (r) load_few(low + top * low_stride, low_stride, rows, r, few, low_copy);
                for (int64_t p = part * panels / parts; p < (part + 1) * panels / parts; p++, turn = !turn) {
                    int64_t begin = first + p * 32, at = top * n + begin;
                    block(left, scratch + p * k * 16, right, factors + p * few * 16, sums[turn], &rest);
                    rest = (Rest){sums[turn], bias ? bias + begin : 0, y + at, slope ? slope + at : 0, n, kind, 0, rows};
                }
            }
            finish_rows(&rest, 2 * TILE);
            leave_tiles(&before);
        }
    }
}
#endif
