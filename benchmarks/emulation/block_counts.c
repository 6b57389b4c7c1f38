// A plugin for qemu-user 7.2: how often each block of instructions runs between marks.
//
//     qemu-aarch64 -plugin ./block_counts.so,out=FILE PROGRAM
//
// A program marks by the system call MARK, which no kernel has: with -1 counting begins, with -2 it ends, with n >= 0
// what follows belongs to section n (0 from the beginning on). FILE gets a line for each section and block that ran in
// it: section, address, instructions of the block, times. Debian ships no header of this interface, hence the prototypes.
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0xADA
#define BLOCKS (1u << 18)

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
EXPORT int qemu_plugin_version = 1;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb* block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb*));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int add, void* counter, uint64_t by);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id,
                                                 void (*call)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t));

static struct Block {
  uint64_t address, instructions, times, before;
} blocks[BLOCKS];
static FILE* out;
static int counting;
static int64_t section;

// The place of a block; the same for one that is translated anew.
static struct Block* find(uint64_t address, uint64_t instructions) {
  uint64_t at = (address * 0x9E3779B97F4A7C15u + instructions) >> 20;
  for (unsigned tries = 0; tries < BLOCKS; tries++) {
    struct Block* block = &blocks[(at + tries) % BLOCKS];
    if (block->instructions == 0) {
      block->address = address;
      block->instructions = instructions;
    }
    if (block->address == address && block->instructions == instructions) return block;
  }
  fprintf(stderr, "block_counts: more than %u blocks\n", BLOCKS);
  exit(1);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  struct Block* found = find(qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block));
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &found->times, 1);
}

static void end_section(void) {
  for (unsigned i = 0; i < BLOCKS; i++) {
    struct Block* block = &blocks[i];
    if (counting && block->times != block->before) {
      fprintf(out, "%" PRId64 " %" PRIx64 " %" PRIu64 " %" PRIu64 "\n", section, block->address, block->instructions,
              block->times - block->before);
    }
    block->before = block->times;
  }
}

static void system_call(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                        uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != MARK) return;
  end_section();
  if ((int64_t)a >= 0) {
    section = (int64_t)a;
    return;
  }
  counting = (int64_t)a == -1;
  section = 0;
  fflush(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t* info, int argc, char** argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) return fprintf(stderr, "block_counts: out=FILE is missing\n"), -1;
  out = fopen(argv[0] + 4, "w");
  if (!out) return perror(argv[0] + 4), -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, system_call);
  return 0;
}
