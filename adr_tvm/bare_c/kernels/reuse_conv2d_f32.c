/* Convolution with reuse: the product of each cluster's mean is added to the outputs of all its members. */
#include "adr_reuse.h"

#include <string.h>

enum { SAMPLE = 64 }; /* rows that are compared before all are */

/* Members of the clusters of a segment as lists; returns the number of clusters. */
static int32_t link_members(const adr_reuse *p, const int16_t *ids, const adr_reuse_memory *memory) {
  int32_t clusters = 0;
  for (int32_t v = 0; v < p->vectors; ++v) {
    const int32_t id = ids[v];
    memory->next[v] = -1;
    if (id < 0) continue;
    if (id == clusters)
      memory->first[clusters++] = (int16_t)v;
    else
      memory->next[memory->last[id]] = (int16_t)v;
    memory->last[id] = (int16_t)v;
  }
  return clusters;
}

/* The mean of a list of vectors, as first + mean of the differences: equal members give exactly themselves. */
static void put_centroid(const adr_reuse *p, const float *x, int32_t segment, int32_t first, float *centroid,
                         const adr_reuse_memory *memory) {
  const int32_t n = adr_vector_length(p, segment);
  const float *const base = adr_vector_of(p, x, segment, first, memory->vector);
  float members = 1.0f;
  for (int32_t i = 0; i < n; ++i) centroid[i] = 0.0f;
  for (int32_t v = memory->next[first]; v >= 0; v = memory->next[v], members += 1.0f) {
    const float *const member = adr_vector_of(p, x, segment, v, memory->other);
    for (int32_t i = 0; i < n; ++i) centroid[i] += member[i] - base[i];
  }
  for (int32_t i = 0; i < n; ++i) centroid[i] = base[i] + centroid[i] / members;
}

/* Factors <x, c> / <c, c> of the members of a list; 1 where <c, c> is 0 or infinite. */
static void put_gains(const adr_reuse *p, const float *x, int32_t segment, int32_t first, const float *centroid,
                      const adr_reuse_memory *memory) {
  const int32_t n = adr_vector_length(p, segment);
  float square = 0.0f;
  for (int32_t i = 0; i < n; ++i) square = ADR_FMA(centroid[i], centroid[i], square);
  for (int32_t v = first; v >= 0; v = memory->next[v]) {
    const float *const member = adr_vector_of(p, x, segment, v, memory->other);
    float product = 0.0f;
    for (int32_t i = 0; i < n; ++i) product = ADR_FMA(member[i], centroid[i], product);
    memory->gains[v] = square > 0.0f && isfinite(square) ? product / square : 1.0f;
  }
}

/* Sums of four vectors, `step` apart, times entries of packed weights in the order (C, KH, KW), from (c, tap) on. */
static void add_entries(const float *x, int32_t step, const float *w, const adr_window *s, int32_t c, int32_t tap,
                        int32_t n, float *acc) {
  const float *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
  const int32_t taps = s->kernel_height * s->kernel_width;
  float a0 = 0.0f, a1 = 0.0f, a2 = 0.0f, a3 = 0.0f, b0 = 0.0f, b1 = 0.0f, b2 = 0.0f, b3 = 0.0f;
  float c0 = 0.0f, c1 = 0.0f, c2 = 0.0f, c3 = 0.0f, d0 = 0.0f, d1 = 0.0f, d2 = 0.0f, d3 = 0.0f;
  for (int32_t k = 0; k < n; ++k) {
    const float *weights = w + (tap * s->channels + c) * ADR_BLOCK;
    const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
    const float a = x[k], b = x1[k], e = x2[k], d = x3[k];
    a0 = ADR_FMA(a, w0, a0), a1 = ADR_FMA(a, w1, a1), a2 = ADR_FMA(a, w2, a2), a3 = ADR_FMA(a, w3, a3);
    b0 = ADR_FMA(b, w0, b0), b1 = ADR_FMA(b, w1, b1), b2 = ADR_FMA(b, w2, b2), b3 = ADR_FMA(b, w3, b3);
    c0 = ADR_FMA(e, w0, c0), c1 = ADR_FMA(e, w1, c1), c2 = ADR_FMA(e, w2, c2), c3 = ADR_FMA(e, w3, c3);
    d0 = ADR_FMA(d, w0, d0), d1 = ADR_FMA(d, w1, d1), d2 = ADR_FMA(d, w2, d2), d3 = ADR_FMA(d, w3, d3);
    if (++tap == taps) {
      tap = 0;
      ++c;
    }
  }
  acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
  acc[4] = b0, acc[5] = b1, acc[6] = b2, acc[7] = b3;
  acc[8] = c0, acc[9] = c1, acc[10] = c2, acc[11] = c3;
  acc[12] = d0, acc[13] = d1, acc[14] = d2, acc[15] = d3;
}

