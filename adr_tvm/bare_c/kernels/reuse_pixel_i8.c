#include <string.h>

#include "int8_clusters.h"
#include "int8_gather.h"
#include "int8_products.h"
#include "int8_rounding.h"

/* Pixels that taps read, pads included: what ids are kept of. */
typedef struct {
  int32_t height, width;
} adr_grid;

typedef struct {
  const adr_int8_reuse *p;
  const int8_t *x;
  adr_grid grid;
} adr_pixels;

static adr_grid grid_of(const adr_window *window) {
  const adr_grid grid = {
      (window->out_height - 1) * window->stride_y + (window->kernel_height - 1) * window->dilation_y + 1,
      (window->out_width - 1) * window->stride_x + (window->kernel_width - 1) * window->dilation_x + 1};
  return grid;
}

/* Whether a tap reads this row (or column) of the grid. */
static int is_read(int32_t at, int32_t out, int32_t stride, int32_t kernel, int32_t dilation) {
  if (stride == 1 && dilation == 1) return 1;
  for (int32_t k = 0; k < kernel; ++k) {
    const int32_t start = at - k * dilation;
    if (start >= 0 && start % stride == 0 && start / stride < out) return 1;
  }
  return 0;
}

static const int8_t *fetch_pixel(const void *context, int32_t segment, int32_t position, int8_t *buffer) {
  const adr_pixels *pixels = context;
  const adr_int8_reuse *p = pixels->p;
  const adr_window *window = &p->layer.window;
  const int32_t row = position / pixels->grid.width, column = position % pixels->grid.width;
  const int32_t iy = row - window->pad_top, ix = column - window->pad_left;
  if (iy < 0 || ix < 0 || iy >= window->height || ix >= window->width) return NULL;
  if (!is_read(row, window->out_height, window->stride_y, window->kernel_height, window->dilation_y) ||
      !is_read(column, window->out_width, window->stride_x, window->kernel_width, window->dilation_x))
    return NULL;
  const int8_t *vector = pixels->x + (iy * window->width + ix) * window->channels + segment * p->length;
  const int32_t rest = window->channels - segment * p->length, length = rest < p->length ? rest : p->length;
  if (length % 4 == 0 && length == p->length) return vector;
  memset(buffer, 0, (size_t)((p->length + 3) & ~3));
  return memcpy(buffer, vector, (size_t)length);
}

/* Every pixel multiplied: more clusters than pay. */
static void run_dense(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale, int8_t *y,
                      uint32_t *scratch) {
  const adr_window *window = &p->layer.window;
  const int32_t M = window->out_channels, rows = window->out_height * window->out_width;
  const int32_t steps = window->kernel_height * window->kernel_width * p->segments * ((p->length + 3) / 4);
  int32_t sums[4 * 8];
  for (int32_t first = 0; first < rows; first += 4) {
    const int32_t count = rows - first < 4 ? rows - first : 4;
    adr_columns_i8(window, p->length, x, first, count, scratch);
    for (int32_t m = 0; m < M; m += 8) {
      const int32_t channels = M - m < 8 ? M - m : 8, pairs = (channels + 1) / 2;
      adr_products_i8(weight + m * steps, scratch, steps, pairs, sums, 8, 2 * steps);
      adr_finish_rows(&p->layer, rescale, m, channels, count, sums, 8, NULL, y + first * M);
    }
  }
}

/* The products of a segment's clusters with some rows of taps: table [columns][taps][8], eight output channels. */
static void multiply_clusters(const adr_int8_reuse *p, int32_t segment, int32_t first_tap, int32_t taps, int32_t pairs,
                              const uint32_t *centroids, int32_t columns, const int32_t *weight, int32_t *table) {
  const adr_window *window = &p->layer.window;
  const int32_t steps = (p->length + 3) / 4;
  const int32_t pair_words = 2 * steps * p->segments * window->kernel_height * window->kernel_width;
  for (int32_t column = 0; column < columns; column += 4, centroids += 8 * steps)
    for (int32_t tap = 0; tap < taps; ++tap)
      adr_products_i8(weight + 2 * steps * ((first_tap + tap) * p->segments + segment), centroids, steps, pairs,
                      table + 8 * (column * taps + tap), 8 * taps, pair_words);
}

