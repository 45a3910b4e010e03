/* A rectangle of a resized picture, with Pillow's pixels: the algorithm of its src/libImaging/Resample.c (MIT-CMU licence), of whose
   result only the wanted part is computed, by vectors. `resample.py`, `jpeg.py` and `threads.c` call it.

   The filter's weights are doubles by Pillow's expressions in Pillow's order, then integers of PRECISION_BITS; each of the two
   passes rounds to 8 bits, and which comes first is Pillow's choice. A weight depends on its pixel's place alone, so those of a part are
   those of the whole. Along an axis that keeps its size the only weight is 1, which gives the byte itself: Pillow leaves that pass out.
   Rows go from one pass to the other through a ring of as many as one row of the result needs, so that a picture of any size takes no more
   memory than that, but for a JPEG that is turned or shrinks most in height: its part is held whole. Nothing here is shared: threads may call it at once. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pixels.h"

#if defined(__x86_64__) && !defined(PLAIN) /* the tests compile it both ways */
#define AVX2
#endif

#define PRECISION_BITS (32 - 8 - 2)
#define ROWS 4                 /* go across together: their pixels of one place are 16 bytes */
#define LARGEST_SIDE (1 << 24) /* Pillow keeps sides in floats, which are exact up to here */

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
    const uint8_t *source;    /* from the first column and row needed on; 4 bytes a pixel, the last of no meaning */
    size_t stride;            /* bytes from one of its rows to the next */
    struct jpeg *jpeg;        /* where there is one its next rows are read as they are needed, into `lines`; `source` is then the first of these */
    int columns;              /* of the source, that are needed */
    int width, height;        /* of the result */
    struct axis across, down; /* what is `first` counts from the first column, or row, needed */
    int down_first;
    uint32_t *strip;          /* [columns + across.taps][ROWS]: pixels of rows side by side */
    int slots;                /* rows in the ring */
    size_t row;               /* bytes from one to the next */
    uint8_t *ring;            /* [slots][row], what the first pass gave */
    const uint8_t **taps;     /* the rows that one row is made of */
    uint8_t *lines;           /* ROWS rows: [width * 3 + 1] of what goes across last, or [stride] of the JPEG */
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

static int passes(const struct work *work) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return passes_avx2(work);
#endif
    return passes_plain(work);
}

/* Which part of the source the result is made of, once every argument makes sense. `work` is to be given back, whatever this returns. */
static int plan(
    struct work *work, struct part *part, int from_width, int from_height, int to_width, int to_height, int left, int top, int width, int height,
    int filter, uint8_t *result
) {
    *work = (struct work){.width = width, .height = height, .result = result};
    if (!result || filter < 1 || filter > 3) return NONSENSE;
    const int sides[] = {from_width, from_height, to_width, to_height, width, height};
    for (size_t i = 0; i < sizeof(sides) / sizeof(*sides); i++)
        if (sides[i] < 1 || sides[i] > LARGEST_SIDE) return NONSENSE;
    if (left < 0 || top < 0 || left > to_width - width || top > to_height - height) return NONSENSE;

    int end = axis_of(&work->across, from_width, to_width, left, width, &FILTERS[filter]);
    if (end == DONE) end = axis_of(&work->down, from_height, to_height, top, height, &FILTERS[filter]);
    if (end != DONE) return end;
    /* As Pillow 13 chooses: down first where the height shrinks by more than twice what the width does. */
    work->down_first = from_height > to_height && from_height - to_height > (from_width - to_width) * 2;
    *part = (struct part){.left = work->across.first[0], .top = work->down.first[0]};
    part->columns = work->across.first[width - 1] + work->across.own[width - 1] - part->left;
    part->rows = work->down.first[height - 1] + work->down.own[height - 1] - part->top;
    for (int x = 0; x < width; x++) work->across.first[x] -= part->left;
    for (int y = 0; y < height; y++) work->down.first[y] -= part->top;
    return DONE;
}

/* Both passes over the part, whose pixels are at `source`, or are read from `jpeg`. */
static int carry_out(struct work *work, struct part part, const uint8_t *source, size_t stride, struct jpeg *jpeg) {
    const size_t across = (size_t)work->width * 3 + 1; /* the byte that a last pixel's fourth goes to */
    work->columns = part.columns;
    work->slots = work->down_first ? ROWS : work->down.taps + ROWS;
    work->row = work->down_first ? (size_t)part.columns * 4 : across;
    work->strip = calloc((size_t)part.columns + (size_t)work->across.taps, ROWS * 4);
    work->ring = malloc((size_t)work->slots * work->row);
    work->taps = malloc((size_t)work->down.taps * sizeof(*work->taps));
    work->lines = malloc(ROWS * (jpeg ? stride : across));
    work->jpeg = jpeg;
    work->source = jpeg ? work->lines + jpeg_before(jpeg) : source;
    work->stride = stride;
    const int end = work->strip && work->ring && work->taps && work->lines ? passes(work) : NO_MEMORY;
    free(work->strip);
    free(work->ring);
    free(work->taps);
    free(work->lines);
    return end;
}

