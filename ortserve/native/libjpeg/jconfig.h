/* What jpeglib.h asks of its configuration: the ABI of libjpeg.so.62, which Pillow's wheels carry. `jpeg_CreateDecompress` compares it and
   the size of its structure with the library's own. */
#define JPEG_LIB_VERSION 62
#define BITS_IN_JSAMPLE 8
#define MEM_SRCDST_SUPPORTED 1
