#include "adr_int8_rounding.h"

/* Where a window's taps along one axis start, and which of them lie inside. */
typedef struct {
  int32_t start, first, end;
} adr_span;

static adr_span span_at(int32_t out, int32_t stride, int32_t pad, int32_t dilation, int32_t taps, int32_t size) {
  const int32_t start = out * stride - pad;
  const adr_span span = {start, adr_first_tap(start, dilation), adr_end_tap(start, dilation, taps, size)};
  return span;
}

static adr_span rows_at(const adr_window *p, int32_t oy) {
  return span_at(oy, p->stride_y, p->pad_top, p->dilation_y, p->kernel_height, p->height);
}

static adr_span columns_at(const adr_window *p, int32_t ox) {
  return span_at(ox, p->stride_x, p->pad_left, p->dilation_x, p->kernel_width, p->width);
}

void adr_max_pool_i8(const adr_window *p, const int8_t *x, int8_t *y) {
  const int32_t C = p->channels;
  for (int32_t oy = 0; oy < p->out_height; ++oy) {
    const adr_span rows = rows_at(p, oy);
    for (int32_t ox = 0; ox < p->out_width; ++ox, y += C) {
      const adr_span columns = columns_at(p, ox);
      for (int32_t c = 0; c < C; ++c) {
        int32_t largest = -128;
        for (int32_t ky = rows.first; ky < rows.end; ++ky) {
          const int8_t *row = x + (rows.start + ky * p->dilation_y) * p->width * C + c;
          for (int32_t kx = columns.first; kx < columns.end; ++kx) {
            const int32_t value = row[(columns.start + kx * p->dilation_x) * C];
            largest = value > largest ? value : largest;
          }
        }
        y[c] = (int8_t)largest;
      }
    }
  }
}

void adr_average_pool_i8(const adr_int8_average *average, const int8_t *x, int8_t *y) {
  const adr_window *p = &average->window;
  const int32_t C = p->channels;
  for (int32_t oy = 0; oy < p->out_height; ++oy) {
    const adr_span rows = rows_at(p, oy);
    for (int32_t ox = 0; ox < p->out_width; ++ox, y += C) {
      const adr_span columns = columns_at(p, ox);
      for (int32_t c = 0; c < C; ++c) {
        int32_t sum = 0;
        for (int32_t ky = rows.first; ky < rows.end; ++ky) {
          const int8_t *row = x + (rows.start + ky * p->dilation_y) * p->width * C + c;
          for (int32_t kx = columns.first; kx < columns.end; ++kx) sum += row[(columns.start + kx * p->dilation_x) * C];
        }
        y[c] = (int8_t)adr_limit(adr_rescale(sum, average->multiplier, average->shift), average->low, average->high);
      }
    }
  }
}