static void give_back(struct work *work) {
    forget(&work->across);
    forget(&work->down);
}

/* Writes uint8[height][width][3], the rectangle from (left, top) on of the picture resized to (to_width, to_height).
   `source` is uint8[from_height][from_width][4]; `filter` a number of PIL.Image.Resampling, never nearest. Returns DONE, or why not. */
int ortserve_resample(
    const uint8_t *source, int from_width, int from_height, int to_width, int to_height, int left, int top, int width, int height, int filter,
    uint8_t *result
) {
    struct work work;
    struct part part;
    int end = plan(&work, &part, from_width, from_height, to_width, to_height, left, top, width, height, filter, result);
    if (end == DONE && !source) end = NONSENSE;
    if (end == DONE) {
        const size_t stride = (size_t)from_width * 4;
        end = carry_out(&work, part, source + (size_t)part.top * stride + (size_t)part.left * 4, stride, NULL);
    }
    give_back(&work);
    return end;
}

/* Where a part of an upright picture is in the one that is stored: x and y exchanged, then each counted from the other end. */
struct turn {
    int exchanged, mirrored_x, mirrored_y;
};

/* Exif 2.32, 4.6.4. */
static const struct turn TURNS[9] = {
    [2] = {0, 1, 0}, [3] = {0, 1, 1}, [4] = {0, 0, 1}, [5] = {1, 0, 0}, [6] = {1, 0, 1}, [7] = {1, 1, 1}, [8] = {1, 1, 0},
};

static struct part stored(struct part upright, struct turn turn, int stored_width, int stored_height) {
    struct part part = upright;
    if (turn.exchanged) part = (struct part){upright.top, upright.left, upright.rows, upright.columns};
    if (turn.mirrored_x) part.left = stored_width - part.left - part.columns;
    if (turn.mirrored_y) part.top = stored_height - part.top - part.rows;
    return part;
}

/* All of an opened JPEG's part, which is then (columns, rows) upright, in memory of its own. */
static int turned(struct jpeg *jpeg, struct part part, struct turn turn, uint32_t **upright) {
    const int columns = turn.exchanged ? part.rows : part.columns, rows = turn.exchanged ? part.columns : part.rows;
    const ptrdiff_t stride = (ptrdiff_t)jpeg_stride(jpeg);
    uint8_t *pixels = malloc((size_t)stride * (size_t)part.rows);
    uint32_t *to = *upright = malloc((size_t)part.columns * (size_t)part.rows * 4);
    int end = pixels && to ? jpeg_rows(jpeg, pixels, part.rows) : NO_MEMORY;
    if (end == DONE) {
        const uint8_t *corner = pixels + jpeg_before(jpeg);
        if (turn.mirrored_x) corner += (ptrdiff_t)(part.columns - 1) * 4;
        if (turn.mirrored_y) corner += (part.rows - 1) * stride;
        const ptrdiff_t x_step = turn.mirrored_x ? -4 : 4, y_step = turn.mirrored_y ? -stride : stride;
        const ptrdiff_t right = turn.exchanged ? y_step : x_step, down = turn.exchanged ? x_step : y_step;
        for (int y = 0; y < rows; y++) {
            const uint8_t *from = corner + y * down;
            for (int x = 0; x < columns; x++, from += right) memcpy(to++, from, 4);
        }
    }
    free(pixels);
    return end;
}

/* The same of a JPEG. DECLINED as by `jpeg_open`. */
int ortserve_resample_jpeg(
    const uint8_t *data, size_t bytes, int orientation, int from_width, int from_height, int to_width, int to_height, int left, int top, int width,
    int height, int filter, uint8_t *result
) {
    struct work work;
    struct part part;
    struct jpeg *jpeg = NULL;
    uint32_t *upright = NULL;
    int end = plan(&work, &part, from_width, from_height, to_width, to_height, left, top, width, height, filter, result);
    if (end == DONE && (!data || orientation < 1 || orientation > 8)) end = NONSENSE;
    if (end == DONE) {
        const struct turn turn = TURNS[orientation];
        const int stored_width = turn.exchanged ? from_height : from_width, stored_height = turn.exchanged ? from_width : from_height;
        const struct part source = stored(part, turn, stored_width, stored_height);
        end = jpeg_open(&jpeg, data, bytes, stored_width, stored_height, source);
        if (end == DONE && (orientation != 1 || work.down_first)) {
            end = turned(jpeg, source, turn, &upright);
            if (end == DONE) end = carry_out(&work, part, (const uint8_t *)upright, (size_t)part.columns * 4, NULL);
        } else if (end == DONE) {
            end = carry_out(&work, part, NULL, jpeg_stride(jpeg), jpeg);
        }
        if (end == DONE) end = jpeg_end(jpeg);
    }
    free(upright);
    jpeg_close(jpeg);
    give_back(&work);
    return end;
}
