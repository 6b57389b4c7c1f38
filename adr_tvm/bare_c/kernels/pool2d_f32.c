/* Pooling; pads are never the maximum. */
#include "adr_kernels.h"

enum { MAXIMUM, MEAN };

static void pool(const adr_pool2d *p, const float *x, float *y, int how) {
  const adr_window *s = &p->window;
  const int32_t C = s->channels;
  for (int32_t oy = 0; oy < s->out_height; ++oy) {
    const int32_t row = oy * s->stride_y - s->pad_top;
    const int32_t ky0 = adr_first_tap(row, s->dilation_y);
    const int32_t ky1 = adr_end_tap(row, s->dilation_y, s->kernel_height, s->height);
    for (int32_t ox = 0; ox < s->out_width; ++ox, y += C) {
      const int32_t column = ox * s->stride_x - s->pad_left;
      const int32_t kx0 = adr_first_tap(column, s->dilation_x);
      const int32_t kx1 = adr_end_tap(column, s->dilation_x, s->kernel_width, s->width);
      const int32_t inside = (ky1 - ky0) * (kx1 - kx0);
      const int32_t counted = p->count_pads ? s->kernel_height * s->kernel_width : inside;
      for (int32_t c = 0; c < C; ++c) y[c] = how == MAXIMUM ? -INFINITY : 0.0f;
      for (int32_t ky = ky0; ky < ky1; ++ky) {
        for (int32_t kx = kx0; kx < kx1; ++kx) {
          const float *from = x + ((row + ky * s->dilation_y) * s->width + column + kx * s->dilation_x) * C;
          if (how == MAXIMUM) {
            for (int32_t c = 0; c < C; ++c) y[c] = from[c] > y[c] ? from[c] : y[c];
          } else {
            for (int32_t c = 0; c < C; ++c) y[c] += from[c];
          }
        }
      }
      if (how == MEAN) {
        for (int32_t c = 0; c < C; ++c) y[c] /= (float)counted;
      }
    }
  }
}

void adr_max_pool2d_f32(const adr_pool2d *p, const float *x, float *y) {
  pool(p, x, y, MAXIMUM);
}

void adr_avg_pool2d_f32(const adr_pool2d *p, const float *x, float *y) {
  pool(p, x, y, MEAN);
}
