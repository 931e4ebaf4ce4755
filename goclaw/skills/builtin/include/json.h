/* A strict reader of JSON (RFC 8259): UTF-8 only, no byte order mark, no lone surrogates, depth
 * and numbers bounded as everywhere in goclaw. It builds nothing: it walks, checks and compares. */
#ifndef JSON_H
#define JSON_H

#include "skill.h"

/* core/limits.py: JSON_DEPTH_MAX and JSON_NUMBER_CHARS_MAX; a test compares them. */
enum { JSON_DEPTH_MAX = 256, JSON_NUMBER_CHARS_MAX = 400 };

typedef struct {
  const uint8_t *at, *end;
} cursor;

/* Where a syntax error would be reported: "invalid JSON at byte N: what", N from 0. */
static const uint8_t *json_start;

static inline _Noreturn void json_fail(const cursor *c, const char *what) {
  output_used = 0;
  put_text("{\"error\": \"invalid JSON at byte ");
  put_number((uint64_t)(c->at - json_start));
  put_text(": ");
  put_text(what);
  put_text("\"}");
  flush();
  wasi_proc_exit(1);
}

static inline int json_peek(const cursor *c) { return c->at < c->end ? *c->at : -1; }

static inline void json_space(cursor *c) {
  while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r'))
    c->at++;
}

static inline uint32_t json_hex4(cursor *c) {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++) {
    int byte = json_peek(c);
    int lower = byte | 32;
    if (byte >= '0' && byte <= '9') value = value * 16 + (uint32_t)(byte - '0');
    else if (lower >= 'a' && lower <= 'f') value = value * 16 + (uint32_t)(lower - 'a' + 10);
    else json_fail(c, "four hexadecimal digits expected after \\\\u");
    c->at++;
  }
  return value;
}

/* One character outside ASCII: its length, or an error when it is not UTF-8. */
static inline uint32_t json_utf8(const cursor *c) {
  const uint8_t *at = c->at;
  uint32_t left = (uint32_t)(c->end - at), size, low = 0x80, high = 0xbf;
  if (*at >= 0xc2 && *at <= 0xdf) size = 2;
  else if (*at >= 0xe0 && *at <= 0xef) size = 3;
  else if (*at >= 0xf0 && *at <= 0xf4) size = 4;
  else json_fail(c, "not UTF-8");
  if (*at == 0xe0) low = 0xa0;
  if (*at == 0xed) high = 0x9f;
  if (*at == 0xf0) low = 0x90;
  if (*at == 0xf4) high = 0x8f;
  if (left < size || at[1] < low || at[1] > high) json_fail(c, "not UTF-8");
  for (uint32_t i = 2; i < size; i++)
    if ((at[i] & 0xc0) != 0x80) json_fail(c, "not UTF-8");
  return size;
}

