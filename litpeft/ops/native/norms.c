/* LayerNorm and RMSNorm. */
#include "numbers.h"

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
                floats part = read(x + i);
                if (d->share) part = only(kept((uint32_t)i, d), part * d->factor);
                write(part + read(residual + i), sums + i);
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
   `dropped`, if given, gets the gradient by the x that was dropped. */
void norm_backward(const bf16 *dy, const bf16 *x, const bf16 *weight, const float *mean, const float *inverse, bf16 *dx,
        bf16 *dropped, int64_t rows, int64_t width, int64_t centred, const Dropout *d) {
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
            if (dropped) write(only(kept((uint32_t)(begin + i), d), out * d->factor), dropped + begin + i);
        }
    }
}
