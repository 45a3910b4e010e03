/* What the sources of this folder share. */

#ifndef PIXELS_H
#define PIXELS_H

#include <stddef.h>
#include <stdint.h>

enum { DONE, NONSENSE, NO_MEMORY, DECLINED };

/* A rectangle of a picture. */
struct part {
    int left, top, columns, rows;
};

/* A JPEG of which a part is being read, from its first row on. */
struct jpeg;

/* Begins with that part of the picture of (width, height) which the JPEG in `data` is, as it is stored. DECLINED: whatever is not wholly
   well-formed, here and below. What is begun is to be closed. */
int jpeg_open(struct jpeg **jpeg, const uint8_t *data, size_t bytes, int width, int height, struct part part);

/* Bytes of one row as `jpeg_rows` gives it, and how many of them come before the part's own. 4 bytes a pixel, the last of no meaning. */
size_t jpeg_stride(const struct jpeg *jpeg);
size_t jpeg_before(const struct jpeg *jpeg);

/* The next rows of the part. */
int jpeg_rows(struct jpeg *jpeg, uint8_t *to, int count);

/* Reads what is below the part. */
int jpeg_end(struct jpeg *jpeg);

void jpeg_close(struct jpeg *jpeg);

/* Writes uint8[height][width][3], the rectangle from (left, top) on of the JPEG in `data`, which is (from_width, from_height) once turned by
   Exif's `orientation`, resized to (to_width, to_height). `filter` is a number of PIL.Image.Resampling, never nearest. Any thread may call it. */
int ortserve_resample_jpeg(
    const uint8_t *data, size_t bytes, int orientation, int from_width, int from_height, int to_width, int to_height, int left, int top, int width,
    int height, int filter, uint8_t *result
);

#endif
