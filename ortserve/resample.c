/* A rectangle of a resized picture, with Pillow's pixels: the algorithm of its src/libImaging/Resample.c (MIT-CMU licence), of whose
   result only the wanted part is computed, by vectors. `resample.py` compiles, opens and calls it.

   The filter's weights are doubles by Pillow's expressions in Pillow's order, then integers of PRECISION_BITS; each of the two
   passes rounds to 8 bits, and which comes first is Pillow's choice. A weight depends on its pixel's place alone, so those of a part are
   those of the whole. Along an axis that keeps its size the only weight is 1, which gives the byte itself: Pillow leaves that pass out.
   Rows go from one pass to the other through a ring of as many as one row of the result needs, so that a picture of any size takes no more
   memory than that. Nothing here is shared: threads may call it at once. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && !defined(PLAIN) /* the tests compile it both ways */
#define AVX2
#endif

#define PRECISION_BITS (32 - 8 - 2)
#define ROWS 4                 /* go across together: their pixels of one place are 16 bytes */
#define LARGEST_SIDE (1 << 24) /* Pillow keeps sides in floats, which are exact up to here */

enum { DONE, NONSENSE, NO_MEMORY };

static double bilinear(double x) {
    if (x < 0.0) x = -x;
    if (x < 1.0) return 1.0 - x;
    return 0.0;
}

static double bicubic(double x) {
#define a -0.5
    if (x < 0.0) x = -x;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
#undef a
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x = x * M_PI;
    return sin(x) / x;
}

static double lanczos(double x) {
    if (-3.0 <= x && x < 3.0) return sinc(x) * sinc(x / 3);
    return 0.0;
}

/* By the numbers of PIL.Image.Resampling. */
static const struct filter {
    double (*weight)(double x);
    double support;
} FILTERS[] = {[1] = {lanczos, 3.0}, [2] = {bilinear, 1.0}, [3] = {bicubic, 2.0}};

/* What `count` places of one axis are made of: place i of the source's from first[i] on, by weights[i * taps] and those after it. */
struct axis {
    int taps;       /* weights of a place, those after its own are 0 */
    int *first;
    int *own;       /* how many of the weights are its own; never beyond the source */
    int32_t *weights;
};

static void forget(struct axis *axis) {
    free(axis->first);
    free(axis->own);
    free(axis->weights);
}

/* The weights of places start to start + count of `size` that `from` become. Pillow's precompute_coeffs and normalize_coeffs_8bpc. */
static int weigh(struct axis *axis, int from, int size, int start, int count, const struct filter *filter) {
    double scale, filterscale;
    filterscale = scale = (double)((float)from - 0.0f) / size;
    if (filterscale < 1.0) filterscale = 1.0;
    const double support = filter->support * filterscale;
    const int taps = (int)ceil(support) * 2 + 1;
    const double inv_filterscale = 1.0 / filterscale;

    axis->taps = 0;
    axis->first = malloc((size_t)count * sizeof(int));
    axis->own = malloc((size_t)count * sizeof(int));
    axis->weights = calloc((size_t)count * (size_t)taps, sizeof(int32_t));
    double *exact = malloc((size_t)taps * sizeof(double));
    if (!axis->first || !axis->own || !axis->weights || !exact) {
        free(exact);
        return NO_MEMORY;
    }
    for (int i = 0; i < count; i++) {
        const double center = 0.0f + (start + i + 0.5) * scale;
        double sum = 0.0;
        int low = (int)(center - support + 0.5);
        if (low < 0) low = 0;
        int own = (int)(center + support + 0.5);
        if (own > from) own = from;
        own -= low;
        for (int x = 0; x < own; x++) {
            double weight = filter->weight((x + low - center + 0.5) * inv_filterscale);
            exact[x] = weight;
            sum += weight;
        }
        int32_t *rounded = axis->weights + (size_t)i * (size_t)taps;
        for (int x = 0; x < own; x++) {
            if (sum != 0.0) exact[x] /= sum;
            if (exact[x] < 0)
                rounded[x] = (int)(-0.5 + exact[x] * (1 << PRECISION_BITS));
            else
                rounded[x] = (int)(0.5 + exact[x] * (1 << PRECISION_BITS));
        }
        axis->first[i] = low;
        axis->own[i] = own;
        if (own > axis->taps) axis->taps = own;
    }
    free(exact);
    /* Closer together: the most that a place really has. */
    for (int i = 1; i < count; i++)
        memmove(axis->weights + (size_t)i * (size_t)axis->taps, axis->weights + (size_t)i * (size_t)taps, (size_t)axis->taps * sizeof(int32_t));
    return DONE;
}

