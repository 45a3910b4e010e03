/* A part of a JPEG, with Pillow's pixels: by the libjpeg-turbo that Pillow has loaded, asked for no more columns and rows than are needed.

   Rows and columns outside are read, for their bits say where the others lie, but not transformed, upsampled or turned into colours. Pillow
   stays the judge of anything unusual: what libjpeg warns of, or fails at, is declined here and decoded there, so
   that a picture is taken or refused, and with which words, as if this did not exist. `jpeg.py` opens and compares.

   The structures are those of libjpeg's headers (libjpeg/, see their licence), the functions those that `ortserve_jpeg_open` found. */

#include <dlfcn.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "libjpeg/jpeglib.h"
#include "pixels.h"

/* Columns more on either side: upsampling looks at a neighbour, and where a progressive picture lacks its last scans, smoothing at two blocks
   of up to 32 pixels. */
#define MARGIN 8
#define MARGIN_OF_SCANS 72
#define ROWS_AT_ONCE 8

/* No row may begin where vectors of 32 bytes do: such ones libjpeg-turbo writes past the cache (simd/x86_64/jdcolext-avx2.asm, vmovntdq), from
   where they would have to be fetched for resizing. */
#define VECTOR 32
#define LEAD 4 /* bytes before a row; malloc's are aligned to 16 */

#define FUNCTIONS(F)                                                                                                                       \
    F(std_error) F(CreateDecompress) F(destroy_decompress) F(mem_src) F(read_header) F(start_decompress) F(crop_scanline)                  \
    F(skip_scanlines) F(read_scanlines) F(finish_decompress)

static struct {
#define F(name) __typeof__(&jpeg_##name) name;
    FUNCTIONS(F)
#undef F
} libjpeg;

/* Finds the functions in an opened library and those it stands on. Returns the name of one that is not there, else NULL. Once, before all. */
const char *ortserve_jpeg_open(void *library) {
#define F(name)                                                                                                                            \
    *(void **)&libjpeg.name = dlsym(library, "jpeg_" #name);                                                                               \
    if (!libjpeg.name) return "jpeg_" #name;
    FUNCTIONS(F)
#undef F
    return NULL;
}

struct jpeg {
    struct jpeg_decompress_struct reading; /* the first: libjpeg hands it to the two functions below */
    struct jpeg_error_mgr errors;
    jmp_buf out; /* of the function that was called last */
    int below;   /* rows of the picture below the part */
    size_t stride, before;
};

static void decline(j_common_ptr common) { longjmp(((struct jpeg *)common)->out, 1); }

static void decline_warned(j_common_ptr common, int level) {
    if (level < 0) decline(common);
}

int jpeg_open(struct jpeg **opened, const uint8_t *data, size_t bytes, int width, int height, struct part part) {
    struct jpeg *jpeg = *opened = calloc(1, sizeof(*jpeg));
    if (!jpeg) return NO_MEMORY;
    struct jpeg_decompress_struct *reading = &jpeg->reading;
    reading->err = libjpeg.std_error(&jpeg->errors);
    jpeg->errors.error_exit = decline;
    jpeg->errors.emit_message = decline_warned;
    if (setjmp(jpeg->out)) return DECLINED;
    libjpeg.CreateDecompress(reading, JPEG_LIB_VERSION, sizeof(*reading));
    libjpeg.mem_src(reading, data, bytes);
    libjpeg.read_header(reading, TRUE);
    if (reading->num_components != 1 && reading->num_components != 3) return DECLINED; /* inks have a formula of Pillow's own */
    reading->out_color_space = JCS_EXT_RGBX;
    libjpeg.start_decompress(reading);
    if (reading->output_width != (JDIMENSION)width || reading->output_height != (JDIMENSION)height) return DECLINED;

    const int margin = reading->progressive_mode ? MARGIN_OF_SCANS : MARGIN;
    const int start = part.left > margin ? part.left - margin : 0;
    const int end = width - part.left - part.columns > margin ? part.left + part.columns + margin : width;
    JDIMENSION left = (JDIMENSION)start, columns = (JDIMENSION)(end - start);
    if (end - start < width) libjpeg.crop_scanline(reading, &left, &columns); /* goes left to where a block begins */
    if (part.top) libjpeg.skip_scanlines(reading, (JDIMENSION)part.top);
    jpeg->below = height - part.top - part.rows;
    jpeg->stride = (LEAD + (size_t)columns * 4 + VECTOR - 1) / VECTOR * VECTOR;
    jpeg->before = LEAD + (size_t)(part.left - (int)left) * 4;
    return DONE;
}

size_t jpeg_stride(const struct jpeg *jpeg) { return jpeg->stride; }

size_t jpeg_before(const struct jpeg *jpeg) { return jpeg->before; }

static void read_rows(struct jpeg *jpeg, uint8_t *to, int count) {
    while (count > 0) {
        JSAMPROW rows[ROWS_AT_ONCE];
        const int wanted = count < ROWS_AT_ONCE ? count : ROWS_AT_ONCE;
        for (int i = 0; i < wanted; i++) rows[i] = to + (size_t)i * jpeg->stride + LEAD;
        const int got = (int)libjpeg.read_scanlines(&jpeg->reading, rows, (JDIMENSION)wanted);
        if (got < 1) decline((j_common_ptr)&jpeg->reading);
        to += (size_t)got * jpeg->stride;
        count -= got;
    }
}

int jpeg_rows(struct jpeg *jpeg, uint8_t *to, int count) {
    if (setjmp(jpeg->out)) return DECLINED;
    read_rows(jpeg, to, count);
    return DONE;
}

int jpeg_end(struct jpeg *jpeg) {
    uint8_t *row = malloc(jpeg->stride);
    if (!row) return NO_MEMORY;
    if (setjmp(jpeg->out)) {
        free(row);
        return DECLINED;
    }
    /* So that a picture that is damaged or cut off there is seen to be: skipping all of the rest would read nothing. */
    if (jpeg->below > 1) libjpeg.skip_scanlines(&jpeg->reading, (JDIMENSION)(jpeg->below - 1));
    if (jpeg->below > 0) read_rows(jpeg, row, 1);
    libjpeg.finish_decompress(&jpeg->reading);
    free(row);
    return DONE;
}

void jpeg_close(struct jpeg *jpeg) {
    if (jpeg && jpeg->reading.mem) libjpeg.destroy_decompress(&jpeg->reading);
    free(jpeg);
}
