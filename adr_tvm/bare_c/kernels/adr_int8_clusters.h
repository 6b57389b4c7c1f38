/* Clusters of the vectors of one segment: keys, ids, centroids. */
#ifndef ADR_INT8_CLUSTERS_H
#define ADR_INT8_CLUSTERS_H

#include "adr_int8.h"

#define ADR_NO_VECTOR 0xffff

/* The vector of a position, in place or in ``buffer``, filled up with zeros to a multiple of 4; NULL: there is none. */
typedef const int8_t *(*adr_fetch)(const void *context, int32_t segment, int32_t position, int8_t *buffer);

/* ids [positions]: numbered by first members, ADR_NO_VECTOR where there is none. Centroids are written as columns, with
 * zeros up to a multiple of 4. Returns the number of clusters; if it is larger than
 * ``limit``, it is limit + 1, and there are no ids and no centroids.
 *
 * scratch: words, capacity * (4 * steps + 2) + slots / 2 + 12 * steps + 8 * ceil(H / 2), with steps = ceil(L / 4). */
int32_t adr_cluster_i8(const adr_int8_reuse *p, const int32_t *planes, const int32_t *thresholds, int32_t segment,
                       int32_t positions, adr_fetch fetch, const void *context, int32_t limit, uint16_t *ids,
                       uint32_t *centroids, uint32_t *scratch);

#endif
