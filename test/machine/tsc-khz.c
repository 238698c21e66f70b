/* Prints how fast the processor's time stamp counter counts, in kHz. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC_RAW, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

int main(void) {
    const uint64_t from_ns = now_ns(), from = __rdtsc();
    uint64_t passed_ns;
    while ((passed_ns = now_ns() - from_ns) < 50000000) {}
    printf("%.0f\n", (__rdtsc() - from) * 1e6 / passed_ns);
    return 0;
}