/* Adds a segment's products to sums [rows of the output][8]. */
static void add_segment(const adr_int8_reuse *p, int32_t segment, int32_t pairs, const uint16_t *ids, int32_t clusters,
                        const uint32_t *centroids, const int32_t *weight, int32_t *sums, adr_entry *entries,
                        int32_t *table) {
  const adr_window *window = &p->layer.window;
  const adr_grid grid = grid_of(window);
  const int32_t columns = (clusters + 4) & ~3, KW = window->kernel_width;
  int32_t rows = p->table_words / (8 * columns * KW);
  if (rows < window->kernel_height) rows = 1;
  else rows = window->kernel_height;
  const adr_gather_taps taps = {rows, KW, window->dilation_x, window->dilation_y * grid.width, window->stride_x};
  for (int32_t i = 0; i < grid.height * grid.width; ++i) {
    const int32_t id = ids[i] == ADR_NO_VECTOR ? clusters : ids[i];
    entries[i] = adr_entry_at(table, (uint32_t)(8 * rows * KW * id));
  }
  for (int32_t ky = 0; ky < window->kernel_height; ky += rows) {
    multiply_clusters(p, segment, ky * KW, rows * KW, pairs, centroids, columns, weight, table);
    for (int32_t oy = 0; oy < window->out_height; ++oy)
      adr_gather_i8(&taps, table, entries + (oy * window->stride_y + ky * window->dilation_y) * grid.width,
                    window->out_width, sums + 8 * oy * window->out_width);
  }
}

void adr_reuse_pixel_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                        const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts) {
  const adr_window *window = &p->layer.window;
  const adr_pixels pixels = {p, x, grid_of(window)};
  const int32_t S = p->segments, M = window->out_channels, steps = (p->length + 3) / 4, hash_pairs = (p->bits + 1) / 2;
  const int32_t positions = pixels.grid.height * pixels.grid.width, rows = window->out_height * window->out_width;
  const int32_t pair_words = 2 * steps * S * window->kernel_height * window->kernel_width;
  int32_t *clusters = scratch;
  uint16_t *ids = (uint16_t *)(clusters + S);
  uint32_t *centroids = (uint32_t *)(clusters + S + (S * positions + 1) / 2);
  uint32_t *rest = centroids + 2 * steps * p->centroids;
  int32_t total = 0, columns = 0;
  for (int32_t s = 0; s < S; ++s) {
    clusters[s] = adr_cluster_i8(p, planes + 2 * steps * hash_pairs * s, thresholds + p->bits * s, s, positions,
                                 fetch_pixel, &pixels, p->max_clusters - total, ids + s * positions,
                                 centroids + 2 * steps * columns, rest);
    total += clusters[s];
    columns += (clusters[s] + 4) & ~3;
    if (total > p->max_clusters) break;
  }
  if (counts != NULL) {
    counts[0] = total;
    counts[1] = total <= p->max_clusters;
  }
  if (total > p->max_clusters) {
    run_dense(p, x, weight, rescale, y, scratch);
    return;
  }
  int32_t *sums = (int32_t *)rest, *table = sums + 8 * rows;
  adr_entry *entries = (adr_entry *)(void *)(table + p->table_words);
  for (int32_t m = 0; m < M; m += 8) {
    const int32_t channels = M - m < 8 ? M - m : 8;
    memset(sums, 0, 32 * (size_t)rows);
    columns = 0;
    for (int32_t s = 0; s < S; ++s) {
      add_segment(p, s, (channels + 1) / 2, ids + s * positions, clusters[s], centroids + 2 * steps * columns,
                  weight + m / 2 * pair_words, sums, entries, table);
      columns += (clusters[s] + 4) & ~3;
    }
    adr_finish_rows(&p->layer, rescale, m, channels, rows, sums, 8, NULL, y);
  }
}
