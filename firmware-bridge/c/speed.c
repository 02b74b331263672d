/* speed: how long the gantry's side takes. Medians of 21 runs; `make bench`. */
#define _GNU_SOURCE

#include "diffnr_producer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

typedef uint32_t crc_function(uint32_t, const void *, size_t);

static void crc_speed(const char *what, crc_function *crc, const unsigned char *data, size_t bytes) {
    uint64_t times[21];
    uint32_t sum = 0;
    size_t rounds = ((size_t)16 << 20) / bytes + 1;
    for (int run = 0; run < 21; run++) {
        uint64_t start = dnr_now_ns();
        for (size_t i = 0; i < rounds; i++) {
            sum ^= crc(sum, data, bytes);
        }
        times[run] = (dnr_now_ns() - start) / rounds;
    }
    qsort(times, 21, sizeof *times, compare);
    printf("%-34s %9zu bytes %10.1f us %7.2f GB/s   (%08x)\n", what, bytes, (double)times[10] / 1e3,
           (double)bytes / (double)times[10], (unsigned)sum);
}

int main(void) {
    size_t most = (size_t)64 << 20;
    unsigned char *data = malloc(most);
    if (data == NULL) {
        return 1;
    }
    for (size_t i = 0; i < most; i++) {
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    const size_t sizes[] = {252, 131072, 262144, (size_t)64 << 20};
    for (int i = 0; i < 4; i++) {
        crc_speed("C, hardware where there is any", dnr_crc32c, data, sizes[i]);
        crc_speed("C, look-up tables", dnr_crc32c_portable, data, sizes[i]);
    }
    free(data);
    return 0;
}
