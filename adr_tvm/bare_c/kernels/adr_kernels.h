/* Kernels of a network in bare C: C99, no heap, no state. Images are channels last, one at a time.
 *
 * Every kernel takes its parameters, then inputs, constants and output, then scratch memory where it needs any. Pointers
 * must be aligned to 4 bytes. An output overlaps no input, except where a comment allows it. */
#ifndef ADR_KERNELS_H
#define ADR_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* a * b + c: with one rounding where the processor does so in one instruction. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define ADR_FMA(a, b, c) fmaf((a), (b), (c))
#else
#define ADR_FMA(a, b, c) ((a) * (b) + (c))
#endif

enum { ADR_LINEAR = 0, ADR_CLIP = 1, ADR_LEAKY_RELU = 2 };

typedef struct {
  int32_t kind;
  float low, high; /* limits of ADR_CLIP */
  float slope;     /* factor of ADR_LEAKY_RELU below 0 */
} adr_activation;

static inline float adr_activate(float v, const adr_activation *activation) {
  if (activation->kind == ADR_CLIP) return v < activation->low ? activation->low : v > activation->high ? activation->high : v;
  if (activation->kind == ADR_LEAKY_RELU) return v > 0.0f ? v : v * activation->slope;
  return v;
}

/* A window that slides over x[height][width][channels]; pads count as zeros and are not in memory. */
typedef struct {
  int32_t height, width, channels;
  int32_t out_height, out_width, out_channels;
  int32_t kernel_height, kernel_width;
  int32_t stride_y, stride_x;
  int32_t dilation_y, dilation_x;
  int32_t pad_top, pad_left;
} adr_window;

/* The first tap of a window at `start` that lies inside, and the first after it that does not. */
static inline int32_t adr_first_tap(int32_t start, int32_t dilation) {
  return start >= 0 ? 0 : (dilation - 1 - start) / dilation;
}

static inline int32_t adr_end_tap(int32_t start, int32_t dilation, int32_t taps, int32_t size) {
  const int32_t end = start >= size ? 0 : (size - start + dilation - 1) / dilation;
  return end < taps ? end : taps;
}

/* conv2d_f32.c
 *
 * y = activation(convolution of x + bias [+ residual]). Weights are packed [ceil(M / 4)][KH * KW * C][4], zeros behind
 * the last output channel. residual may be NULL, and y may be residual. */
typedef struct {
  adr_window window;
  adr_activation activation;
} adr_conv2d;

void adr_conv2d_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias, float *y);

/* One output pixel of it, y[M]. */
void adr_conv2d_pixel_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                          float *y, int32_t out_row, int32_t out_column);

#endif
