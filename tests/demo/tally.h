/* Counts how often each word occurs. A word is a run of letters and digits, case ignored. */
#ifndef TALLY_H
#define TALLY_H

#include <stddef.h>

struct tally;

struct entry {
    const char *word;
    size_t count;
};

/* NULL when there is no memory. */
struct tally *tally_new(void);
void tally_free(struct tally *tally);

/* Count the words of a text; a word never spans two calls. 0, or -1 when there is no memory. */
int tally_add(struct tally *tally, const char *text, size_t length);

size_t tally_count(const struct tally *tally, const char *word);
size_t tally_size(const struct tally *tally);

/* All entries, the most frequent first, ties by word. The caller frees the array; the words
 * belong to the tally. NULL when there is no memory or no word. */
struct entry *tally_sorted(const struct tally *tally);

#endif
