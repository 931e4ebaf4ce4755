/* The host's door for a skill of ABI wasi-command/1, without a C library: the module stays a few
 * kilobytes and its bytes depend on the compiler alone. Owns the request, stdin and stdout. */
#ifndef SKILL_H
#define SKILL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WASI(name) \
  __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

typedef struct {
  uint8_t *data;
  uint32_t size;
} span;

WASI(args_sizes_get) int32_t wasi_args_sizes_get(uint32_t *count, uint32_t *size);
WASI(args_get) int32_t wasi_args_get(uint8_t **pointers, uint8_t *buffer);
WASI(fd_read) int32_t wasi_fd_read(int32_t fd, const span *into, uint32_t count, uint32_t *got);
WASI(fd_write) int32_t wasi_fd_write(int32_t fd, const span *from, uint32_t count, uint32_t *put);
WASI(proc_exit) _Noreturn void wasi_proc_exit(int32_t code);

extern uint8_t __heap_base;

enum { PAGE = 65536, OUTPUT_BUFFER = 4096 };

/* -- stdout ------------------------------------------------------------------------------- */

static uint8_t output[OUTPUT_BUFFER];
static uint32_t output_used;

static void flush(void) {
  span rest = {output, output_used};
  while (rest.size) {
    uint32_t put = 0;
    if (wasi_fd_write(1, &rest, 1, &put) != 0 || put == 0) wasi_proc_exit(2);
    rest.data += put;
    rest.size -= put;
  }
  output_used = 0;
}

static inline void put_byte(uint8_t byte) {
  if (output_used == OUTPUT_BUFFER) flush();
  output[output_used++] = byte;
}

static inline void put_text(const char *text) {
  while (*text) put_byte((uint8_t)*text++);
}

static inline void put_number(uint64_t number) {
  char digits[20];
  int count = 0;
  do digits[count++] = (char)('0' + number % 10);
  while (number /= 10);
  while (count) put_byte((uint8_t)digits[--count]);
}

/* The skill's own error: {"error": reason} and exit code 1. `reason` needs no escaping. */
static inline _Noreturn void fail(const char *reason) {
  output_used = 0;
  put_text("{\"error\": \"");
  put_text(reason);
  put_text("\"}");
  flush();
  wasi_proc_exit(1);
}

/* -- memory: taken from the end of the heap, never given back; an instance lives for one call - */

static uint8_t *heap_end;

static inline uint8_t *allocate(uint32_t size) {
  if (!heap_end) heap_end = &__heap_base;
  uint8_t *start = heap_end;
  uint64_t needed = (uint64_t)(uintptr_t)start + size;
  uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
  if (needed > have) {
    uint64_t pages = (needed - have + PAGE - 1) / PAGE;
    if (pages > 65536 || __builtin_wasm_memory_grow(0, (uint32_t)pages) == (size_t)-1)
      fail("the input is larger than this skill's memory");
  }
  heap_end = start + size;
  return start;
}

/* -- the request: the second argument ------------------------------------------------------- */

static inline span request(void) {
  uint32_t count, size;
  if (wasi_args_sizes_get(&count, &size) != 0 || count < 2) fail("no request was given");
  uint8_t *buffer = allocate(size + 8);
  uint8_t **pointers =
      (uint8_t **)(((uintptr_t)allocate((count + 2) * sizeof(uint8_t *)) + 7) & ~(uintptr_t)7);
  if (wasi_args_get(pointers, buffer) != 0) fail("no request was given");
  span found = {pointers[1], 0};
  while (found.data[found.size]) found.size++;
  return found;
}

/* -- stdin ---------------------------------------------------------------------------------- */

/* Bytes read into `into`, at most `size`; 0 at the end of the file. */
static inline uint32_t read_some(uint8_t *into, uint32_t size) {
  span space = {into, size};
  uint32_t got = 0;
  if (wasi_fd_read(0, &space, 1, &got) != 0) fail("the file could not be read");
  return got;
}

#endif
