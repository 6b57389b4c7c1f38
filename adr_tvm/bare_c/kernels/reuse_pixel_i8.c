#include <string.h>

#include "adr_int8_clusters.h"
#include "adr_int8_gather.h"
#include "adr_int8_products.h"
#include "adr_int8_rounding.h"

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
      adr_finish_rows(&p->layer, rescale, m, channels, count, sums, 8, 1, NULL, y + first * M);
    }
  }
}

/* What adding up a block of output channels needs. */
typedef struct {
  const adr_int8_reuse *p;
  const int32_t *weight;  /* of its first channel */
  int32_t pairs;          /* of channels */
  int32_t *sums;          /* [rows of the output][channels of a table's row] */
  adr_entry *entries;     /* of the grid */
  uint32_t *table;        /* rows of zeros for a pixel without a vector, then those of clusters */
} adr_block;

/* The products of a segment's clusters with some taps. */
static void multiply_clusters(const adr_block *block, int32_t segment, int32_t first_tap, int32_t taps,
                              const uint32_t *centroids, int32_t clusters) {
  const adr_int8_reuse *p = block->p;
  const adr_window *window = &p->layer.window;
  const int32_t steps = (p->length + 3) / 4, stride = ADR_ROW_WORDS * taps;
  const int32_t pair_words = 2 * steps * p->segments * window->kernel_height * window->kernel_width;
  uint32_t *rows = block->table + stride;
  for (int32_t column = 0; column < clusters; column += 4, centroids += ADR_STEP_WORDS * steps, rows += 4 * stride) {
    for (int32_t tap = 0; tap < taps; ++tap) {
      const int32_t *weight = block->weight + 2 * steps * ((first_tap + tap) * p->segments + segment);
      uint32_t *products = rows + ADR_ROW_WORDS * tap;
      if (p->table_shift < 0)
        adr_products_i8(weight, centroids, steps, block->pairs, (int32_t *)products, stride, pair_words);
      else
        adr_small_products_i8(weight, centroids, steps, block->pairs, products, stride, pair_words, p->table_shift);
    }
  }
}

static void add_segment(const adr_block *block, int32_t segment, const uint16_t *ids, int32_t clusters,
                        const uint32_t *centroids) {
  const adr_int8_reuse *p = block->p;
  const adr_window *window = &p->layer.window;
  const adr_grid grid = grid_of(window);
  const int32_t KH = window->kernel_height, KW = window->kernel_width;
  const int32_t fits = p->table_words >= ADR_ROW_WORDS * KH * KW * (1 + ((clusters + 3) & ~3));
  const int32_t rows = fits ? KH : 1, stride = ADR_ROW_WORDS * rows * KW;
  const adr_gather_taps taps = {rows, KW, window->dilation_x, window->dilation_y * grid.width, window->stride_x};
  for (int32_t i = 0; i < grid.height * grid.width; ++i)
    block->entries[i] = adr_entry_at(block->table, ids[i] == ADR_NO_VECTOR ? 0 : stride * (1 + ids[i]));
  memset(block->table, 0, 4 * (size_t)stride);
  for (int32_t ky = 0; ky < KH; ky += rows) {
    multiply_clusters(block, segment, ky * KW, rows * KW, centroids, clusters);
    for (int32_t oy = 0; oy < window->out_height; ++oy) {
      const adr_entry *entries = block->entries + (oy * window->stride_y + ky * window->dilation_y) * grid.width;
      if (p->table_shift < 0)
        adr_gather_i8(&taps, block->table, entries, window->out_width, block->sums + 8 * oy * window->out_width);
      else
        adr_gather_small_i8(&taps, block->table, entries, window->out_width, block->sums + 16 * oy * window->out_width);
    }
  }
}

void adr_reuse_pixel_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                        const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts) {
  const adr_window *window = &p->layer.window;
  const adr_pixels pixels = {p, x, grid_of(window)};
  const int32_t S = p->segments, M = window->out_channels, steps = (p->length + 3) / 4, hash_pairs = (p->bits + 1) / 2;
  const int32_t positions = pixels.grid.height * pixels.grid.width, rows = window->out_height * window->out_width;
  const int32_t channels = p->table_shift < 0 ? 8 : 16, unit = p->table_shift < 0 ? 1 : (int32_t)1 << p->table_shift;
  const int32_t pair_words = 2 * steps * S * window->kernel_height * window->kernel_width;
  int32_t *clusters = scratch;
  uint16_t *ids = (uint16_t *)(clusters + S);
  uint32_t *centroids = (uint32_t *)(clusters + S + (S * positions + 1) / 2);
  uint32_t *rest = centroids + 2 * steps * p->centroids;
  int32_t total = 0, columns = 0;
  for (int32_t s = 0; s < S && total <= p->max_clusters; ++s) {
    const int32_t *own_planes = planes == NULL ? NULL : planes + 2 * steps * hash_pairs * s;
    const int32_t *own_thresholds = thresholds == NULL ? NULL : thresholds + p->bits * s;
    clusters[s] = adr_cluster_i8(p, own_planes, own_thresholds, s, positions, fetch_pixel, &pixels,
                                 p->max_clusters - total, ids + s * positions, centroids + 2 * steps * columns, rest);
    total += clusters[s];
    columns += (clusters[s] + 3) & ~3;
  }
  if (counts != NULL) {
    counts[0] = total;
    counts[1] = total <= p->max_clusters;
  }
  if (total > p->max_clusters) {
    run_dense(p, x, weight, rescale, y, scratch);
    return;
  }
  adr_block block = {p, weight, 0, (int32_t *)rest, NULL, rest + channels * rows};
  block.entries = (adr_entry *)(void *)(block.table + p->table_words);
  for (int32_t m = 0; m < M; m += channels) {
    const int32_t count = M - m < channels ? M - m : channels;
    block.weight = weight + m / 2 * pair_words;
    block.pairs = (count + 1) / 2;
    memset(block.sums, 0, 4 * (size_t)(channels * rows));
    columns = 0;
    for (int32_t s = 0; s < S; ++s) {
      add_segment(&block, s, ids + s * positions, clusters[s], centroids + 2 * steps * columns);
      columns += (clusters[s] + 3) & ~3;
    }
    adr_finish_rows(&p->layer, rescale, m, count, rows, block.sums, channels, unit, NULL, y);
  }
}