/* Products of a block of centroids with the weights of a segment and tap, all output channels. */
static void multiply(const adr_reuse *p, const float *w, int32_t segment, int32_t tap, const adr_reuse_memory *memory) {
  const adr_window *s = &p->conv.window;
  const int32_t n = adr_vector_length(p, segment), block = adr_reuse_block(p);
  const int32_t taps = s->kernel_height * s->kernel_width, K = taps * s->channels, from = segment * p->length;
  const int32_t M = (s->out_channels + ADR_BLOCK - 1) / ADR_BLOCK * ADR_BLOCK;
  for (int32_t m = 0; m < M; m += ADR_BLOCK, w += K * ADR_BLOCK) {
    float acc[ADR_BLOCK * ADR_BLOCK] = {0.0f};
    if (p->granularity == ADR_SEGMENT)
      add_entries(memory->centroids, p->length, w, s, from / taps, from % taps, n, acc);
    else if (p->granularity == ADR_PIXEL)
      adr_add_pixels_f32(memory->centroids, p->length, w + (tap * s->channels + from) * ADR_BLOCK, n, acc);
    else
      adr_add_pixel_f32(memory->centroids, w, n, acc);
    for (int32_t c = 0; c < block; ++c)
      memcpy(memory->products + c * M + m, acc + c * ADR_BLOCK, ADR_BLOCK * sizeof *acc);
  }
}

/* The output pixel that reads a vector through a tap; -1 where none does. */
static int32_t reader(const adr_reuse *p, int32_t vector, int32_t tap) {
  const adr_window *s = &p->conv.window;
  if (p->granularity != ADR_PIXEL) return vector;
  const int32_t row = vector / s->width + s->pad_top - tap / s->kernel_width * s->dilation_y;
  const int32_t column = vector % s->width + s->pad_left - tap % s->kernel_width * s->dilation_x;
  if (row < 0 || column < 0 || row % s->stride_y != 0 || column % s->stride_x != 0) return -1;
  if (row / s->stride_y >= s->out_height || column / s->stride_x >= s->out_width) return -1;
  return row / s->stride_y * s->out_width + column / s->stride_x;
}

static void add_scaled(float *y, const float *product, int32_t n, float gain) {
  for (int32_t m = 0; m < n; ++m) y[m] = ADR_FMA(gain, product[m], y[m]);
}

static void add(float *y, const float *product, int32_t n) {
  int32_t m = 0;
  for (; m + 4 <= n; m += 4) {
    y[m] += product[m];
    y[m + 1] += product[m + 1];
    y[m + 2] += product[m + 2];
    y[m + 3] += product[m + 3];
  }
  for (; m < n; ++m) y[m] += product[m];
}

/* Add the products of a block of clusters, whose first members are given, to the outputs of all members. */
static void add_clusters(const adr_reuse *p, const float *w, int32_t segment, const int16_t *first, int32_t clusters,
                         int32_t scaled, float *y, const adr_reuse_memory *memory) {
  const adr_window *s = &p->conv.window;
  const int32_t taps = p->granularity == ADR_PIXEL ? s->kernel_height * s->kernel_width : 1;
  const int32_t M = s->out_channels, row = (M + ADR_BLOCK - 1) / ADR_BLOCK * ADR_BLOCK;
  for (int32_t tap = 0; tap < taps; ++tap) {
    multiply(p, w, segment, tap, memory);
    for (int32_t c = 0; c < clusters; ++c) {
      for (int32_t v = first[c]; v >= 0; v = memory->next[v]) {
        const int32_t at = reader(p, v, tap);
        if (at < 0) continue;
        if (scaled)
          add_scaled(y + at * M, memory->products + c * row, M, memory->gains[v]);
        else
          add(y + at * M, memory->products + c * row, M);
      }
    }
  }
}

static int32_t all_zero(const float *v, int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    if (v[i] != 0.0f) return 0;
  }
  return 1;
}