/* The text of an escape, after its backslash: UTF-8 into `into`, its length as result. */
static inline uint32_t json_escape(cursor *c, uint8_t into[4]) {
  int byte = json_peek(c);
  static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  for (int i = 0; names[i]; i++)
    if (byte == names[i]) {
      c->at++;
      into[0] = (uint8_t)meanings[i];
      return 1;
    }
  if (byte != 'u') json_fail(c, "unknown escape");
  c->at++;
  uint32_t code = json_hex4(c);
  if (code >= 0xdc00 && code <= 0xdfff) json_fail(c, "lone surrogate");
  if (code >= 0xd800 && code <= 0xdbff) {
    if (c->end - c->at < 2 || c->at[0] != '\\' || c->at[1] != 'u') json_fail(c, "lone surrogate");
    c->at += 2;
    uint32_t low = json_hex4(c);
    if (low < 0xdc00 || low > 0xdfff) json_fail(c, "lone surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  if (code < 0x80) {
    into[0] = (uint8_t)code;
    return 1;
  }
  uint32_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (uint32_t i = size; --i; code >>= 6) into[i] = (uint8_t)(0x80 | (code & 0x3f));
  into[0] = (uint8_t)((size == 2 ? 0xc0 : size == 3 ? 0xe0 : 0xf0) | code);
  return size;
}

/* Walks over a string and writes its decoded bytes to `into` unless that is NULL; their count.
 * The decoded text is never longer than its source. */
static inline uint32_t json_string(cursor *c, uint8_t *into) {
  if (json_peek(c) != '"') json_fail(c, "a string expected");
  uint32_t used = 0;
  c->at++;
  for (;;) {
    int byte = json_peek(c);
    if (byte < 0) json_fail(c, "a string without end");
    if (byte == '"') break;
    if (byte < 0x20) json_fail(c, "a control character in a string");
    uint8_t decoded[4];
    const uint8_t *from = decoded;
    uint32_t size;
    if (byte == '\\') {
      c->at++;
      size = json_escape(c, decoded);
    } else {
      from = c->at;
      size = byte < 0x80 ? 1 : json_utf8(c);
      c->at += size;
    }
    if (into)
      for (uint32_t i = 0; i < size; i++) into[used + i] = from[i];
    used += size;
  }
  c->at++;
  return used;
}

static inline void json_digits(cursor *c) {
  if (json_peek(c) < '0' || json_peek(c) > '9') json_fail(c, "a digit expected");
  while (json_peek(c) >= '0' && json_peek(c) <= '9') c->at++;
}

static inline void json_number(cursor *c) {
  const uint8_t *start = c->at;
  if (json_peek(c) == '-') c->at++;
  if (json_peek(c) == '0') c->at++;
  else json_digits(c);
  if (json_peek(c) == '.') {
    c->at++;
    json_digits(c);
  }
  if (json_peek(c) == 'e' || json_peek(c) == 'E') {
    c->at++;
    if (json_peek(c) == '+' || json_peek(c) == '-') c->at++;
    json_digits(c);
  }
  if (c->at - start > JSON_NUMBER_CHARS_MAX) json_fail(c, "a number of more than 400 characters");
}

static inline void json_word(cursor *c, const char *word) {
  for (; *word; word++, c->at++)
    if (json_peek(c) != *word) json_fail(c, "a value expected");
}

/* A string, number or word; objects and arrays are the caller's. */
static inline void json_scalar(cursor *c) {
  switch (json_peek(c)) {
    case '"': json_string(c, NULL); break;
    case 't': json_word(c, "true"); break;
    case 'f': json_word(c, "false"); break;
    case 'n': json_word(c, "null"); break;
    case '-': case '0': case '1': case '2': case '3': case '4':
    case '5': case '6': case '7': case '8': case '9': json_number(c); break;
    default: json_fail(c, "a value expected");
  }
}

/* After a member: true when another follows, with the cursor on it. */
static inline bool json_more(cursor *c, char closing) {
  json_space(c);
  int byte = json_peek(c);
  if (byte != ',' && byte != closing) json_fail(c, "a comma or the end expected");
  c->at++;
  json_space(c);
  return byte == ',';
}

/* After an opening bracket: true when it is not closed at once. */
static inline bool json_open(cursor *c, char closing, uint32_t depth) {
  if (depth >= JSON_DEPTH_MAX) json_fail(c, "nested deeper than 256");
  c->at++;
  json_space(c);
  if (json_peek(c) != closing) return true;
  c->at++;
  return false;
}

static inline void json_colon(cursor *c) {
  json_space(c);
  if (json_peek(c) != ':') json_fail(c, "a colon expected");
  c->at++;
  json_space(c);
}

/* Walks over one value; the cursor stands on its first byte. */
static void json_skip(cursor *c, uint32_t depth) {
  if (json_peek(c) == '{') {
    for (bool more = json_open(c, '}', depth); more; more = json_more(c, '}')) {
      json_string(c, NULL);
      json_colon(c);
      json_skip(c, depth + 1);
    }
  } else if (json_peek(c) == '[') {
    for (bool more = json_open(c, ']', depth); more; more = json_more(c, ']'))
      json_skip(c, depth + 1);
  } else {
    json_scalar(c);
  }
}

static inline void json_end(cursor *c) {
  json_space(c);
  if (c->at != c->end) json_fail(c, "something after the value");
}

/* The member `name` (ASCII) of the object `text`: its source; data NULL when there is none. */
static inline span json_member(span text, const char *name) {
  span found = {NULL, 0};
  cursor c = {text.data, text.data + text.size};
  json_start = text.data;
  json_space(&c);
  if (json_peek(&c) != '{') json_fail(&c, "the request is no object");
  uint8_t *key = allocate(text.size);
  for (bool more = json_open(&c, '}', 0); more; more = json_more(&c, '}')) {
    uint32_t size = json_string(&c, key), i = 0;
    while (i < size && name[i] && key[i] == (uint8_t)name[i]) i++;
    bool equal = i == size && !name[i];
    json_colon(&c);
    const uint8_t *start = c.at;
    json_skip(&c, 1);
    if (equal) found = (span){(uint8_t *)start, (uint32_t)(c.at - start)};
  }
  json_end(&c);
  return found;
}

/* The text of a JSON string that was walked over before. */
static inline span json_text(span source) {
  cursor c = {source.data, source.data + source.size};
  uint8_t *into = allocate(source.size);
  return (span){into, json_string(&c, into)};
}

#endif
