/* Kernels of a network in bare C: C99, no heap, no state. Images are channels last, one at a time.
 *
 * Every kernel takes its parameters, then inputs, constants and output, then scratch memory where it needs any.
 * Pointers must be aligned to 4 bytes. An output overlaps no input, except where a comment allows it. */
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
  if (activation->kind == ADR_CLIP) {
    if (v < activation->low) return activation->low;
    return v > activation->high ? activation->high : v;
  }
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

void adr_conv2d_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                    float *y);

/* One output pixel of it, y[M]. */
void adr_conv2d_pixel_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                          float *y, int32_t out_row, int32_t out_column);

/* grouped_conv2d_f32.c
 *
 * y = activation(grouped convolution of x + bias). The window is that of all groups: channels and out_channels are of
 * the whole image. Weights [KH][KW][channels / groups][out_channels]. */
typedef struct {
  adr_window window;
  int32_t groups;
  adr_activation activation;
} adr_grouped_conv2d;

void adr_grouped_conv2d_f32(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias, float *y);

/* depthwise_conv2d_f32.c: the same with one channel in a group, in and out. */
void adr_depthwise_conv2d_f32(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias, float *y);

/* pool2d_f32.c: maximum, or mean of what lies inside (count_pads: of the whole window, pads as 0). */
typedef struct {
  adr_window window;
  int32_t count_pads;
} adr_pool2d;

void adr_max_pool2d_f32(const adr_pool2d *p, const float *x, float *y);
void adr_avg_pool2d_f32(const adr_pool2d *p, const float *x, float *y);

/* mean_f32.c: y[channels], the mean of x[rows][channels] over the rows. */
typedef struct {
  int32_t rows, channels;
} adr_mean;

void adr_mean_f32(const adr_mean *p, const float *x, float *y);

/* lrn_f32.c: y = x * (bias + factor * sum of x^2 from channel c - before to c + after)^-beta on x[pixels][channels]. */
typedef struct {
  int32_t pixels, channels, before, after;
  float factor, beta, bias;
} adr_lrn;

void adr_lrn_f32(const adr_lrn *p, const float *x, float *y);

/* softmax_f32.c: over the last axis of x[rows][size]; y may be x. */
typedef struct {
  int32_t rows, size;
} adr_softmax;

void adr_softmax_f32(const adr_softmax *p, const float *x, float *y);
void adr_log_softmax_f32(const adr_softmax *p, const float *x, float *y);

/* unary_f32.c: a function of each entry; y may be x. */
enum { ADR_ACTIVATION = 0, ADR_SIGMOID = 1, ADR_TANH = 2, ADR_EXP = 3, ADR_SQRT = 4, ADR_ABS = 5 };

typedef struct {
  int32_t size, function;
  adr_activation activation; /* of ADR_ACTIVATION */
} adr_unary;

void adr_unary_f32(const adr_unary *p, const float *x, float *y);

/* binary_f32.c: y[i] = f(a[i], b[i % period]), or f(b, a) if swapped; y may be a, or b if period is size. */
enum { ADR_ADD = 0, ADR_SUBTRACT = 1, ADR_MULTIPLY = 2, ADR_DIVIDE = 3, ADR_MAXIMUM = 4, ADR_MINIMUM = 5 };

typedef struct {
  int32_t size, period, function, swapped;
} adr_binary;

void adr_binary_f32(const adr_binary *p, const float *a, const float *b, float *y);

/* copy_f32.c: y[y_start + sum of i_d * y_strides[d]] = x[x_start + sum of i_d * x_strides[d]] for all i below shape. */
enum { ADR_MAX_RANK = 6 };

typedef struct {
  int32_t rank, shape[ADR_MAX_RANK];
  int32_t x_start, x_strides[ADR_MAX_RANK];
  int32_t y_start, y_strides[ADR_MAX_RANK];
} adr_copy;

/* From the entries at `from` in x and `to` in y, of this index, to those of the next index of all axes but the last, as
 * an odometer goes; 0 behind the last. */
static inline int32_t adr_copy_next(const adr_copy *p, int32_t *index, int32_t *from, int32_t *to) {
  for (int32_t axis = p->rank - 2; axis >= 0; --axis) {
    *from += p->x_strides[axis];
    *to += p->y_strides[axis];
    if (++index[axis] < p->shape[axis]) return 1;
    *from -= p->shape[axis] * p->x_strides[axis];
    *to -= p->shape[axis] * p->y_strides[axis];
    index[axis] = 0;
  }
  return 0;
}

typedef struct {
  adr_copy copy;
  int32_t size; /* of y */
  float value;  /* of what is not copied */
} adr_pad;

void adr_copy_f32(const adr_copy *p, const float *x, float *y);
void adr_pad_f32(const adr_pad *p, const float *x, float *y);

/* reuse_conv2d_f32.c
 *
 * The convolution with products of similar vectors computed once. A vector is `length` entries of an input pixel
 * (ADR_PIXEL) or of an im2col row in the order (C, KH, KW) (ADR_SEGMENT); of ADR_ROW a whole row, in the order
 * (KH, KW, C). Vectors with equal keys form a cluster, which is multiplied by its mean. Planes are packed
 * [segments][ceil(bits / 4)][length][4], thresholds [segments][ceil(bits / 4)][4]. */
enum { ADR_PIXEL = 0, ADR_SEGMENT = 1, ADR_ROW = 2 };

typedef struct {
  adr_conv2d conv;
  int32_t granularity, length, segments;
  int32_t vectors;      /* in a segment: input pixels, or output pixels; fewer than 32768 */
  int32_t bits;         /* of a key; 0: vectors are equal only if all their bits are */
  int32_t capacity;     /* clusters in a segment, at most */
  int32_t slot_bits;    /* the hash table has 2^slot_bits places */
  int32_t max_clusters; /* of all segments, above which the layer runs dense; -1: never */
  int32_t gain;         /* whether products are scaled by <x, c> / <c, c> */
} adr_reuse;

/* counts[2]: clusters, and 1 if they were used, 0 if the layer ran dense; may be NULL. Scratch aligned to 4 bytes. */
void adr_reuse_conv2d_f32(const adr_reuse *p, const float *x, const float *w, const float *bias, const float *planes,
                          const float *thresholds, float *y, void *scratch, int32_t *counts);

/* acc[channel] += sum over k of x[k] * w[k][channel], for 4 channels; and for four x, `step` entries apart,
 * acc[4][4]. */
void adr_add_pixel_f32(const float *x, const float *w, int32_t n, float *acc);
void adr_add_pixels_f32(const float *x, int32_t step, const float *w, int32_t n, float *acc);

#endif