static void add_segment(const adr_reuse *p, const float *x, const float *w, int32_t segment, float *y,
                        const adr_reuse_memory *memory) {
  const int16_t *ids = memory->ids + segment * p->vectors;
  const int32_t clusters = link_members(p, ids, memory), block = adr_reuse_block(p);
  int16_t first[ADR_BLOCK];
  int32_t some = 0;
  for (int32_t c = 0; c < clusters; ++c) {
    float *centroid = memory->centroids + some * p->length;
    put_centroid(p, x, segment, memory->first[c], centroid, memory);
    if (!all_zero(centroid, adr_vector_length(p, segment))) {
      if (p->gain) put_gains(p, x, segment, memory->first[c], centroid, memory);
      first[some++] = memory->first[c];
    }
    if (some == block || (some > 0 && c + 1 == clusters)) {
      add_clusters(p, w, segment, first, some, p->gain, y, memory);
      some = 0;
    }
  }
  /* A vector that is not finite stands for itself. */
  for (int32_t v = 0; v < p->vectors; ++v) {
    if (ids[v] != ADR_NOT_FINITE) continue;
    const int16_t alone = (int16_t)v;
    const float *const vector = adr_vector_of(p, x, segment, v, memory->centroids);
    if (vector != memory->centroids)
      memcpy(memory->centroids, vector, (size_t)adr_vector_length(p, segment) * sizeof *vector);
    add_clusters(p, w, segment, &alone, 1, 0, y, memory);
  }
}

/* Equal rows: each is computed once, as the dense layer does, and copied. */
static void copy_rows(const adr_reuse *p, const float *x, const float *w, const float *bias, float *y,
                      const adr_reuse_memory *memory) {
  const adr_window *s = &p->conv.window;
  const size_t bytes = (size_t)s->out_channels * sizeof *y;
  int32_t clusters = 0;
  for (int32_t v = 0; v < p->vectors; ++v) {
    const int32_t id = memory->ids[v];
    if (id >= 0 && id < clusters) {
      memcpy(y + v * s->out_channels, y + memory->first[id] * s->out_channels, bytes);
    } else {
      clusters += id >= 0;
      adr_conv2d_pixel_f32(&p->conv, x, NULL, w, bias, y + v * s->out_channels, v / s->out_width, v % s->out_width);
    }
  }
}

/* Whether rows repeat at all, by a sample. */
static int32_t repeats(const adr_reuse *p, const float *x, const adr_reuse_memory *memory) {
  const int32_t step = (p->vectors + SAMPLE - 1) / SAMPLE, sample = (p->vectors + step - 1) / step;
  return adr_number_vectors(p, x, NULL, NULL, 0, 0, step, memory->ids, memory) < sample;
}

void adr_reuse_conv2d_f32(const adr_reuse *p, const float *x, const float *w, const float *bias, const float *planes,
                          const float *thresholds, float *y, void *scratch, int32_t *counts) {
  const adr_reuse_memory memory = adr_reuse_layout(p, scratch);
  const adr_window *s = &p->conv.window;
  const int32_t M = s->out_channels, rows = s->out_height * s->out_width;
  const int32_t lossless = p->granularity == ADR_ROW && p->bits == 0;
  int32_t clusters = 0, reuse = !lossless || repeats(p, x, &memory);
  for (int32_t segment = 0; reuse && segment < p->segments; ++segment) {
    int16_t *ids = memory.ids + segment * p->vectors;
    clusters += adr_number_vectors(p, x, planes, thresholds, segment, 0, 1, ids, &memory);
  }
  reuse = reuse && (p->max_clusters < 0 || clusters <= p->max_clusters);
  if (counts != NULL) {
    counts[0] = clusters;
    counts[1] = reuse;
  }
  if (!reuse) {
    adr_conv2d_f32(&p->conv, x, NULL, w, bias, y);
    return;
  }
  if (lossless) {
    copy_rows(p, x, w, bias, y, &memory);
    return;
  }
  for (int32_t i = 0; i < rows * M; ++i) y[i] = 0.0f;
  for (int32_t segment = 0; segment < p->segments; ++segment) add_segment(p, x, w, segment, y, &memory);
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t m = 0; m < M; ++m, ++y) *y = adr_activate(*y + bias[m], &p->conv.activation);
  }
}
