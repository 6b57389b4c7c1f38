/* What the example needs of the machine it runs on: files, a line of text, a clock. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

/* A file by its name, to read or to write; negative where there is none. */
int32_t board_open(const char *name, int32_t write);

/* Bytes read, fewer at the end of the file. */
int32_t board_read(int32_t file, void *to, int32_t bytes);

/* 0 if all was written. */
int32_t board_write(int32_t file, const void *from, int32_t bytes);

void board_close(int32_t file);
void board_print(const char *text);

/* A clock that goes on; BOARD_TICKS_PER_SECOND to a second. */
uint32_t board_ticks(void);

#endif
