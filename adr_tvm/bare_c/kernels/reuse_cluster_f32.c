/* Clusters of a convolution with reuse: vectors, their keys and their numbers. */
#include "adr_reuse.h"

#include <string.h>

adr_reuse_memory adr_reuse_layout(const adr_reuse *p, void *scratch) {
  const int32_t M = (p->conv.window.out_channels + ADR_BLOCK - 1) / ADR_BLOCK * ADR_BLOCK;
  adr_reuse_memory memory;
  memory.vector = scratch;
  memory.other = memory.vector + p->length;
  memory.centroids = memory.other + p->length;
  memory.products = memory.centroids + adr_reuse_block(p) * p->length;
  memory.gains = memory.products + adr_reuse_block(p) * M;
  memory.keys = (uint32_t *)(void *)(memory.gains + (p->gain ? p->vectors : 0));
  memory.ids = (int16_t *)(void *)(memory.keys + p->capacity);
  memory.first = memory.ids + p->segments * p->vectors;
  memory.slots = memory.first + p->capacity;
  memory.last = memory.slots;
  memory.next = memory.last + p->capacity;
  return memory;
}

int32_t adr_vector_length(const adr_reuse *p, int32_t segment) {
  const adr_window *s = &p->conv.window;
  const int32_t taps = p->granularity == ADR_PIXEL ? 1 : s->kernel_height * s->kernel_width;
  const int32_t left = s->channels * taps - segment * p->length;
  return left < p->length ? left : p->length;
}

/* Whether a tap of some window reads a row or column. */
static int32_t is_read(int32_t at, int32_t pad, int32_t taps, int32_t dilation, int32_t stride, int32_t outputs) {
  if (stride == 1 && dilation == 1) return 1; /* windows side by side leave nothing out */
  for (int32_t k = 0; k < taps; ++k) {
    const int32_t start = at + pad - k * dilation;
    if (start >= 0 && start % stride == 0 && start / stride < outputs) return 1;
  }
  return 0;
}

static const float *pixel_of(const adr_reuse *p, const float *x, int32_t segment, int32_t vector) {
  const adr_window *s = &p->conv.window;
  const int32_t row = vector / s->width, column = vector % s->width;
  if (!is_read(row, s->pad_top, s->kernel_height, s->dilation_y, s->stride_y, s->out_height)) return NULL;
  if (!is_read(column, s->pad_left, s->kernel_width, s->dilation_x, s->stride_x, s->out_width)) return NULL;
  return x + vector * s->channels + segment * p->length;
}

/* Entries of an im2col row in the order (C, KH, KW). */
static int32_t load_segment(const adr_reuse *p, const float *x, int32_t segment, int32_t vector, float *to) {
  const adr_window *s = &p->conv.window;
  const int32_t taps = s->kernel_height * s->kernel_width, from = segment * p->length;
  const int32_t length = adr_vector_length(p, segment), C = s->channels;
  const int32_t top = vector / s->out_width * s->stride_y - s->pad_top;
  const int32_t left = vector % s->out_width * s->stride_x - s->pad_left;
  const int32_t bottom = top + s->dilation_y * (s->kernel_height - 1);
  const int32_t right = left + s->dilation_x * (s->kernel_width - 1);
  const int32_t whole = top >= 0 && left >= 0 && bottom < s->height && right < s->width;
  int32_t c = from / taps, ky = from % taps / s->kernel_width, kx = from % s->kernel_width, any = whole, i = 0;
  while (i < length) {
    const int32_t row = top + ky * s->dilation_y, more = s->kernel_width - kx;
    const int32_t end = more < length - i ? i + more : length;
    const int32_t line = (row * s->width + left) * C + c;
    for (; i < end; ++i, ++kx) {
      const int32_t column = left + kx * s->dilation_x;
      const int32_t inside = whole || (row >= 0 && row < s->height && column >= 0 && column < s->width);
      to[i] = inside ? x[line + kx * s->dilation_x * C] : 0.0f;
      any |= inside;
    }
    kx = 0;
    if (++ky == s->kernel_height) {
      ky = 0;
      ++c;
    }
  }
  return any;
}

/* A whole im2col row in the order (KH, KW, C). */
static void load_row(const adr_reuse *p, const float *x, int32_t vector, float *to) {
  const adr_window *s = &p->conv.window;
  const int32_t top = vector / s->out_width * s->stride_y - s->pad_top;
  const int32_t left = vector % s->out_width * s->stride_x - s->pad_left;
  const size_t bytes = (size_t)s->channels * sizeof *to;
  for (int32_t ky = 0; ky < s->kernel_height; ++ky) {
    for (int32_t kx = 0; kx < s->kernel_width; ++kx, to += s->channels) {
      const int32_t row = top + ky * s->dilation_y, column = left + kx * s->dilation_x;
      if (row >= 0 && row < s->height && column >= 0 && column < s->width)
        memcpy(to, x + (row * s->width + column) * s->channels, bytes);
      else
        for (int32_t c = 0; c < s->channels; ++c) to[c] = 0.0f;
    }
  }
}

