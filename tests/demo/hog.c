/* hog MIB [RATE]: eats MIB mebibytes in steps of 16, RATE mebibytes a second (0: at once).
 *
 * Every page is written, so that the memory is really used and not only promised. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { STEP = 16, PAGE = 4096 };

int main(int argc, char **argv)
{
    long goal = argc > 1 ? atol(argv[1]) : 0;
    long rate = argc > 2 ? atol(argv[2]) : 0;
    if (goal <= 0 || rate < 0) {
        fprintf(stderr, "usage: hog MIB [RATE]\n");
        return 2;
    }
    long pause = rate ? STEP * 1000 / rate : 0; /* milliseconds */
    struct timespec rest = {pause / 1000, pause % 1000 * 1000000};
    for (long eaten = 0; eaten < goal; eaten += STEP) {
        /* Volatile, or the compiler would see that nobody reads it and drop it all. */
        volatile char *block = malloc((size_t)STEP << 20);
        if (!block) {
            perror("hog: malloc");
            return 1;
        }
        for (long at = 0; at < (long)STEP << 20; at += PAGE)
            block[at] = 1; /* never freed: that is the point */
        fprintf(stderr, "hog: %ld MiB\n", eaten + STEP);
        if (rate)
            nanosleep(&rest, NULL);
    }
    return 0;
}
