/* An open-addressing hash table: its size is a power of two, and at least half of it is empty,
 * so that every probe ends. */
#include "tally.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    char *word; /* NULL: empty */
    size_t count;
};

struct tally {
    struct slot *slots;
    size_t capacity;
    size_t used;
};

static size_t hash(const char *word, size_t length)
{
    size_t value = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        value = (value ^ (unsigned char)tolower((unsigned char)word[i])) * 16777619u;
    return value;
}

static int same(const char *stored, const char *word, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (stored[i] != tolower((unsigned char)word[i]))
            return 0; /* the end of a shorter one is here too */
    return stored[length] == '\0';
}

static struct slot *find(const struct tally *tally, const char *word, size_t length)
{
    size_t at = hash(word, length);
    for (;; at++) {
        struct slot *slot = &tally->slots[at & (tally->capacity - 1)];
        if (!slot->word || same(slot->word, word, length))
            return slot;
    }
}

static int grow(struct tally *tally)
{
    struct tally larger = {NULL, tally->capacity * 2, tally->used};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots)
        return -1;
    for (size_t i = 0; i < tally->capacity; i++)
        if (tally->slots[i].word)
            *find(&larger, tally->slots[i].word, strlen(tally->slots[i].word)) = tally->slots[i];
    free(tally->slots);
    *tally = larger;
    return 0;
}

static int add_word(struct tally *tally, const char *word, size_t length)
{
    if (tally->used * 2 >= tally->capacity && grow(tally))
        return -1;
    struct slot *slot = find(tally, word, length);
    if (!slot->word) {
        char *copy = malloc(length + 1);
        if (!copy)
            return -1;
        for (size_t i = 0; i < length; i++)
            copy[i] = (char)tolower((unsigned char)word[i]);
        copy[length] = '\0';
        slot->word = copy;
        tally->used++;
    }
    slot->count++;
    return 0;
}

struct tally *tally_new(void)
{
    struct tally *tally = malloc(sizeof *tally);
    if (!tally)
        return NULL;
    tally->capacity = 16;
    tally->used = 0;
    tally->slots = calloc(tally->capacity, sizeof *tally->slots);
    if (!tally->slots) {
        free(tally);
        return NULL;
    }
    return tally;
}

void tally_free(struct tally *tally)
{
    if (!tally)
        return;
    for (size_t i = 0; i < tally->capacity; i++)
        free(tally->slots[i].word);
    free(tally->slots);
    free(tally);
}

int tally_add(struct tally *tally, const char *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        size_t start = at;
        while (at < length && isalnum((unsigned char)text[at]))
            at++;
        if (at > start && add_word(tally, text + start, at - start))
            return -1;
        at += at == start;
    }
    return 0;
}

size_t tally_count(const struct tally *tally, const char *word)
{
    return find(tally, word, strlen(word))->count;
}

size_t tally_size(const struct tally *tally)
{
    return tally->used;
}

static int by_count(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->word, b->word);
}

struct entry *tally_sorted(const struct tally *tally)
{
    struct entry *entries = tally->used ? malloc(tally->used * sizeof *entries) : NULL;
    if (!entries)
        return NULL;
    size_t n = 0;
    for (size_t i = 0; i < tally->capacity; i++)
        if (tally->slots[i].word)
            entries[n++] = (struct entry){tally->slots[i].word, tally->slots[i].count};
    qsort(entries, n, sizeof *entries, by_count);
    return entries;
}
