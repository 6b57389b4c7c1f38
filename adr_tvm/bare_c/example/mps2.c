/* The example on Arm's MPS2 board with a Cortex-M4 (AN386) or Cortex-M7 (AN500): start, and semihosting for files. */
#include "board.h"

#include <string.h>

/* Of the linker script. */
extern uint32_t stack_top, data_start, data_end, data_source, bss_start, bss_end;

int main(void);
void reset(void);

/* Operations of semihosting, as in Arm's "Semihosting for AArch32 and AArch64". */
enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT = 0x20 };
enum { READ_BINARY = 1, WRITE_BINARY = 5, APPLICATION_EXIT = 0x20026, RUN_TIME_ERROR = 0x20023 };

static int32_t semihosting(uint32_t operation, const void *arguments) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return (int32_t)r0;
}

int32_t board_open(const char *name, int32_t write) {
  const uint32_t arguments[3] = {(uint32_t)name, write ? WRITE_BINARY : READ_BINARY, (uint32_t)strlen(name)};
  return semihosting(SYS_OPEN, arguments);
}

int32_t board_read(int32_t file, void *to, int32_t bytes) {
  const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)to, (uint32_t)bytes};
  return bytes - semihosting(SYS_READ, arguments);
}

int32_t board_write(int32_t file, const void *from, int32_t bytes) {
  const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)from, (uint32_t)bytes};
  return semihosting(SYS_WRITE, arguments) == 0 ? 0 : -1;
}

void board_close(int32_t file) {
  const uint32_t arguments[1] = {(uint32_t)file};
  semihosting(SYS_CLOSE, arguments);
}

void board_print(const char *text) {
  semihosting(SYS_WRITE0, text);
}

/* Timer 0 of the board counts down at 25 MHz. */
#define TIMER ((volatile uint32_t *)0x40000000)

uint32_t board_ticks(void) {
  return UINT32_MAX - TIMER[1];
}

static void leave(uint32_t reason, uint32_t status) {
  const uint32_t arguments[2] = {reason, status};
  for (;;) semihosting(SYS_EXIT, arguments);
}

static void fault(void) {
  board_print("a processor fault\n");
  leave(RUN_TIME_ERROR, 0);
}

void reset(void) {
  volatile uint32_t *const access = (volatile uint32_t *)0xE000ED88; /* CPACR */
  *access |= 0xFu << 20;                                             /* the floating-point unit */
  __asm__ volatile("dsb\n isb");
  memcpy(&data_start, &data_source, (size_t)((char *)&data_end - (char *)&data_start));
  memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
  TIMER[2] = TIMER[1] = UINT32_MAX;
  TIMER[0] = 1;
  leave(APPLICATION_EXIT, (uint32_t)main());
}

typedef struct {
  uint32_t *stack;
  void (*handlers[15])(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table vectors = {
    &stack_top, {reset, fault, fault, fault, fault, fault},
};
