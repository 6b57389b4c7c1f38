/* Dense convolution: four pixels of a row times four output channels at a time, in sixteen accumulators.
 *
 * Each output is one chain of multiply-adds over (KH, KW, C) from 0 on, however many pixels are done together. */
#include "adr_kernels.h"

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { CHANNELS = 4, PIXELS = 4 };

#if defined(__aarch64__) && defined(__ARM_NEON)

void adr_add_pixel_f32(const float *x, const float *w, int32_t n, float *acc) {
  float32x4_t a = vld1q_f32(acc);
  for (int32_t k = 0; k < n; ++k, w += CHANNELS) a = vfmaq_n_f32(a, vld1q_f32(w), x[k]);
  vst1q_f32(acc, a);
}

void adr_add_pixels_f32(const float *x, int32_t step, const float *w, int32_t n, float *acc) {
  const float *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
  float32x4_t a = vld1q_f32(acc), b = vld1q_f32(acc + 4), c = vld1q_f32(acc + 8), d = vld1q_f32(acc + 12);
  for (int32_t k = 0; k < n; ++k, w += CHANNELS) {
    const float32x4_t four = vld1q_f32(w);
    a = vfmaq_n_f32(a, four, x[k]);
    b = vfmaq_n_f32(b, four, x1[k]);
    c = vfmaq_n_f32(c, four, x2[k]);
    d = vfmaq_n_f32(d, four, x3[k]);
  }
  vst1q_f32(acc, a);
  vst1q_f32(acc + 4, b);
  vst1q_f32(acc + 8, c);
  vst1q_f32(acc + 12, d);
}

#else

void adr_add_pixel_f32(const float *x, const float *w, int32_t n, float *acc) {
  float a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
  for (int32_t k = 0; k < n; ++k, w += CHANNELS) {
    const float v = x[k];
    a0 = ADR_FMA(v, w[0], a0);
    a1 = ADR_FMA(v, w[1], a1);
    a2 = ADR_FMA(v, w[2], a2);
    a3 = ADR_FMA(v, w[3], a3);
  }
  acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

void adr_add_pixels_f32(const float *x, int32_t step, const float *w, int32_t n, float *acc) {
  const float *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
  float a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
  float b0 = acc[4], b1 = acc[5], b2 = acc[6], b3 = acc[7];
  float c0 = acc[8], c1 = acc[9], c2 = acc[10], c3 = acc[11];
  float d0 = acc[12], d1 = acc[13], d2 = acc[14], d3 = acc[15];
  for (int32_t k = 0; k < n; ++k, w += CHANNELS) {
    const float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
    const float a = x[k], b = x1[k], c = x2[k], d = x3[k];
    a0 = ADR_FMA(a, w0, a0), a1 = ADR_FMA(a, w1, a1), a2 = ADR_FMA(a, w2, a2), a3 = ADR_FMA(a, w3, a3);
    b0 = ADR_FMA(b, w0, b0), b1 = ADR_FMA(b, w1, b1), b2 = ADR_FMA(b, w2, b2), b3 = ADR_FMA(b, w3, b3);
    c0 = ADR_FMA(c, w0, c0), c1 = ADR_FMA(c, w1, c1), c2 = ADR_FMA(c, w2, c2), c3 = ADR_FMA(c, w3, c3);
    d0 = ADR_FMA(d, w0, d0), d1 = ADR_FMA(d, w1, d1), d2 = ADR_FMA(d, w2, d2), d3 = ADR_FMA(d, w3, d3);
  }
  acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
  acc[4] = b0, acc[5] = b1, acc[6] = b2, acc[7] = b3;
  acc[8] = c0, acc[9] = c1, acc[10] = c2, acc[11] = c3;
  acc[12] = d0, acc[13] = d1, acc[14] = d2, acc[15] = d3;
}

#endif

/* Sums of 1 or 4 pixels from (row, column) of x on; taps of a row without dilation are one run. */
static void add_taps(const adr_window *s, const float *x, const float *w, int32_t row, int32_t column, int32_t kx0,
                     int32_t kx1, int32_t pixels, float *acc) {
  const int32_t C = s->channels;
  const int32_t ky1 = adr_end_tap(row, s->dilation_y, s->kernel_height, s->height);
  const int32_t taps = s->dilation_x == 1 ? kx1 - kx0 : 1;
  for (int32_t ky = adr_first_tap(row, s->dilation_y); ky < ky1; ++ky) {
    const float *line = x + (row + ky * s->dilation_y) * s->width * C;
    for (int32_t kx = kx0; kx < kx1; kx += taps) {
      const float *from = line + (column + kx * s->dilation_x) * C;
      const float *weights = w + (ky * s->kernel_width + kx) * C * CHANNELS;
      if (pixels == PIXELS)
        adr_add_pixels_f32(from, s->stride_x * C, weights, taps * C, acc);
      else
        adr_add_pixel_f32(from, weights, taps * C, acc);
    }
  }
}

/* Output pixels from out_column on, all channels. */
static void put_pixels(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                       float *y, int32_t row, int32_t column, int32_t kx0, int32_t kx1, int32_t pixels) {
  const adr_window *s = &p->window;
  const int32_t M = s->out_channels, K = s->kernel_height * s->kernel_width * s->channels;
  for (int32_t m = 0; m < M; m += CHANNELS, w += K * CHANNELS) {
    float acc[PIXELS * CHANNELS] = {0.0f};
    const int32_t channels = M - m < CHANNELS ? M - m : CHANNELS;
    add_taps(s, x, w, row, column, kx0, kx1, pixels, acc);
    for (int32_t i = 0; i < pixels; ++i) {
      for (int32_t j = 0; j < channels; ++j) {
        const int32_t at = i * M + m + j;
        const float sum = acc[i * CHANNELS + j] + bias[m + j];
        y[at] = adr_activate(residual == NULL ? sum : sum + residual[at], &p->activation);
      }
    }
  }
}

void adr_conv2d_pixel_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                          float *y, int32_t out_row, int32_t out_column) {
  const adr_window *s = &p->window;
  const int32_t row = out_row * s->stride_y - s->pad_top, column = out_column * s->stride_x - s->pad_left;
  const int32_t kx1 = adr_end_tap(column, s->dilation_x, s->kernel_width, s->width);
  put_pixels(p, x, residual, w, bias, y, row, column, adr_first_tap(column, s->dilation_x), kx1, 1);
}

void adr_conv2d_f32(const adr_conv2d *p, const float *x, const float *residual, const float *w, const float *bias,
                    float *y) {
  const adr_window *s = &p->window;
  const int32_t M = s->out_channels, reach = s->dilation_x * (s->kernel_width - 1);
  for (int32_t oy = 0; oy < s->out_height; ++oy) {
    int32_t ox = 0;
    while (ox < s->out_width) {
      const int32_t at = (oy * s->out_width + ox) * M;
      const int32_t column = ox * s->stride_x - s->pad_left, last = column + (PIXELS - 1) * s->stride_x;
      const float *added = residual == NULL ? NULL : residual + at;
      if (column >= 0 && last + reach < s->width && ox + PIXELS <= s->out_width) {
        put_pixels(p, x, added, w, bias, y + at, oy * s->stride_y - s->pad_top, column, 0, s->kernel_width, PIXELS);
        ox += PIXELS;
      } else {
        adr_conv2d_pixel_f32(p, x, added, w, bias, y + at, oy, ox);
        ox += 1;
      }
    }
  }
}
