#include <string.h>

#include "adr_int8_clusters.h"
#include "adr_int8_gather.h"
#include "adr_int8_pairs.h"
#include "adr_int8_products.h"
#include "adr_int8_rounding.h"

/* Segments whose products are added up in one go, as the taps of a row are. */
#define ADR_GROUP 5

typedef struct {
  const adr_int8_reuse *p;
  const int8_t *x;
} adr_rows;

/* Entries of the im2col row in the order (channels, rows, columns); NULL where all lie in the padding. */
static const int8_t *fetch_segment(const void *context, int32_t segment, int32_t position, int8_t *buffer) {
  const adr_rows *rows = context;
  const adr_int8_reuse *p = rows->p;
  const adr_window *window = &p->layer.window;
  const int32_t KH = window->kernel_height, KW = window->kernel_width, first = segment * p->length;
  const int32_t rest = KH * KW * window->channels - first, length = rest < p->length ? rest : p->length;
  const int32_t top = position / window->out_width * window->stride_y - window->pad_top;
  const int32_t left = position % window->out_width * window->stride_x - window->pad_left;
  int32_t channel = first / (KH * KW), ky = first / KW % KH, kx = first % KW, inside = 0;
  memset(buffer, 0, (size_t)((p->length + 3) & ~3));
  for (int32_t i = 0; i < length; ++i) {
    const int32_t iy = top + ky * window->dilation_y, ix = left + kx * window->dilation_x;
    if (iy >= 0 && iy < window->height && ix >= 0 && ix < window->width) {
      buffer[i] = rows->x[(iy * window->width + ix) * window->channels + channel];
      inside = 1;
    }
    if (++kx == KW) {
      kx = 0;
      if (++ky == KH) {
        ky = 0;
        ++channel;
      }
    }
  }
  return inside ? buffer : NULL;
}

/* Every row multiplied: more clusters than pay. */
static void run_dense(const adr_rows *rows, const int32_t *weight, const int32_t *rescale, int8_t *y, uint32_t *scratch) {
  const adr_int8_reuse *p = rows->p;
  const adr_window *window = &p->layer.window;
  const int32_t M = window->out_channels, count = window->out_height * window->out_width, steps = (p->length + 3) / 4;
  uint32_t *columns = scratch + steps;
  int32_t sums[4 * 8];
  for (int32_t first = 0; first < count; first += 4) {
    const int32_t block = count - first < 4 ? count - first : 4;
    for (int32_t c = 0; c < block; ++c) {
      for (int32_t s = 0; s < p->segments; ++s) {
        const int8_t *vector = fetch_segment(rows, s, first + c, (int8_t *)scratch);
        uint32_t *column = columns + ADR_STEP_WORDS * steps * s + c;
        if (vector != NULL) adr_widen_i8(vector, steps, column);
        else
          for (int32_t step = 0; step < steps; ++step) adr_put_four(column + ADR_STEP_WORDS * step, 0);
      }
    }
    for (int32_t m = 0; m < M; m += 8) {
      const int32_t channels = M - m < 8 ? M - m : 8, K = steps * p->segments;
      adr_products_i8(weight + m * K, columns, K, (channels + 1) / 2, sums, 8, 2 * K);
      adr_finish_rows(&p->layer, rescale, m, channels, block, sums, 8, 1, NULL, y + first * M);
    }
  }
}

/* The clusters of a group of segments. */
typedef struct {
  int32_t first, segments;
  int32_t clusters[ADR_GROUP];
  const uint16_t *ids;        /* [segments][rows of the output] */
  const uint32_t *centroids;  /* [segments][places][steps][2] as columns */
  int32_t places;             /* capacity rounded up to 4 */
} adr_group;

