/* What the files of the convolution with reuse share. */
#ifndef ADR_REUSE_H
#define ADR_REUSE_H

#include "adr_kernels.h"

enum { ADR_BLOCK = 4 }; /* clusters, channels and bits that are done together */

/* Ids other than those of clusters. */
enum { ADR_NO_VECTOR = -1, ADR_NOT_FINITE = -2 };

/* Scratch memory. Slots are needed while vectors are numbered, last and next afterwards: they share their memory. */
typedef struct {
  float *vector, *other; /* [length] each */
  float *centroids;      /* [block][length] */
  float *products;       /* [block][out_channels, rounded up to ADR_BLOCK] */
  float *gains;          /* [vectors], with gain */
  uint32_t *keys;        /* [capacity], of clusters */
  int16_t *first;        /* [capacity]: first members */
  int16_t *ids;          /* [segments][vectors] */
  int16_t *slots;        /* [2^slot_bits]: clusters by key */
  int16_t *last;         /* [capacity]: last members so far */
  int16_t *next;         /* [vectors]: next members */
} adr_reuse_memory;

/* Clusters that are multiplied together: ADR_BLOCK, of long vectors one, of rows that are copied none. */
static inline int32_t adr_reuse_block(const adr_reuse *p) {
  return p->granularity != ADR_ROW ? ADR_BLOCK : p->bits > 0;
}

adr_reuse_memory adr_reuse_layout(const adr_reuse *p, void *scratch);

/* Entries of the vectors of a segment. */
int32_t adr_vector_length(const adr_reuse *p, int32_t segment);

/* A vector of a segment: in x where its entries lie side by side, else copied to `to`. NULL where there is none: all of
 * it is padding, or no tap reads the pixel. */
const float *adr_vector_of(const adr_reuse *p, const float *x, int32_t segment, int32_t vector, float *to);

/* Number the vectors from `first` on, every `step`th: ids[vectors] in the order of first members. Returns the clusters,
 * of which every vector that is not finite is one. */
int32_t adr_number_vectors(const adr_reuse *p, const float *x, const float *planes, const float *thresholds,
                           int32_t segment, int32_t first, int32_t step, int16_t *ids, const adr_reuse_memory *memory);

#endif
