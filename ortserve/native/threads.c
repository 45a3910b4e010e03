/* Threads that never want the interpreter: jobs of `ortserve_resample_jpeg`, put and taken by an event loop's thread, which an eventfd wakes. Linux alone has those.

   A thread of Python's gives the interpreter away while it decodes, and has to wait for it after each picture, behind an event loop that is
   busy. These are told what to do, and tell that it is done, by a list and a lock. `decoding.py` is their other end. */

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "pixels.h"

struct job {
    struct job *next;
    uint64_t id;
    const uint8_t *data;
    size_t bytes;
    int orientation, from_width, from_height, to_width, to_height, left, top, width, height, filter;
    uint8_t *result;
    int end;
};

struct list {
    struct job *first, **end;
};

struct threads {
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    struct list waiting, done;
    int event;
    int closing;
    int count;
    pthread_t each[];
};

static void append(struct list *list, struct job *job) {
    job->next = NULL;
    *list->end = job;
    list->end = &job->next;
}

static struct job *take_first(struct list *list) {
    struct job *job = list->first;
    list->first = job->next;
    if (!list->first) list->end = &list->first;
    return job;
}

static void *work(void *argument) {
    struct threads *threads = argument;
#ifdef __linux__
    prctl(PR_SET_NAME, "jpeg"); /* what top -H and a profile call it */
#endif
    pthread_mutex_lock(&threads->lock);
    for (;;) {
        while (!threads->waiting.first && !threads->closing) pthread_cond_wait(&threads->wanted, &threads->lock);
        if (threads->closing) break;
        struct job *job = take_first(&threads->waiting);
        pthread_mutex_unlock(&threads->lock);
        job->end = ortserve_resample_jpeg(
            job->data, job->bytes, job->orientation, job->from_width, job->from_height, job->to_width, job->to_height, job->left, job->top,
            job->width, job->height, job->filter, job->result
        );
        pthread_mutex_lock(&threads->lock);
        const int told = threads->done.first != NULL; /* and not looked at since */
        append(&threads->done, job);
        if (!told) {
            const uint64_t one = 1;
            if (write(threads->event, &one, sizeof(one)) < 0) {} /* only where it is full, which wakes as well */
        }
    }
    pthread_mutex_unlock(&threads->lock);
    return NULL;
}

void ortserve_threads_close(struct threads *threads);

/* Starts `count` of them, which write to the eventfd `event`. NULL: the system has no more. */
struct threads *ortserve_threads_open(int count, int event) {
    struct threads *threads = calloc(1, sizeof(*threads) + (size_t)count * sizeof(pthread_t));
    if (!threads) return NULL;
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->wanted, NULL);
    threads->waiting.end = &threads->waiting.first;
    threads->done.end = &threads->done.first;
    threads->event = event;
    sigset_t all, before; /* signals are for the interpreter's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (threads->count < count && !pthread_create(&threads->each[threads->count], NULL, work, threads)) threads->count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (threads->count == count) return threads;
    ortserve_threads_close(threads);
    return NULL;
}

/* One more job, arguments as those of `ortserve_resample_jpeg`; `data` and `result` are to stay until it is taken. */
int ortserve_threads_put(
    struct threads *threads, uint64_t id, const uint8_t *data, size_t bytes, int orientation, int from_width, int from_height, int to_width,
    int to_height, int left, int top, int width, int height, int filter, uint8_t *result
) {
    struct job *job = malloc(sizeof(*job));
    if (!job) return NO_MEMORY;
    *job = (struct job){NULL, id, data, bytes, orientation, from_width, from_height, to_width, to_height, left, top, width, height, filter, result, 0};
    pthread_mutex_lock(&threads->lock);
    append(&threads->waiting, job);
    pthread_mutex_unlock(&threads->lock);
    pthread_cond_signal(&threads->wanted);
    return DONE;
}

/* The jobs that are done, how many: which, and how each ended. `most` is as many as were put, or what is left is not told of again. */
int ortserve_threads_take(struct threads *threads, uint64_t *ids, int *ends, int most) {
    int taken = 0;
    pthread_mutex_lock(&threads->lock);
    while (taken < most && threads->done.first) {
        struct job *job = take_first(&threads->done);
        ids[taken] = job->id;
        ends[taken++] = job->end;
        free(job);
    }
    pthread_mutex_unlock(&threads->lock);
    return taken;
}

/* Ends them, each after the job it is at; what waits is forgotten. */
void ortserve_threads_close(struct threads *threads) {
    pthread_mutex_lock(&threads->lock);
    threads->closing = 1;
    pthread_mutex_unlock(&threads->lock);
    pthread_cond_broadcast(&threads->wanted);
    for (int i = 0; i < threads->count; i++) pthread_join(threads->each[i], NULL);
    while (threads->waiting.first) free(take_first(&threads->waiting));
    while (threads->done.first) free(take_first(&threads->done));
    pthread_mutex_destroy(&threads->lock);
    pthread_cond_destroy(&threads->wanted);
    free(threads);
}
