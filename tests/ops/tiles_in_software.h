/* The instructions of AMX that the C functions use, in plain C, so that their code for tiles runs on other processors. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static __thread uint8_t tiles_in_software[8][16][64];

static inline float number_in_software(const uint8_t *from) {
    uint16_t half;
    uint32_t bits;
    float number;
    memcpy(&half, from, 2);
    bits = (uint32_t)half << 16;
    memcpy(&number, &bits, 4);
    return number;
}

static inline void copy_in_software(int tile, void *memory, int64_t stride, int load) {
    for (int row = 0; row < 16; row++) {
        uint8_t *at = (uint8_t *)memory + row * stride;
        memcpy(load ? tiles_in_software[tile][row] : at, load ? at : tiles_in_software[tile][row], 64);
    }
}

static inline void product_in_software(int to, int left, int right) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float sum;
            memcpy(&sum, &tiles_in_software[to][m][4 * n], 4);
            for (int k = 0; k < 32; k++)
                sum += number_in_software(&tiles_in_software[left][m][2 * k]) *
                    number_in_software(&tiles_in_software[right][k / 2][4 * n + 2 * (k % 2)]);
            memcpy(&tiles_in_software[to][m][4 * n], &sum, 4);
        }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#define _tile_zero(tile) memset(tiles_in_software[tile], 0, sizeof tiles_in_software[tile])
#define _tile_loadd(tile, memory, stride) copy_in_software(tile, (void *)(memory), stride, 1)
#define _tile_stream_loadd _tile_loadd
#define _tile_stored(tile, memory, stride) copy_in_software(tile, (void *)(memory), stride, 0)
#define _tile_dpbf16ps(to, left, right) product_in_software(to, left, right)
#define _tile_loadconfig(from) ((void)(from))
#define _tile_storeconfig(to) memset(to, 0, 64)
#define _tile_release() ((void)0)