const float *adr_vector_of(const adr_reuse *p, const float *x, int32_t segment, int32_t vector, float *to) {
  if (p->granularity == ADR_PIXEL) return pixel_of(p, x, segment, vector);
  if (p->granularity == ADR_SEGMENT) return load_segment(p, x, segment, vector, to) ? to : NULL;
  load_row(p, x, vector, to);
  return to;
}

/* Bits of a vector's key; each sum is one chain of fused multiply-adds, on every processor. */
static uint32_t sign_key(const float *v, int32_t n, int32_t length, int32_t bits, const float *planes,
                         const float *thresholds) {
  uint32_t key = 0;
  for (int32_t h = 0; h < bits; h += ADR_BLOCK, planes += length * ADR_BLOCK, thresholds += ADR_BLOCK) {
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
    for (int32_t i = 0; i < n; ++i) {
      const float *plane = planes + i * ADR_BLOCK;
      a = fmaf(v[i], plane[0], a);
      b = fmaf(v[i], plane[1], b);
      c = fmaf(v[i], plane[2], c);
      d = fmaf(v[i], plane[3], d);
    }
    key |= (uint32_t)(a > thresholds[0]) << h | (uint32_t)(b > thresholds[1]) << (h + 1);
    key |= (uint32_t)(c > thresholds[2]) << (h + 2) | (uint32_t)(d > thresholds[3]) << (h + 3);
  }
  return key;
}

/* A number that vectors of equal bits share (the hash of Fowler, Noll and Vo, a word at a time). */
static uint32_t exact_key(const float *v, int32_t n) {
  uint32_t key = 2166136261u;
  for (int32_t i = 0; i < n; ++i) {
    uint32_t word;
    memcpy(&word, v + i, sizeof word);
    key = (key ^ word) * 16777619u;
  }
  return key ^ key >> 15;
}

/* Whether a vector belongs to a cluster with its key. */
static int32_t is_member(const adr_reuse *p, const float *x, int32_t segment, const float *vector, int32_t cluster,
                         const adr_reuse_memory *memory) {
  const size_t bytes = (size_t)adr_vector_length(p, segment) * sizeof *vector;
  if (p->bits > 0) return 1;
  return memcmp(adr_vector_of(p, x, segment, memory->first[cluster], memory->other), vector, bytes) == 0;
}

int32_t adr_number_vectors(const adr_reuse *p, const float *x, const float *planes, const float *thresholds,
                           int32_t segment, int32_t first, int32_t step, int16_t *ids, const adr_reuse_memory *memory) {
  const int32_t n = adr_vector_length(p, segment), blocks = (p->bits + ADR_BLOCK - 1) / ADR_BLOCK * ADR_BLOCK;
  const uint32_t mask = (1u << p->slot_bits) - 1u;
  int32_t clusters = 0, odd = 0, zero = -1;
  for (uint32_t slot = 0; slot <= mask; ++slot) memory->slots[slot] = -1;
  for (int32_t v = first; v < p->vectors; v += step) {
    const float *const vector = adr_vector_of(p, x, segment, v, memory->vector);
    uint32_t key = 0, slot = 0, bits = 0, zeros;
    float nothing = 0.0f;
    int32_t id = -1;
    if (vector == NULL) {
      ids[v] = ADR_NO_VECTOR;
      continue;
    }
    for (int32_t i = 0; i < n; ++i) {
      uint32_t word;
      memcpy(&word, vector + i, sizeof word);
      bits |= word << 1; /* without the sign */
      nothing = ADR_FMA(vector[i], 0.0f, nothing);
    }
    zeros = bits == 0;
    if (!(nothing == 0.0f)) { /* NaN, or infinity times 0 */
      ids[v] = ADR_NOT_FINITE;
      ++odd;
      continue;
    }
    if (zeros && p->bits > 0) {
      id = zero;
    } else {
      key = p->bits == 0 ? exact_key(vector, n)
                         : sign_key(vector, n, p->length, p->bits, planes + segment * blocks * p->length,
                                    thresholds + segment * blocks);
      /* A table with a place for each key needs no hashing. */
      slot = p->slot_bits == p->bits ? key : key * 2654435761u >> (32 - p->slot_bits);
      while (memory->slots[slot] >= 0) {
        const int32_t found = memory->slots[slot];
        if (memory->keys[found] == key && is_member(p, x, segment, vector, found, memory)) {
          id = found;
          break;
        }
        slot = (slot + 1u) & mask;
      }
    }
    if (id < 0) {
      id = clusters++;
      memory->first[id] = (int16_t)v;
      memory->keys[id] = key;
      if (zeros && p->bits > 0)
        zero = id;
      else
        memory->slots[slot] = (int16_t)id;
    }
    ids[v] = (int16_t)id;
  }
  return clusters + odd;
}
