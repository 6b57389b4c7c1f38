#include <string.h>

#include "adr_int8_pairs.h"
#include "adr_int8_products.h"
#include "adr_int8_rounding.h"

/* The im2col row of an output position, in the order (rows, columns, channels), K rounded up to 4 entries. */
static void copy_row(const adr_window *window, const int8_t *x, int32_t position, int8_t *row) {
  const int32_t C = window->channels, K = window->kernel_height * window->kernel_width * C;
  const int32_t top = position / window->out_width * window->stride_y - window->pad_top;
  const int32_t left = position % window->out_width * window->stride_x - window->pad_left;
  memset(row + (K & ~3), 0, (size_t)(-K & 3) + (size_t)(K & 3));
  for (int32_t ky = 0; ky < window->kernel_height; ++ky) {
    const int32_t iy = top + ky * window->dilation_y;
    for (int32_t kx = 0; kx < window->kernel_width; ++kx, row += C) {
      const int32_t ix = left + kx * window->dilation_x;
      if (iy < 0 || iy >= window->height || ix < 0 || ix >= window->width) memset(row, 0, (size_t)C);
      else memcpy(row, x + (iy * window->width + ix) * C, (size_t)C);
    }
  }
}

/* Multiplies up to four columns, of the output positions ``at``. */
static void multiply(const adr_int8_reuse *p, const uint32_t *columns, const int32_t *at, int32_t count,
                     const int32_t *weight, const int32_t *rescale, int8_t *y, int32_t *sums) {
  const adr_window *window = &p->layer.window;
  const int32_t K = window->kernel_height * window->kernel_width * window->channels, steps = (K + 3) / 4;
  const int32_t M = window->out_channels, pairs = (M + 1) / 2;
  adr_products_i8(weight, columns, steps, pairs, sums, 2 * pairs, 2 * steps);
  for (int32_t c = 0; c < count; ++c)
    adr_finish_rows(&p->layer, rescale, 0, M, 1, sums + 2 * pairs * c, 2 * pairs, 1, NULL, y + at[c] * M);
}

void adr_reuse_row_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                      const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts) {
  const adr_window *window = &p->layer.window;
  const int32_t K = window->kernel_height * window->kernel_width * window->channels, steps = (K + 3) / 4;
  const int32_t M = window->out_channels, rows = window->out_height * window->out_width, pairs = (M + 1) / 2;
  const uint32_t mask = (uint32_t)p->slots - 1;
  uint32_t *keys = scratch, *columns = keys + rows;
  int32_t *sums = (int32_t *)(columns + 8 * steps), at[4] = {0, 0, 0, 0}, clusters = 0, waiting = 0;
  int8_t *row = (int8_t *)(sums + 8 * pairs), *other = row + 4 * steps;
  uint16_t *first = (uint16_t *)(keys + rows + 8 * steps + 8 * pairs + 2 * steps), *slots = first + rows;
  (void)planes, (void)thresholds;
  memset(slots, 0, 2 * (size_t)p->slots);
  for (int32_t position = 0; position < rows; ++position) {
    copy_row(window, x, position, row);
    first[position] = (uint16_t)position;
    if (clusters <= p->max_clusters) {
      const uint32_t key = adr_key_of_data(row, steps);
      uint32_t slot = (key * 0x9E3779B1u >> 12) & mask;
      for (; slots[slot] != 0; slot = (slot + 1) & mask) {
        const int32_t seen = slots[slot] - 1;
        if (keys[seen] != key) continue;
        copy_row(window, x, seen, other);
        if (memcmp(row, other, (size_t)K) == 0) {
          first[position] = (uint16_t)seen;
          break;
        }
      }
      keys[position] = key;
      if (first[position] == position) {
        ++clusters;
        slots[slot] = (uint16_t)(position + 1);
      }
    }
    if (first[position] != position) continue;
    adr_widen_i8(row, steps, columns + waiting);
    at[waiting++] = position;
    if (waiting == 4) {
      multiply(p, columns, at, waiting, weight, rescale, y, sums);
      waiting = 0;
    }
  }
  if (waiting > 0) multiply(p, columns, at, waiting, weight, rescale, y, sums);
  for (int32_t position = 0; position < rows; ++position)
    if (first[position] != position) memcpy(y + position * M, y + first[position] * M, (size_t)M);
  if (counts != NULL) {
    counts[0] = clusters;
    counts[1] = clusters <= p->max_clusters;
  }
}
