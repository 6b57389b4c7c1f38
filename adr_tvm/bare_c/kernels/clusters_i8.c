#include "adr_int8_clusters.h"

#include <string.h>

#include "adr_int8_pairs.h"
#include "adr_int8_products.h"

#define ADR_ZEROS 0x80000000u /* key of the vectors of zeros */

/* Sums of the members, with ``exact`` the first member in the bytes of its row instead. */
typedef struct {
  int32_t clusters, padded; /* padded: L rounded up to 4 */
  int32_t *sums, *counts;
  uint32_t *keys;
  uint16_t *slots;
} adr_clusters;

/* The cluster with this key (and, with ``exact``, these data), made if there is none. */
static int32_t find(const adr_int8_reuse *p, adr_clusters *found, uint32_t key, const int8_t *vector) {
  const uint32_t mask = (uint32_t)p->slots - 1;
  uint32_t slot = (key * 0x9E3779B1u >> 12) & mask;
  for (; found->slots[slot] != 0; slot = (slot + 1) & mask) {
    const int32_t cluster = found->slots[slot] - 1;
    if (found->keys[cluster] == key &&
      (p->bits > 0 || memcmp(found->sums + cluster * found->padded, vector, (size_t)found->padded) == 0))
      return cluster;
  }
  const int32_t cluster = found->clusters++;
  found->slots[slot] = (uint16_t)(cluster + 1);
  found->keys[cluster] = key;
  found->counts[cluster] = 0;
  if (p->bits > 0)
    memset(found->sums + cluster * found->padded, 0, 4 * (size_t)found->padded);
  else
    memcpy(found->sums + cluster * found->padded, vector, (size_t)found->padded);
  return cluster;
}

static void find_keys(const adr_int8_reuse *p, const int32_t *planes, const int32_t *thresholds, const uint32_t *columns,
                      int32_t *dots, uint32_t keys[4]) {
  const int32_t steps = (p->length + 3) / 4, pairs = (p->bits + 1) / 2;
  adr_products_i8(planes, columns, steps, pairs, dots, 2 * pairs, 2 * steps);
  for (int32_t c = 0; c < 4; ++c, dots += 2 * pairs) {
    uint32_t key = 0;
    /* The difference is negative where the product is larger; thresholds are at most 2^30, so it fits. */
    for (int32_t bit = p->bits - 1; bit >= 0; --bit) key = key << 1 | (uint32_t)(thresholds[bit] - dots[bit]) >> 31;
    keys[c] = key;
  }
}

/* sum / count, to nearest, ties to even. */
static int8_t mean(int32_t sum, int32_t count) {
  int32_t quotient = sum / count, rest = sum - quotient * count;
  if (rest < 0) {
    rest += count;
    --quotient;
  }
  return (int8_t)(quotient + (2 * rest > count || (2 * rest == count && (quotient & 1))));
}

/* Centroids as columns: blocks of four. */
static void write_centroids(const adr_int8_reuse *p, const adr_clusters *found, int8_t *vector, uint32_t *centroids) {
  const int32_t steps = (p->length + 3) / 4, columns = (found->clusters + 3) & ~3;
  for (int32_t cluster = 0; cluster < columns; ++cluster) {
    const int32_t *sums = found->sums + cluster * found->padded;
    memset(vector, 0, (size_t)found->padded);
    if (cluster < found->clusters && p->bits == 0)
      memcpy(vector, sums, (size_t)found->padded);
    else if (cluster < found->clusters)
      for (int32_t i = 0; i < p->length; ++i)
        vector[i] = mean(sums[i], found->counts[cluster]);
    adr_widen_i8(vector, steps, centroids + cluster / 4 * steps * ADR_STEP_WORDS + cluster % 4);
  }
}

/* Up to four vectors that are hashed together. */
typedef struct {
  int32_t count;
  const int8_t *vectors[4];
  int32_t positions[4];
  uint32_t any[4]; /* 0 if the vector is all zeros */
} adr_batch;

static void add_to_cluster(adr_clusters *found, int32_t cluster, const int8_t *vector) {
  int32_t *sums = found->sums + cluster * found->padded;
  ++found->counts[cluster];
  for (int32_t i = 0; i < found->padded; i += 4) {
    sums[i] += vector[i];
    sums[i + 1] += vector[i + 1];
    sums[i + 2] += vector[i + 2];
    sums[i + 3] += vector[i + 3];
  }
}

/* 0 once there are more clusters than the limit. */
static int find_batch(const adr_int8_reuse *p, const adr_batch *batch, uint32_t keys[4], int32_t limit,
                      adr_clusters *found, uint16_t *ids) {
  for (int32_t c = 0; c < batch->count; ++c) {
    if (p->bits == 0) keys[c] = adr_key_of_data(batch->vectors[c], found->padded / 4);
    else if (batch->any[c] == 0) keys[c] = ADR_ZEROS;
    const int32_t cluster = find(p, found, keys[c], batch->vectors[c]);
    if (found->clusters > limit) return 0;
    ids[batch->positions[c]] = (uint16_t)cluster;
    if (p->bits > 0) add_to_cluster(found, cluster, batch->vectors[c]);
  }
  return 1;
}

int32_t adr_cluster_i8(const adr_int8_reuse *p, const int32_t *planes, const int32_t *thresholds, int32_t segment,
                       int32_t positions, adr_fetch fetch, const void *context, int32_t limit, uint16_t *ids,
                       uint32_t *centroids, uint32_t *scratch) {
  const int32_t steps = (p->length + 3) / 4, padded = 4 * steps;
  adr_clusters found = {0, padded, (int32_t *)scratch, NULL, NULL, NULL};
  adr_batch batch = {0, {NULL, NULL, NULL, NULL}, {0}, {0}};
  uint32_t keys[4] = {0};
  found.counts = found.sums + p->capacity * padded;
  found.keys = (uint32_t *)(found.counts + p->capacity);
  found.slots = (uint16_t *)(found.keys + p->capacity);
  uint32_t *columns = found.keys + p->capacity + p->slots / 2;
  int32_t *dots = (int32_t *)(columns + 8 * steps);
  int8_t *buffers = (int8_t *)(dots + 8 * ((p->bits + 1) / 2));
  memset(found.slots, 0, 2 * (size_t)p->slots);
  for (int32_t position = 0; position < positions; ++position) {
    const int8_t *vector = fetch(context, segment, position, buffers + batch.count * padded);
    if (vector == NULL) {
      ids[position] = ADR_NO_VECTOR;
    } else {
      batch.vectors[batch.count] = vector;
      batch.positions[batch.count] = position;
      if (p->bits > 0) batch.any[batch.count] = adr_widen_i8(vector, steps, columns + batch.count);
      ++batch.count;
    }
    if (batch.count == 4 || (batch.count > 0 && position == positions - 1)) {
      if (p->bits > 0) find_keys(p, planes, thresholds, columns, dots, keys);
      if (!find_batch(p, &batch, keys, limit, &found, ids)) return found.clusters;
      batch.count = 0;
    }
  }
  write_centroids(p, &found, buffers, centroids);
  return found.clusters;
}
