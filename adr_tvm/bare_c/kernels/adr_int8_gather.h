/* Adding up products of clusters: of each output position those that the ids of its taps name, many channels at once.
 *
 * A table has rows of 8 words: products of 8 channels as int32, or of 16 as int16, two in a word. A cluster has one row for
 * each tap, side by side. */
#ifndef ADR_INT8_GATHER_H
#define ADR_INT8_GATHER_H

#include "adr_int8.h"
#include "adr_int8_neon.h"

#define ADR_ROW_WORDS 8

#if defined(__thumb2__) && defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__)
#define ADR_GATHER_LDM 1
typedef const uint32_t *adr_entry; /* where a cluster's rows start */
#else
typedef uint32_t adr_entry; /* the same, in words from the table's start */
#endif

static inline adr_entry adr_entry_at(const uint32_t *table, int32_t words) {
#if defined(ADR_GATHER_LDM)
  return table + words;
#else
  (void)table;
  return (uint32_t)words;
#endif
}

/* Taps that are added up in one go. entries: of the first output's first tap; the next tap's is ``tap`` entries on, the next
 * row's ``row``, that of the next output ``step``. */
typedef struct {
  int32_t rows, columns, tap, row, step;
} adr_gather_taps;

/* sums[output][8] += products, int32. */
void adr_gather_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                   int32_t *sums);

/* sums[output][16] += products, int16; those of one output must fit int16 when they are added up. */
void adr_gather_small_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                         int32_t *sums);

#endif
