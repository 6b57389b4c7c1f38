/* Grouped convolution, any number of channels in a group; one output at a time. */
#include "adr_kernels.h"

void adr_grouped_conv2d_f32(const adr_grouped_conv2d *p, const float *x, const float *w, const float *bias, float *y) {
  const adr_window *s = &p->window;
  const int32_t C = s->channels / p->groups, M = s->out_channels, group_out = M / p->groups;
  for (int32_t oy = 0; oy < s->out_height; ++oy) {
    const int32_t row = oy * s->stride_y - s->pad_top;
    const int32_t ky0 = adr_first_tap(row, s->dilation_y);
    const int32_t ky1 = adr_end_tap(row, s->dilation_y, s->kernel_height, s->height);
    for (int32_t ox = 0; ox < s->out_width; ++ox) {
      const int32_t column = ox * s->stride_x - s->pad_left;
      const int32_t kx0 = adr_first_tap(column, s->dilation_x);
      const int32_t kx1 = adr_end_tap(column, s->dilation_x, s->kernel_width, s->width);
      for (int32_t m = 0; m < M; ++m) {
        float acc = 0.0f;
        for (int32_t ky = ky0; ky < ky1; ++ky) {
          for (int32_t kx = kx0; kx < kx1; ++kx) {
            const int32_t pixel = (row + ky * s->dilation_y) * s->width + column + kx * s->dilation_x;
            const float *from = x + pixel * s->channels + m / group_out * C;
            const float *weights = w + (ky * s->kernel_width + kx) * C * M + m;
            for (int32_t c = 0; c < C; ++c) acc = ADR_FMA(from[c], weights[c * M], acc);
          }
        }
        *y++ = adr_activate(acc + bias[m], &p->activation);
      }
    }
  }
}
