/* Depthwise convolution: four channels of a pixel at a time, in four accumulators. */
#include "adr_kernels.h"

enum { CHANNELS = 4 };

typedef struct {
  int32_t row, column; /* of x, at tap (0, 0) */
  int32_t ky0, ky1, kx0, kx1;
} taps;

/* Sums of four channels from c on. */
static void put_four(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias, float *y,
                     const taps *at) {
  const adr_window *s = &p->window;
  const int32_t C = s->channels, step = s->dilation_x * C;
  float a0 = 0.0f, a1 = 0.0f, a2 = 0.0f, a3 = 0.0f;
  for (int32_t ky = at->ky0; ky < at->ky1; ++ky) {
    const int32_t line = (at->row + ky * s->dilation_y) * s->width;
    const float *from = x + (line + at->column + at->kx0 * s->dilation_x) * C;
    const float *weights = w + (ky * s->kernel_width + at->kx0) * C;
    for (int32_t kx = at->kx0; kx < at->kx1; ++kx, from += step, weights += C) {
      a0 = ADR_FMA(from[0], weights[0], a0);
      a1 = ADR_FMA(from[1], weights[1], a1);
      a2 = ADR_FMA(from[2], weights[2], a2);
      a3 = ADR_FMA(from[3], weights[3], a3);
    }
  }
  y[0] = adr_activate(a0 + bias[0], &p->activation);
  y[1] = adr_activate(a1 + bias[1], &p->activation);
  y[2] = adr_activate(a2 + bias[2], &p->activation);
  y[3] = adr_activate(a3 + bias[3], &p->activation);
}

static void put_one(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias, float *y,
                    const taps *at) {
  const adr_window *s = &p->window;
  float acc = 0.0f;
  for (int32_t ky = at->ky0; ky < at->ky1; ++ky) {
    for (int32_t kx = at->kx0; kx < at->kx1; ++kx) {
      const int32_t pixel = (at->row + ky * s->dilation_y) * s->width + at->column + kx * s->dilation_x;
      acc = ADR_FMA(x[pixel * s->channels], w[(ky * s->kernel_width + kx) * s->channels], acc);
    }
  }
  *y = adr_activate(acc + *bias, &p->activation);
}

void adr_depthwise_conv2d_f32(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias,
                              float *y) {
  const adr_window *s = &p->window;
  const int32_t C = s->channels;
  for (int32_t oy = 0; oy < s->out_height; ++oy) {
    taps at;
    at.row = oy * s->stride_y - s->pad_top;
    at.ky0 = adr_first_tap(at.row, s->dilation_y);
    at.ky1 = adr_end_tap(at.row, s->dilation_y, s->kernel_height, s->height);
    for (int32_t ox = 0; ox < s->out_width; ++ox, y += C) {
      int32_t c = 0;
      at.column = ox * s->stride_x - s->pad_left;
      at.kx0 = adr_first_tap(at.column, s->dilation_x);
      at.kx1 = adr_end_tap(at.column, s->dilation_x, s->kernel_width, s->width);
      for (; c + CHANNELS <= C; c += CHANNELS) put_four(p, x + c, w + c, bias + c, y + c, &at);
      for (; c < C; ++c) put_one(p, x + c, w + c, bias + c, y + c, &at);
    }
  }
}
