/* The library's tests: every check is counted, a failed one is named, the exit code tells. */
#include "tally.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks, failures;

static void check(int ok, const char *what, int line)
{
    checks++;
    if (ok)
        return;
    failures++;
    fprintf(stderr, "test_tally.c:%d: failed: %s\n", line, what);
}
#define CHECK(condition) check(condition, #condition, __LINE__)

static struct tally *tally_of(const char *text)
{
    struct tally *tally = tally_new();
    if (!tally || tally_add(tally, text, strlen(text)))
        abort();
    return tally;
}

static void counts_words(void)
{
    struct tally *tally = tally_of("one two, Two;three THREE\nthree3");
    CHECK(tally_count(tally, "one") == 1);
    CHECK(tally_count(tally, "two") == 2);
    CHECK(tally_count(tally, "three") == 2);
    CHECK(tally_count(tally, "three3") == 1);
    CHECK(tally_count(tally, "thre") == 0);
    CHECK(tally_size(tally) == 4);
    tally_free(tally);
}

static void an_empty_text_has_no_words(void)
{
    struct tally *tally = tally_of(" \n.,;");
    CHECK(tally_size(tally) == 0);
    CHECK(tally_sorted(tally) == NULL);
    tally_free(tally);
}

static void the_most_frequent_comes_first(void)
{
    struct tally *tally = tally_of("b a c c b c d");
    struct entry *entries = tally_sorted(tally);
    const char *order[] = {"c", "b", "a", "d"};
    for (size_t i = 0; i < 4; i++)
        CHECK(entries && strcmp(entries[i].word, order[i]) == 0);
    free(entries);
    tally_free(tally);
}

static void grows(void)
{
    struct tally *tally = tally_new();
    char word[32];
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 100000; i++) {
            int length = snprintf(word, sizeof word, "w%d", i);
            if (!tally || tally_add(tally, word, (size_t)length))
                abort();
        }
    CHECK(tally_size(tally) == 100000);
    CHECK(tally_count(tally, "w0") == 2);
    CHECK(tally_count(tally, "w99999") == 2);
    CHECK(tally_count(tally, "w100000") == 0);
    tally_free(tally);
}

int main(void)
{
    counts_words();
    an_empty_text_has_no_words();
    the_most_frequent_comes_first();
    grows();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
