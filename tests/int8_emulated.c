/* Runs int8 kernels on the arguments that standard input gives, until it ends; every argument is a piece of memory.
 *
 * A call is the number of the kernel, that of the arguments, and of each its bytes (-1: NULL) and content, in int32; the
 * answer is the content of all arguments behind the call. */
#include <stdio.h>
#include <stdlib.h>

#include "adr_int8.h"

#define ARGUMENTS 9

typedef void (*kernel)(void *, void *, void *, void *, void *, void *, void *, void *, void *);

#define KERNEL(name) (kernel)(void (*)(void))name

static const kernel kernels[] = {
    KERNEL(adr_conv2d_i8),      KERNEL(adr_depthwise_i8),     KERNEL(adr_dense_i8),    KERNEL(adr_logits_i8),
    KERNEL(adr_reuse_pixel_i8), KERNEL(adr_reuse_segment_i8), KERNEL(adr_reuse_row_i8),
};

static void read_all(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(1);
}

int main(void) {
  int32_t head[2];
  while (fread(head, sizeof head, 1, stdin) == 1) {
    void *given[ARGUMENTS] = {NULL};
    int32_t bytes[ARGUMENTS];
    for (int32_t i = 0; i < head[1]; ++i) {
      read_all(&bytes[i], sizeof bytes[i]);
      if (bytes[i] < 0) continue;
      given[i] = malloc((size_t)bytes[i] + 1);
      read_all(given[i], (size_t)bytes[i]);
    }
    kernels[head[0]](given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7], given[8]);
    for (int32_t i = 0; i < head[1]; ++i) {
      if (bytes[i] < 0) continue;
      fwrite(given[i], 1, (size_t)bytes[i], stdout);
      free(given[i]);
    }
    fflush(stdout);
  }
  return 0;
}