/* Adds a group's products to the sums [rows of the output][channels of a table's row] of a block of channels. */
static void add_group(const adr_int8_reuse *p, const adr_group *group, const int32_t *weight, int32_t pairs, int32_t *sums,
                      adr_entry *entries, uint32_t *table) {
  const int32_t steps = (p->length + 3) / 4, rows = p->layer.window.out_height * p->layer.window.out_width;
  const int32_t G = group->segments, stride = ADR_ROW_WORDS * G, pair_words = 2 * steps * p->segments;
  const adr_gather_taps taps = {1, G, 1, 0, G};
  memset(table, 0, 4 * (size_t)stride);
  for (int32_t g = 0; g < G; ++g) {
    const uint32_t *centroids = group->centroids + 2 * steps * group->places * g;
    const int32_t *own = weight + 2 * steps * (group->first + g);
    uint32_t *products = table + stride + ADR_ROW_WORDS * g;
    for (int32_t c = 0; c < group->clusters[g]; c += 4, centroids += ADR_STEP_WORDS * steps, products += 4 * stride) {
      if (p->table_shift < 0) adr_products_i8(own, centroids, steps, pairs, (int32_t *)products, stride, pair_words);
      else adr_small_products_i8(own, centroids, steps, pairs, products, stride, pair_words, p->table_shift);
    }
    for (int32_t row = 0; row < rows; ++row) {
      const uint16_t id = group->ids[g * rows + row];
      entries[row * G + g] = adr_entry_at(table, id == ADR_NO_VECTOR ? 0 : stride * (1 + id));
    }
  }
  if (p->table_shift < 0) adr_gather_i8(&taps, table, entries, rows, sums);
  else adr_gather_small_i8(&taps, table, entries, rows, sums);
}

void adr_reuse_segment_i8(const adr_int8_reuse *p, const int8_t *x, const int32_t *weight, const int32_t *rescale,
                          const int32_t *planes, const int32_t *thresholds, int8_t *y, void *scratch, int32_t *counts) {
  const adr_window *window = &p->layer.window;
  const adr_rows context = {p, x};
  const int32_t S = p->segments, M = window->out_channels, steps = (p->length + 3) / 4, hash_pairs = (p->bits + 1) / 2;
  const int32_t rows = window->out_height * window->out_width, places = (p->capacity + 3) & ~3;
  const int32_t channels = p->table_shift < 0 ? 8 : 16, unit = p->table_shift < 0 ? 1 : (int32_t)1 << p->table_shift;
  const int32_t blocks = (M + channels - 1) / channels;
  int32_t *sums = scratch, total = 0;
  uint16_t *ids = (uint16_t *)(sums + blocks * channels * rows);
  uint32_t *centroids = (uint32_t *)sums + blocks * channels * rows + (ADR_GROUP * rows + 1) / 2;
  uint32_t *rest = centroids + 2 * steps * places * ADR_GROUP;
  memset(sums, 0, 4 * (size_t)(blocks * channels * rows));
  for (int32_t first = 0; first < S && total <= p->max_clusters; first += ADR_GROUP) {
    adr_group group = {first, S - first < ADR_GROUP ? S - first : ADR_GROUP, {0}, ids, centroids, places};
    for (int32_t g = 0; g < group.segments && total <= p->max_clusters; ++g) {
      const int32_t *own_planes = planes == NULL ? NULL : planes + 2 * steps * hash_pairs * (first + g);
      const int32_t *own_thresholds = thresholds == NULL ? NULL : thresholds + p->bits * (first + g);
      group.clusters[g] = adr_cluster_i8(p, own_planes, own_thresholds, first + g, rows, fetch_segment, &context,
                                         p->max_clusters - total, ids + g * rows, centroids + 2 * steps * places * g, rest);
      total += group.clusters[g];
    }
    for (int32_t block = 0; block < blocks && total <= p->max_clusters; ++block) {
      const int32_t left = M - block * channels, pairs = ((left < channels ? left : channels) + 1) / 2;
      add_group(p, &group, weight + block * channels * steps * S, pairs, sums + block * channels * rows,
                (adr_entry *)(void *)(rest + p->table_words), rest);
    }
  }
  if (counts != NULL) {
    counts[0] = total;
    counts[1] = total <= p->max_clusters;
  }
  if (total > p->max_clusters) {
    run_dense(&context, weight, rescale, y, scratch);
    return;
  }
  for (int32_t block = 0; block < blocks; ++block) {
    const int32_t left = M - block * channels;
    adr_finish_rows(&p->layer, rescale, block * channels, left < channels ? left : channels, rows,
                    sums + block * channels * rows, channels, unit, NULL, y);
  }
}
