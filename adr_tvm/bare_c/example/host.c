/* The example on this machine. */
#include "board.h"

#include <stdio.h>
#include <time.h>

static FILE *files[8];

int32_t board_open(const char *name, int32_t write) {
  for (int32_t i = 0; i < 8; ++i) {
    if (files[i] != NULL) continue;
    files[i] = fopen(name, write ? "wb" : "rb");
    return files[i] == NULL ? -1 : i;
  }
  return -1;
}

int32_t board_read(int32_t file, void *to, int32_t bytes) {
  return (int32_t)fread(to, 1, (size_t)bytes, files[file]);
}

int32_t board_write(int32_t file, const void *from, int32_t bytes) {
  return fwrite(from, 1, (size_t)bytes, files[file]) == (size_t)bytes ? 0 : -1;
}

void board_close(int32_t file) {
  fclose(files[file]);
  files[file] = NULL;
}

void board_print(const char *text) {
  fputs(text, stdout);
}

uint32_t board_ticks(void) {
  return (uint32_t)((double)clock() * (BOARD_TICKS_PER_SECOND / (double)CLOCKS_PER_SEC));
}
