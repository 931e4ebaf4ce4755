/* Counts lines, words and bytes of the file on stdin. A line ends with LF, as `wc -l` counts; a
 * word is a run of bytes other than the six ASCII spaces, whatever the encoding. */
#include "skill.h"

#include <wasm_simd128.h>

/* Large, so that the host is asked seldom; pages a small file does not reach cost nothing. */
enum { BUFFER = 1 << 20, LANES = 16, ROUNDS_MAX = 255 };

static uint8_t buffer[BUFFER] __attribute__((aligned(16)));
static uint64_t lines, words, bytes;
static uint32_t before_is_space = 1;

static inline bool is_space(uint8_t byte) { return byte == ' ' || (uint8_t)(byte - '\t') <= 4; }

static uint32_t sum_lanes(v128_t counts) {
  v128_t sums = wasm_u16x8_extadd_pairwise_u8x16(counts);
  sums = wasm_u32x4_extadd_pairwise_u16x8(sums);
  return wasm_u32x4_extract_lane(sums, 0) + wasm_u32x4_extract_lane(sums, 1) +
         wasm_u32x4_extract_lane(sums, 2) + wasm_u32x4_extract_lane(sums, 3);
}

/* `size` is a multiple of 16. Lane counters are bytes: they are summed before they can wrap. */
static void count_blocks(const uint8_t *at, uint32_t size) {
  const v128_t newline = wasm_i8x16_splat('\n'), blank = wasm_i8x16_splat(' ');
  const v128_t tab = wasm_i8x16_splat('\t'), five = wasm_i8x16_splat(5);
  v128_t previous = wasm_i8x16_splat(before_is_space ? -1 : 0);
  while (size) {
    uint32_t rounds = size / LANES < ROUNDS_MAX ? size / LANES : ROUNDS_MAX;
    size -= rounds * LANES;
    v128_t line_counts = wasm_i8x16_splat(0), word_counts = wasm_i8x16_splat(0);
    for (; rounds; rounds--, at += LANES) {
      v128_t block = wasm_v128_load(at);
      v128_t spaces = wasm_v128_or(wasm_i8x16_eq(block, blank),
                                   wasm_u8x16_lt(wasm_i8x16_sub(block, tab), five));
      /* the same lanes one byte later: lane 0 comes from the block before */
      v128_t shifted = wasm_i8x16_shuffle(previous, spaces, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
                                          25, 26, 27, 28, 29, 30);
      line_counts = wasm_i8x16_sub(line_counts, wasm_i8x16_eq(block, newline));
      word_counts = wasm_i8x16_sub(word_counts, wasm_v128_andnot(shifted, spaces));
      previous = spaces;
    }
    lines += sum_lanes(line_counts);
    words += sum_lanes(word_counts);
  }
  before_is_space = wasm_u8x16_extract_lane(previous, 15) != 0;
}

static void count_bytes(const uint8_t *at, uint32_t size) {
  for (; size; size--, at++) {
    uint32_t space = is_space(*at);
    lines += *at == '\n';
    words += before_is_space & !space;
    before_is_space = space;
  }
}

__attribute__((export_name("_start"))) void start(void) {
  for (uint32_t got; (got = read_some(buffer, BUFFER)) != 0;) {
    uint32_t blocks = got & ~(uint32_t)(LANES - 1);
    count_blocks(buffer, blocks);
    count_bytes(buffer + blocks, got - blocks);
    bytes += got;
  }
  put_text("{\"lines\": ");
  put_number(lines);
  put_text(", \"words\": ");
  put_number(words);
  put_text(", \"bytes\": ");
  put_number(bytes);
  put_text("}");
  flush();
}
