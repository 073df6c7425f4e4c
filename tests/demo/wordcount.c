/* wordcount [FILE]: prints each word of FILE (or stdin) with its count, the most frequent first. */
#include "tally.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what)
{
    fprintf(stderr, "wordcount: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "stdin";
    FILE *file = argc > 1 ? fopen(name, "r") : stdin;
    if (!file)
        return fail(name);
    struct tally *tally = tally_new();
    if (!tally)
        return fail(name);
    char line[4096]; /* a longer line is cut, and a word there with it */
    while (fgets(line, sizeof line, file))
        if (tally_add(tally, line, strlen(line)))
            return fail(name);
    if (ferror(file))
        return fail(name);
    struct entry *entries = tally_sorted(tally);
    if (!entries && tally_size(tally))
        return fail(name);
    for (size_t i = 0; i < tally_size(tally); i++)
        printf("%zu %s\n", entries[i].count, entries[i].word);
    free(entries);
    tally_free(tally);
    return fflush(stdout) ? fail("stdout") : 0;
}
