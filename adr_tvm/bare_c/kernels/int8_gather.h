/* Adding up products of clusters: of each output position those that the ids of its taps name, eight channels at once. */
#ifndef INT8_GATHER_H
#define INT8_GATHER_H

#include "adr_int8.h"

#if defined(__thumb2__) && defined(__GNUC__)
#define ADR_GATHER_LDM 1
typedef const int32_t *adr_entry; /* where a cluster's products start */
#else
typedef uint32_t adr_entry; /* the same, in words from the table's start */
#endif

static inline adr_entry adr_entry_at(const int32_t *table, uint32_t words) {
#if defined(ADR_GATHER_LDM)
  return table + words;
#else
  (void)table;
  return words;
#endif
}

/* sums[output][8] += table[entry + 8 * (ky * columns + kx)][8] over rows x columns taps.
 *
 * entries: of the first output's first tap; the next tap's is ``tap`` entries on, the next row's ``row``, that of the next
 * output ``step``. */
typedef struct {
  int32_t rows, columns, tap, row, step;
} adr_gather_taps;

void adr_gather_i8(const adr_gather_taps *taps, const int32_t *table, const adr_entry *entries, int32_t outputs,
                   int32_t *sums);

#endif
