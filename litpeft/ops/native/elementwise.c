/* Functions of each number alone. No result depends on the number of threads, here and in the other files. */
#include "numbers.h"

/* y = x / (1 - p) where x is kept, else 0; of dy, the gradient */
void dropout(const bf16 *x, bf16 *y, int64_t count, const Dropout *d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES)
        write(only(kept((uint32_t)i, d), read(x + i) * d->factor), y + i);
}

/* y += x where x is kept, rounded once; the same mask, whose factor is not used */
void add_kept(const bf16 *x, bf16 *y, int64_t count, const Dropout *d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES)
        write(read(y + i) + only(kept((uint32_t)i, d), read(x + i)), y + i);
}

static inline floats sigmoid(floats x) {
    lanes negative = less(x, all(0));
    floats e = exponential(choose(negative, x, -x));
    return choose(negative, e, all(1)) * reciprocal(e + 1.0f);
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

/* y = x Phi(x), and its derivative, which backward multiplies with */
void gelu(const bf16 *x, bf16 *y, bf16 *slope, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        floats derivative;
        write(gelu_of(read(x + i), &derivative), y + i);
        write(derivative, slope + i);
    }
}

/* y = a b */
void multiply(const bf16 *a, const bf16 *b, bf16 *y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) write(read(a + i) * read(b + i), y + i);
}

/* z = gain z, rounded, in place, and y = z + bias; rows of z are `width` numbers, as gain and bias. y may be z. */
void times_gain(bf16 *z, const float *gain, const bf16 *bias, bf16 *y, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j += LANES) {
            floats scaled = read(z + i * width + j) * AT(gain + j);
            write(scaled, z + i * width + j);
            if (bias) write(rounded(scaled) + read(bias + j), y + i * width + j);
        }
}

/* dz = gain dy; sums (width) = the sums of dy y over the rows, in parts of 64 rows, which round less than one sum */
void times_gain_backward(const bf16 *dy, const bf16 *y, const float *gain, bf16 *dz, float *sums, int64_t rows,
        int64_t width) {
    enum { PART = 64, SOME = 128 };  /* columns of which the sums stay in the innermost cache */
#pragma omp parallel for schedule(static)
    for (int64_t left = 0; left < width; left += SOME) {
        int64_t right = left + SOME < width ? left + SOME : width;
        memset(sums + left, 0, sizeof(float) * (right - left));
        for (int64_t first = 0; first < rows; first += PART) {
            float part[SOME] = {0};
            for (int64_t i = first; i < rows && i < first + PART; i++)
                for (int64_t j = left; j < right; j += LANES) {
                    floats d = read(dy + i * width + j);
                    write(d * AT(gain + j), dz + i * width + j);
                    AT(part + j - left) += d * read(y + i * width + j);
                }
            for (int64_t j = left; j < right; j += LANES) AT(sums + j) += AT(part + j - left);
        }
    }
}
