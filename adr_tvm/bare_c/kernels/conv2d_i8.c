#include "adr_int8_products.h"
#include "adr_int8_rounding.h"

void adr_conv2d_i8(const adr_int8_layer *p, const int8_t *x, const int8_t *residual, const int32_t *weight,
                   const int32_t *rescale, int8_t *y, void *scratch) {
  const adr_window *window = &p->window;
  const int32_t K = window->kernel_height * window->kernel_width * window->channels, steps = (K + 3) / 4;
  const int32_t M = window->out_channels, pairs = (M + 1) / 2, rows = window->out_height * window->out_width;
  uint32_t *columns = scratch;
  int32_t *sums = (int32_t *)scratch + 8 * steps;
  for (int32_t first = 0; first < rows; first += 4) {
    const int32_t count = rows - first < 4 ? rows - first : 4;
    adr_columns_i8(window, window->channels, x, first, count, columns);
    adr_products_i8(weight, columns, steps, pairs, sums, 2 * pairs, 2 * steps);
    adr_finish_rows(p, rescale, 0, M, count, sums, 2 * pairs, 1, residual == NULL ? NULL : residual + first * M,
                    y + first * M);
  }
}
