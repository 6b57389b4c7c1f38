/* Integer kernels of a network in bare C: C99, no heap, no state. Images are channels last, one at a time. Every machine
 * gives the same bytes; those with the DSP extension (Cortex-M4, M7, M33) do two multiply-adds an instruction.
 *
 * Right shifts of negative integers must round down, as they do with every known compiler. Scratch is aligned to 4. */
#ifndef ADR_INT8_H
#define ADR_INT8_H

#include "adr_kernels.h"

/* From int32 sums to int8: rescale[channel] has ``rescale_words`` words,
 *   bias, multiplier, shift: (sum + bias) * multiplier / 2^(32 + shift), shift 1 to 30;
 *   and with a residual also multiplier, shift: residual * multiplier / 2^shift is added to the sum, |multiplier| < 2^23.
 * Each is rounded to nearest, ties to even; the result is limited to [low, high]. */
typedef struct {
  adr_window window;
  int32_t low, high;
  int32_t rescale_words; /* 3; 5 with a residual */
} adr_int8_layer;

/* Weights: int8 [M][K], packed as words [ceil(M / 2)][ceil(K / 4)][2]: four entries of K a word, the first in the lowest
 * byte, with zeros behind the last. K is in the order (rows, columns, channels). */

/* conv2d_i8.c: residual may be NULL, and y may be residual.
 * scratch: words, 8 * ceil(K / 4) + 8 * ceil(M / 2). */
void adr_conv2d_i8(const adr_int8_layer *p, const int8_t *x, const int8_t *residual, const int32_t *weight,
                   const int32_t *rescale, int8_t *y, void *scratch);

/* depthwise_i8.c: weight [KH][KW][C]. */
void adr_depthwise_i8(const adr_int8_layer *p, const int8_t *x, const int8_t *weight, const int32_t *rescale, int8_t *y);

/* dense_i8.c: a convolution of one pixel. scratch: words, 2 * ceil(C / 4) + M rounded up to 2. */
void adr_dense_i8(const adr_int8_layer *p, const int8_t *x, const int32_t *weight, const int32_t *rescale, int8_t *y,
                  void *scratch);

/* The same, results in fp32: (float)(sum + bias) * scale. */
typedef struct {
  int32_t channels, out_channels;
} adr_int8_logits;

void adr_logits_i8(const adr_int8_logits *p, const int8_t *x, const int32_t *weight, const int32_t *bias,
                   const float *scale, float *y, void *scratch);

/* pool_i8.c: the padding takes no part in a maximum, and counts as zeros in a sum. */
void adr_max_pool_i8(const adr_window *p, const int8_t *x, int8_t *y);
/* Sums, rescaled by multiplier / 2^(32 + shift). */
typedef struct {
  adr_window window;
  int32_t multiplier, shift, low, high;
} adr_int8_average;

void adr_average_pool_i8(const adr_int8_average *p, const int8_t *x, int8_t *y);

/* elementwise_i8.c */
typedef struct {
  int32_t size;
  int32_t multiplier_a, multiplier_b, shift; /* (a * multiplier_a + b * multiplier_b) / 2^shift; 1 to 30; below 2^22 */
  int32_t low, high;
} adr_int8_add;

void adr_add_i8(const adr_int8_add *p, const int8_t *a, const int8_t *b, int8_t *y);

typedef struct {
  int32_t size;
  float factor;
} adr_int8_scale;

/* x * factor, to nearest even, within [-128, 127]; NaN gives 0. */
void adr_quantise_i8(const adr_int8_scale *p, const float *x, int8_t *y);
void adr_dequantise_i8(const adr_int8_scale *p, const int8_t *x, float *y);

/* copy_i8.c: pads are zeros. */
void adr_copy_i8(const adr_copy *p, const int8_t *x, int8_t *y);
void adr_pad_i8(const adr_pad *p, const int8_t *x, int8_t *y);

/* Layers that reuse products of similar vectors. */
typedef struct {
  adr_int8_layer layer;
  int32_t segments, length; /* S vectors of L entries make up a pixel, or a row */
  int32_t bits;             /* H; 0: only vectors whose entries are all equal share a cluster */
  int32_t capacity;         /* clusters that a segment can have: min(2^H, vectors) + 1; with bits 0: vectors */
  int32_t slots;            /* of its hash table: a power of two, at least twice the capacity */
  int32_t max_clusters;     /* guard: an image with more runs dense */
  int32_t centroids;        /* room for them: of all segments, the number in each rounded up to 4 */
  int32_t table_shift;      /* products are kept as int16 in units of 2^table_shift, to nearest; -1: as int32 */
  int32_t table_words;      /* room for products: at least 8 * KW * (KH + capacity rounded up to 4) */
} adr_int8_reuse;

/* reuse_pixel_i8.c
 *
 * weight: K in the order (rows, columns, segments, L rounded up to 4). planes: of each segment [H][L] packed as weights
 * are; thresholds [S][H]. counts may be NULL: clusters (those seen, where the image runs dense), and 1 if reused. */
void adr_reuse_pixel_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                        const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts);

/* reuse_segment_i8.c: the same, K in the order (segments, L rounded up to 4) of im2col rows in the order (channels, rows,
 * columns). table_words: at least 40 * (1 + capacity rounded up to 4). */
void adr_reuse_segment_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                          const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts);

/* reuse_row_i8.c: whole rows that are equal, found by comparing them: the bytes of adr_conv2d_i8. weight as there; planes
 * and thresholds are NULL. */
void adr_reuse_row_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                      const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts);

#endif