/* An axis that keeps its size: each place is the source's own. */
static int keep(struct axis *axis, int start, int count) {
    axis->taps = 1;
    axis->first = malloc((size_t)count * sizeof(int));
    axis->own = malloc((size_t)count * sizeof(int));
    axis->weights = malloc((size_t)count * sizeof(int32_t));
    if (!axis->first || !axis->own || !axis->weights) return NO_MEMORY;
    for (int i = 0; i < count; i++) {
        axis->first[i] = start + i;
        axis->own[i] = 1;
        axis->weights[i] = 1 << PRECISION_BITS; /* gives the byte itself */
    }
    return DONE;
}

static int axis_of(struct axis *axis, int from, int size, int start, int count, const struct filter *filter) {
    return from == size ? keep(axis, start, count) : weigh(axis, from, size, start, count, filter);
}

/* Everything a picture's passes work on. */
struct work {
    const uint8_t *source;    /* from the first column needed on; 4 bytes a pixel, the last of no meaning */
    size_t stride;            /* bytes from one of its rows to the next */
    int columns;              /* of the source, that are needed */
    int width, height;        /* of the result */
    struct axis across, down; /* what is `first` across counts from the first column needed */
    uint32_t *strip;          /* [columns + across.taps][ROWS]: pixels of rows side by side */
    int slots;                /* rows in the ring */
    size_t row;               /* bytes from one to the next */
    uint8_t *ring;            /* [slots][row], what the first pass gave */
    const uint8_t **taps;     /* the rows that one row is made of */
    uint8_t *lines;           /* [ROWS][width * 3 + 1], what goes across last */
    uint8_t *result;
};

/* Of the compiler's own, for any machine. */
typedef uint8_t Bytes __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Bytes){__VA_ARGS__})
#endif

#ifdef AVX2
#include <immintrin.h>

#define LANES 8
#define PASSES passes_avx2
#define TARGET __attribute__((target("avx2")))
#include "resample_passes.h"
#undef LANES
#undef PASSES
#undef TARGET
#endif

/* Any other machine, by the compiler's own vectors. */
#define LANES 4
#define PASSES passes_plain
#define TARGET
#include "resample_passes.h"

static void passes(const struct work *work, int down_first) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) {
        passes_avx2(work, down_first);
        return;
    }
#endif
    passes_plain(work, down_first);
}

/* Writes uint8[height][width][3], the rectangle from (left, top) on of the picture resized to (to_width, to_height).
   `source` is uint8[from_height][from_width][4]; `filter` a number of PIL.Image.Resampling, never nearest. Returns DONE, or why not. */
int ortserve_resample(
    const uint8_t *source, int from_width, int from_height, int to_width, int to_height, int left, int top, int width, int height, int filter,
    uint8_t *result
) {
    if (!source || !result || filter < 1 || filter > 3) return NONSENSE;
    const int sides[] = {from_width, from_height, to_width, to_height, width, height};
    for (size_t i = 0; i < sizeof(sides) / sizeof(*sides); i++)
        if (sides[i] < 1 || sides[i] > LARGEST_SIDE) return NONSENSE;
    if (left < 0 || top < 0 || left > to_width - width || top > to_height - height) return NONSENSE;

    struct work work = {.stride = (size_t)from_width * 4, .width = width, .height = height, .result = result};
    int end = axis_of(&work.across, from_width, to_width, left, width, &FILTERS[filter]);
    if (end == DONE) end = axis_of(&work.down, from_height, to_height, top, height, &FILTERS[filter]);
    if (end == DONE) {
        /* As Pillow 13 chooses: down first where the height shrinks by more than twice what the width does. */
        const int down_first = from_height > to_height && from_height - to_height > (from_width - to_width) * 2;
        const int first = work.across.first[0];
        work.source = source + (size_t)first * 4;
        work.columns = work.across.first[width - 1] + work.across.own[width - 1] - first;
        for (int x = 0; x < width; x++) work.across.first[x] -= first;
        const size_t across = (size_t)width * 3 + 1; /* the byte that a last pixel's fourth goes to */
        work.slots = down_first ? ROWS : work.down.taps + ROWS;
        work.row = down_first ? (size_t)work.columns * 4 : across;
        work.strip = calloc((size_t)work.columns + (size_t)work.across.taps, ROWS * 4);
        work.ring = malloc((size_t)work.slots * work.row);
        work.taps = malloc((size_t)work.down.taps * sizeof(*work.taps));
        work.lines = malloc(ROWS * across);
        if (work.strip && work.ring && work.taps && work.lines)
            passes(&work, down_first);
        else
            end = NO_MEMORY;
        free(work.strip);
        free(work.ring);
        free(work.taps);
        free(work.lines);
    }
    forget(&work.across);
    forget(&work.down);
    return end;
}
