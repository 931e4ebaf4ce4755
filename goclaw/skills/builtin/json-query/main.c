/* Evaluates a JSON Pointer (RFC 6901) on {"json"} or, without it, on the file on stdin. The whole
 * document is checked; of equal names in an object the last counts; numbers stay as written. */
#include "json.h"

enum { CHUNK = 1 << 20 };

static span pointer;
static span found;

/* `key` equals the reference token that starts at `at` (a '/' comes before it). */
static bool token_equals(uint32_t at, const uint8_t *key, uint32_t size) {
  uint32_t i = 0;
  for (; at < pointer.size && pointer.data[at] != '/'; at++, i++) {
    uint8_t byte = pointer.data[at];
    if (byte == '~') byte = pointer.data[++at] == '0' ? '~' : '/';
    if (i == size || key[i] != byte) return false;
  }
  return i == size;
}

/* The array index that the token says, -1 when it says none ("-", "01", "x", too large). */
static int64_t token_index(uint32_t at) {
  int64_t index = 0;
  uint32_t start = at;
  for (; at < pointer.size && pointer.data[at] != '/'; at++) {
    uint8_t byte = pointer.data[at];
    if (byte < '0' || byte > '9' || at - start > 9) return -1;
    index = index * 10 + (byte - '0');
  }
  bool leading_zero = pointer.data[start] == '0' && at - start > 1;
  return at == start || leading_zero ? -1 : index;
}

static uint32_t token_end(uint32_t at) {
  while (at < pointer.size && pointer.data[at] != '/') at++;
  return at;
}

/* Walks over the value under the cursor and notes in `found` what the pointer from `at` on
 * (at the end, or on a '/') refers to. */
static void walk(cursor *c, uint32_t at, uint32_t depth) {
  if (at == pointer.size) {
    const uint8_t *start = c->at;
    json_skip(c, depth);
    found = (span){(uint8_t *)start, (uint32_t)(c->at - start)};
    return;
  }
  uint32_t token = at + 1;
  if (json_peek(c) == '{') {
    for (bool more = json_open(c, '}', depth); more; more = json_more(c, '}')) {
      /* decoded in place: a name on the way is not part of any result */
      uint8_t *key = (uint8_t *)c->at + 1;
      bool equal = token_equals(token, key, json_string(c, key));
      json_colon(c);
      if (equal) {
        found = (span){NULL, 0};
        walk(c, token_end(token), depth + 1);
      } else {
        json_skip(c, depth + 1);
      }
    }
  } else if (json_peek(c) == '[') {
    int64_t wanted = token_index(token), index = 0;
    for (bool more = json_open(c, ']', depth); more; more = json_more(c, ']'), index++) {
      if (index == wanted) walk(c, token_end(token), depth + 1);
      else json_skip(c, depth + 1);
    }
  } else {
    json_scalar(c);
  }
}

static void check_pointer(void) {
  if (pointer.size && pointer.data[0] != '/') fail("pointer: it must be empty or begin with '/'");
  for (uint32_t i = 0; i < pointer.size; i++) {
    if (pointer.data[i] != '~') continue;
    uint8_t next = i + 1 < pointer.size ? pointer.data[i + 1] : 0;
    if (next != '0' && next != '1') fail("pointer: '~' must be followed by 0 or 1");
  }
}

static span read_file(void) {
  span all = {allocate(0), 0};
  for (;;) {
    /* nothing else is allocated meanwhile, so the chunks lie side by side */
    uint8_t *space = allocate(CHUNK);
    uint32_t got = 0, more;
    while (got < CHUNK && (more = read_some(space + got, CHUNK - got)) != 0) got += more;
    all.size += got;
    if (got < CHUNK) return all;
  }
}

static span document(span arguments) {
  span source = json_member(arguments, "json");
  if (!source.data && !json_member(arguments, "file").data) fail("json or file is missing");
  if (!source.data) return read_file();
  return *source.data == '"' ? json_text(source) : source;
}

/* The value without the space between its tokens. */
static void put_compact(span value) {
  bool quoted = false;
  for (uint32_t i = 0; i < value.size; i++) {
    uint8_t byte = value.data[i];
    if (quoted && byte == '\\') put_byte(value.data[i++]);
    else if (byte == '"') quoted = !quoted;
    else if (!quoted && (byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r')) continue;
    put_byte(value.data[i]);
  }
}

__attribute__((export_name("_start"))) void start(void) {
  span arguments = request();
  span pointer_source = json_member(arguments, "pointer");
  if (!pointer_source.data || *pointer_source.data != '"') fail("pointer: a string expected");
  pointer = json_text(pointer_source);
  check_pointer();
  span text = document(arguments);
  cursor c = {text.data, text.data + text.size};
  json_start = text.data;
  json_space(&c);
  walk(&c, 0, 0);
  json_end(&c);
  if (!found.data) {
    put_text("{\"found\": false}");
  } else {
    put_text("{\"found\": true, \"value\": ");
    put_compact(found);
    put_text("}");
  }
  flush();
}
