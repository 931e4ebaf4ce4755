/* SHA-256 (FIPS 180-4), for chain links made in the writer's thread, where hashlib cannot be called. */
#ifndef GOCLAW_SHA256_H
#define GOCLAW_SHA256_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define GC_SHA_NI 1
#endif

typedef struct {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64];
} gc_sha256;

static const uint32_t gc_sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t gc_ror(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void gc_sha_blocks_plain(uint32_t h[8], const uint8_t *p, size_t count) {
    uint32_t w[64];
    while (count--) {
        for (int i = 0; i < 16; i++, p += 4)
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        for (int i = 16; i < 64; i++) {
            uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (gc_ror(a, 7) ^ gc_ror(a, 18) ^ a >> 3) + w[i - 7] + (gc_ror(b, 17) ^ gc_ror(b, 19) ^ b >> 10);
        }
        uint32_t s[8];
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i++) {
            uint32_t t1 = s[7] + (gc_ror(s[4], 6) ^ gc_ror(s[4], 11) ^ gc_ror(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + gc_sha_k[i] + w[i];
            uint32_t t2 = (gc_ror(s[0], 2) ^ gc_ror(s[0], 13) ^ gc_ror(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s[7] = s[6]; s[6] = s[5]; s[5] = s[4]; s[4] = s[3] + t1;
            s[3] = s[2]; s[2] = s[1]; s[1] = s[0]; s[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

#ifdef GC_SHA_NI
/* The CPU's own rounds (Intel SHA extensions); four words a step. */
__attribute__((target("sha,sse4.1,ssse3"))) static void gc_sha_blocks_ni(uint32_t h[8], const uint8_t *p, size_t count) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i t = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xB1);
    __m128i s1 = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1B);
    __m128i s0 = _mm_alignr_epi8(t, s1, 8);
    s1 = _mm_blend_epi16(s1, t, 0xF0);
    while (count--) {
        __m128i m[4], save0 = s0, save1 = s1;
        for (int i = 0; i < 4; i++) m[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), swap);
        for (int i = 0; i < 16; i++) {
            __m128i x = _mm_add_epi32(m[i & 3], _mm_loadu_si128((const __m128i *)(gc_sha_k + 4 * i)));
            s1 = _mm_sha256rnds2_epu32(s1, s0, x);
            s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32(x, 0x0E));
            if (i < 12) {
                __m128i next = _mm_sha256msg1_epu32(m[i & 3], m[(i + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(m[(i + 3) & 3], m[(i + 2) & 3], 4));
                m[i & 3] = _mm_sha256msg2_epu32(next, m[(i + 3) & 3]);
            }
        }
        s0 = _mm_add_epi32(s0, save0);
        s1 = _mm_add_epi32(s1, save1);
        p += 64;
    }
    t = _mm_shuffle_epi32(s0, 0x1B);
    s1 = _mm_shuffle_epi32(s1, 0xB1);
    _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(t, s1, 0xF0));
    _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(s1, t, 8));
}
#endif

static void (*gc_sha_blocks)(uint32_t[8], const uint8_t *, size_t) = gc_sha_blocks_plain;

/* Called once at import, so that no thread ever sees the pointer move. */
static inline int gc_sha256_setup(int plain) {
#ifdef GC_SHA_NI
    uint32_t a = 7, b = 0, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!plain && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3")) {
        gc_sha_blocks = gc_sha_blocks_ni;
        return 1;
    }
#endif
    (void)plain;
    gc_sha_blocks = gc_sha_blocks_plain;
    return 0;
}

static inline void gc_sha256_begin(gc_sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->h, start, sizeof start);
    s->bytes = 0;
}

static inline void gc_sha256_add(gc_sha256 *s, const void *data, size_t n) {
    const uint8_t *p = (const uint8_t *)data;
    size_t have = s->bytes & 63;
    if (!n) return; /* then data may be NULL */
    s->bytes += n;
    if (have) {
        size_t take = 64 - have < n ? 64 - have : n;
        memcpy(s->block + have, p, take);
        p += take;
        n -= take;
        if (have + take < 64) return;
        gc_sha_blocks(s->h, s->block, 1);
    }
    if (n >= 64) {
        gc_sha_blocks(s->h, p, n / 64);
        p += n & ~(size_t)63;
        n &= 63;
    }
    if (n) memcpy(s->block, p, n);
}

static inline void gc_sha256_end(gc_sha256 *s, uint8_t out[32]) {
    static const uint8_t pad[64] = {0x80};
    uint64_t bits = s->bytes * 8;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(bits >> (56 - 8 * i));
    gc_sha256_add(s, pad, 1 + (119 - (s->bytes & 63)) % 64);
    gc_sha256_add(s, length, 8);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) out[4 * i + j] = (uint8_t)(s->h[i] >> (24 - 8 * j));
}
#endif
