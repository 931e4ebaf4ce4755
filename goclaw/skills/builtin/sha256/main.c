/* SHA-256 (FIPS 180-4) of {"text"} or, without it, of the file on stdin. */
#include "json.h"

enum { BUFFER = 1 << 18, BLOCK = 64 };

static uint8_t buffer[BUFFER + BLOCK];
static uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t rotated(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void digest_blocks(const uint8_t *at, uint32_t size) {
  for (; size; size -= BLOCK, at += BLOCK) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
      w[i] = (uint32_t)at[4 * i] << 24 | (uint32_t)at[4 * i + 1] << 16 |
             (uint32_t)at[4 * i + 2] << 8 | at[4 * i + 3];
    for (int i = 16; i < 64; i++) {
      uint32_t low = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t high = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
      uint32_t one = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) +
                     constants[i] + w[i];
      uint32_t two =
          (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
}

/* The last `size` bytes at `at` (fewer than a block), padding and length. */
static void digest_end(const uint8_t *at, uint32_t size, uint64_t total) {
  uint8_t last[2 * BLOCK] = {0};
  uint32_t padded = size < BLOCK - 8 ? BLOCK : 2 * BLOCK;
  for (uint32_t i = 0; i < size; i++) last[i] = at[i];
  last[size] = 0x80;
  for (uint32_t i = 0; i < 8; i++) last[padded - 1 - i] = (uint8_t)(total * 8 >> 8 * i);
  digest_blocks(last, padded);
}

static uint64_t digest_file(void) {
  uint64_t total = 0;
  uint32_t held = 0;
  for (uint32_t got; (got = read_some(buffer + held, BUFFER)) != 0;) {
    total += got;
    held += got;
    uint32_t whole = held & ~(uint32_t)(BLOCK - 1);
    digest_blocks(buffer, whole);
    held -= whole;
    for (uint32_t i = 0; i < held; i++) buffer[i] = buffer[whole + i];
  }
  digest_end(buffer, held, total);
  return total;
}

static uint64_t digest_text(span text) {
  uint32_t whole = text.size & ~(uint32_t)(BLOCK - 1);
  digest_blocks(text.data, whole);
  digest_end(text.data + whole, text.size - whole, text.size);
  return text.size;
}

__attribute__((export_name("_start"))) void start(void) {
  span arguments = request(), source = json_member(arguments, "text");
  if (source.data && *source.data != '"') fail("text: a string expected");
  if (!source.data && !json_member(arguments, "file").data) fail("text or file is missing");
  uint64_t total = source.data ? digest_text(json_text(source)) : digest_file();
  put_text("{\"sha256\": \"");
  for (int i = 0; i < 8; i++)
    for (int shift = 28; shift >= 0; shift -= 4)
      put_byte((uint8_t)"0123456789abcdef"[state[i] >> shift & 15]);
  put_text("\", \"bytes\": ");
  put_number(total);
  put_text("}");
  flush();
}
