/* The two passes of resample.c over vectors of LANES 32-bit numbers, as the function PASSES for the machines of TARGET. Included once for
   each, so that every vector is as wide as the machine's own. */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(PASSES, name)
#define INLINE TARGET static inline __attribute__((always_inline))
#define Ints NAME(_ints)
#define Sums NAME(_sums)

typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

/* What 16 bytes become: one place of ROWS rows, or 16 bytes of one row. */
typedef struct {
    Ints part[16 / LANES];
} Sums;

INLINE Sums NAME(_half)(void) {
    Sums sums;
    for (int i = 0; i < 16 / LANES; i++) sums.part[i] = (Ints){} + (1 << (PRECISION_BITS - 1));
    return sums;
}

/* The sums and 16 bytes, each by `weight`. */
INLINE Sums NAME(_add)(Sums sums, const uint8_t *from, int32_t weight) {
#if LANES == 8
    for (int i = 0; i < 2; i++)
        sums.part[i] += (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(from + i * 8))) * weight;
#else
    Bytes bytes, none = {};
    memcpy(&bytes, from, 16);
    for (int i = 0; i < 2; i++) {
        const Bytes words = i ? SHUFFLE(bytes, none, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                              : SHUFFLE(bytes, none, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        sums.part[i * 2] += (Ints)SHUFFLE(words, none, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23) * weight;
        sums.part[i * 2 + 1] += (Ints)SHUFFLE(words, none, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31) * weight;
    }
#endif
    return sums;
}

/* The sums as 16 bytes: Pillow's clip8. */
INLINE void NAME(_put)(uint8_t *to, Sums sums) {
    for (int i = 0; i < 16 / LANES; i++) sums.part[i] >>= PRECISION_BITS;
#if LANES == 8
    __m256i words = _mm256_packs_epi32((__m256i)sums.part[0], (__m256i)sums.part[1]);
    words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)); /* it packs each half for itself */
    _mm_storeu_si128((__m128i *)(void *)to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
    Bytes words[2];
    for (int i = 0; i < 4; i++) {
        sums.part[i] &= sums.part[i] > 0;
        sums.part[i] |= sums.part[i] > 255; /* of which the lowest byte is 255 */
    }
    for (int i = 0; i < 2; i++)
        words[i] = SHUFFLE((Bytes)sums.part[i * 2], (Bytes)sums.part[i * 2 + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const Bytes bytes = SHUFFLE(words[0], words[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    memcpy(to, &bytes, 16);
#endif
}

/* ROWS rows of so many pixels, side by side: [pixels][ROWS][4]. */
INLINE void NAME(_interleave)(const uint8_t *const in[ROWS], int pixels, uint8_t *to) {
    const uint8_t *a = in[0], *b = in[1], *c = in[2], *d = in[3];
    int x = 0;
    for (; x + 4 <= pixels; x += 4, a += 16, b += 16, c += 16, d += 16, to += 64) {
        Bytes rows[4], pairs[4], places[4];
        memcpy(&rows[0], a, 16);
        memcpy(&rows[1], b, 16);
        memcpy(&rows[2], c, 16);
        memcpy(&rows[3], d, 16);
        for (int i = 0; i < 2; i++) {
            pairs[i * 2] = SHUFFLE(rows[i * 2], rows[i * 2 + 1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            pairs[i * 2 + 1] = SHUFFLE(rows[i * 2], rows[i * 2 + 1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        }
        for (int i = 0; i < 2; i++) {
            places[i * 2] = SHUFFLE(pairs[i], pairs[i + 2], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
            places[i * 2 + 1] = SHUFFLE(pairs[i], pairs[i + 2], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        }
        memcpy(to, places, 64);
    }
    for (; x < pixels; x++, a += 4, b += 4, c += 4, d += 4, to += 16) {
        memcpy(to, a, 4);
        memcpy(to + 4, b, 4);
        memcpy(to + 8, c, 4);
        memcpy(to + 12, d, 4);
    }
}

/* ROWS rows of the needed columns, 4 bytes a pixel, become rows of the wanted width, 3 bytes a pixel and one byte more. */
TARGET static void NAME(_across)(const struct work *work, const uint8_t *const in[ROWS], uint8_t *const out[ROWS]) {
    NAME(_interleave)(in, work->columns, (uint8_t *)work->strip);
    const int width = work->width, taps = work->across.taps, *first = work->across.first;
    const int32_t *weights = work->across.weights;
    const uint8_t *strip = (const uint8_t *)work->strip;
    uint8_t *to[ROWS];
    for (int r = 0; r < ROWS; r++) to[r] = out[r];
    for (int x = 0; x < width; x++, weights += taps) {
        const uint8_t *from = strip + (size_t)first[x] * (ROWS * 4);
        Sums sums = NAME(_half)();
        for (int tap = 0; tap < taps; tap++, from += 16) sums = NAME(_add)(sums, from, weights[tap]);
        uint8_t pixels[16];
        NAME(_put)(pixels, sums);
        /* The fourth byte becomes the next pixel's first, or is the one more. */
        for (int r = 0; r < ROWS; r++, to[r - 1] += 3) memcpy(to[r], pixels + r * 4, 4);
    }
}

/* One row of so many bytes from the rows in work->taps. */
TARGET static void NAME(_down)(const struct work *work, int y, size_t bytes, uint8_t *to) {
    enum { STEP = 32 };
    const int taps = work->down.own[y];
    const int32_t *weights = work->down.weights + (size_t)y * (size_t)work->down.taps;
    if (bytes < STEP) {
        for (size_t x = 0; x < bytes; x++) {
            int32_t sum = 1 << (PRECISION_BITS - 1);
            for (int tap = 0; tap < taps; tap++) sum += work->taps[tap][x] * weights[tap];
            sum >>= PRECISION_BITS;
            to[x] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
        return;
    }
    for (size_t step = 0; step < bytes; step += STEP) {
        const size_t x = step + STEP <= bytes ? step : bytes - STEP; /* the last ones end with the row */
        Sums one = NAME(_half)(), other = one;
        for (int tap = 0; tap < taps; tap++) {
            one = NAME(_add)(one, work->taps[tap] + x, weights[tap]);
            other = NAME(_add)(other, work->taps[tap] + x + 16, weights[tap]);
        }
        NAME(_put)(to + x, one);
        NAME(_put)(to + x + 16, other);
    }
}

/* Across, then down: a row of the ring for each of the source's, four at a time, as soon as one of the result needs it. */
TARGET static int NAME(_across_first)(const struct work *work) {
    const struct axis *down = &work->down;
    const size_t bytes = (size_t)work->width * 3;
    const int rows = down->first[work->height - 1] + down->own[work->height - 1];
    int next = 0; /* the source's row that is not in the ring yet */
    for (int y = 0; y < work->height; y++) {
        for (; next < down->first[y] + down->own[y]; next += ROWS) {
            const uint8_t *in[ROWS];
            uint8_t *out[ROWS];
            const int more = rows - next < ROWS ? rows - next : ROWS;
            const int start = work->jpeg ? 0 : next;
            if (work->jpeg) {
                const int end = jpeg_rows(work->jpeg, work->lines, more);
                if (end != DONE) return end;
            }
            for (int r = 0; r < ROWS; r++) {
                in[r] = work->source + (size_t)(start + (r < more ? r : more - 1)) * work->stride; /* one again where there are no more */
                out[r] = work->ring + (size_t)((next + r) % work->slots) * work->row;
            }
            NAME(_across)(work, in, out);
        }
        for (int tap = 0; tap < down->own[y]; tap++)
            work->taps[tap] = work->ring + (size_t)((down->first[y] + tap) % work->slots) * work->row;
        NAME(_down)(work, y, bytes, work->result + (size_t)y * bytes);
    }
    return DONE;
}

/* Down, then across: four rows of the result at a time, from the source's own. */
TARGET static void NAME(_down_first)(const struct work *work) {
    const size_t bytes = (size_t)work->width * 3;
    const uint8_t *in[ROWS];
    uint8_t *out[ROWS];
    for (int r = 0; r < ROWS; r++) out[r] = work->lines + (size_t)r * (bytes + 1);
    for (int top = 0; top < work->height; top += ROWS) {
        const int rows = work->height - top < ROWS ? work->height - top : ROWS;
        for (int r = 0; r < rows; r++) {
            for (int tap = 0; tap < work->down.own[top + r]; tap++)
                work->taps[tap] = work->source + (size_t)(work->down.first[top + r] + tap) * work->stride;
            NAME(_down)(work, top + r, (size_t)work->columns * 4, work->ring + (size_t)r * work->row);
        }
        for (int r = 0; r < ROWS; r++) in[r] = work->ring + (size_t)(r < rows ? r : rows - 1) * work->row;
        NAME(_across)(work, in, out);
        for (int r = 0; r < rows; r++) memcpy(work->result + (size_t)(top + r) * bytes, out[r], bytes);
    }
}

TARGET static int PASSES(const struct work *work) {
    if (!work->down_first) return NAME(_across_first)(work);
    NAME(_down_first)(work);
    return DONE;
}

#undef Ints
#undef Sums
