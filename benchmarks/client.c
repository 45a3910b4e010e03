/* A lean HTTP/1.1 load client: whole requests read from files, keep-alive, one thread, epoll. Prints one line of JSON.
 *
 * client PORT CALLERS SECONDS RATE SEED WARM_UP FILE...
 *
 * RATE 0: a closed loop, CALLERS connections that each send the next request as soon as theirs was answered. What is answered in the
 * window counts, and its latency. The window begins after a warm-up: WARM_UP seconds at least, and until as many requests were answered as there
 * are callers, ten times SECONDS at most: before that, latencies are those of a queue that fills. The rate is taken from the last answer
 * before the window to the last one in it, unless there is a gap of a fifth of the window at its edge: batches answer many at once, and
 * where the window cuts between them must not decide.
 *
 * RATE > 0: an open loop, RATE requests a second with exponential gaps, over at most CALLERS connections, opened as needed. Latency
 * counts from the moment a request was meant to be sent, so that waiting for a connection is part of it. Requests arrive from the first
 * moment on; the window begins WARM_UP seconds later, when the queue is as full as it stays. What is answered in the window with 200,
 * whenever it was meant to be sent, gives the rate: in a queue that is full, as much of what came before the window is answered in it as
 * of what came in it is answered later. Requests meant to be sent in the window give the latencies; what is not answered GRACE_S after
 * its end counts as `unanswered`, with the time it waited until then.
 *
 * `failed` counts what was no 200 in the whole run, warm-up included.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define GRACE_S 15.0
#define TIMEOUT_S 60.0      /* an answer later than this is none */
#define RETRY_S 0.01        /* after a failed connection: not at once, or a dead server costs a whole CPU */
#define HEAD_BYTES 16384    /* of an answer */
#define STAGES 8            /* of a Server-Timing header */

enum state { CLOSED, CONNECTING, IDLE, SENDING, HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, TO_END };
enum error { NO_CONNECTION, RESET, CUT_OFF, MALFORMED, TIMED_OUT, ERRORS };
static const char *const ERROR_NAMES[ERRORS] = {"no_connection", "reset", "cut_off", "malformed", "timed_out"};

struct text { char *bytes; size_t length; };
struct series { double *values; size_t count, room; };
struct connection {
    int fd;
    enum state state;
    bool busy, close_after;
    bool reused;            /* its request went over a connection that had carried another */
    double intended;        /* when its request was meant to be sent */
    double began;           /* when it was given to this connection */
    double retry_at;
    size_t sent, turn;
    uint64_t left;          /* bytes of the body or chunk still to come */
    size_t line;            /* bytes of the chunk's size line or trailer so far */
    int status;
    double stages[STAGES];
    size_t head_length;
    char head[HEAD_BYTES + 1];
};

static struct text *requests;
static size_t request_count, next_turn;
static struct connection *connections;
static size_t connection_count;
static int port, poller;
static double rate, seconds, warm_up, begun, count_from, stop_at;
static double last_before, last_within; /* answers */
static bool counting;
static uint64_t seed;

static struct series good, bad;
static size_t statuses[1000], errors[ERRORS];
static size_t answered, answered_in_window, good_in_window, failed, intended_count, unanswered;
static char stage_names[STAGES][32];
static double stage_sums[STAGES];
static size_t stage_count, staged;

static double *pending;     /* intended times that wait for a connection, a ring */
static size_t pending_first, pending_count, pending_room;
static size_t *idle_stack, idle_count, unopened;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *room(void *old, size_t bytes) {
    void *fresh = realloc(old, bytes);
    if (fresh == NULL) die("memory");
    return fresh;
}

static void add(struct series *series, double value) {
    if (series->count == series->room) {
        series->room = series->room ? series->room * 2 : 4096;
        series->values = room(series->values, series->room * sizeof(double));
    }
    series->values[series->count++] = value;
}

/* xorshift64*, Vigna 2016; never 0. */
static double uniform(void) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return ((double)((seed * 0x2545F4914F6CDD1DULL) >> 11) + 0.5) / 9007199254740992.0;
}

static bool counts(double intended, double at) {
    if (!counting) return false;
    return rate > 0 ? intended >= count_from && intended < stop_at : at >= count_from && at <= stop_at;
}

static void hang_up(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
    c->head_length = 0;
}

static void watch(struct connection *c, bool writing) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) < 0) die("epoll_ctl");
}

static void rest(struct connection *c) {
    c->busy = false;
    if (rate > 0) idle_stack[idle_count++] = (size_t)(c - connections);
}

static void went_wrong(struct connection *c, enum error kind) {
    double at = now();
    hang_up(c);
    failed++;
    if (counts(c->intended, at)) {
        errors[kind]++;
        add(&bad, at - c->intended);
    }
    c->retry_at = at + RETRY_S;
    rest(c);
}

static void begin(struct connection *c, double intended);

/* The connection ended before an answer. Where it had been used before and nothing came, the server closed it while the request was on
 * its way: not a failure but a race of keep-alive, and every client sends again. */
static void ended(struct connection *c, enum error kind) {
    if (!c->reused || c->head_length > 0 || (c->state != HEAD && c->state != SENDING)) { went_wrong(c, kind); return; }
    double intended = c->intended;
    hang_up(c);
    begin(c, intended);
}

static void finished(struct connection *c) {
    double at = now();
    answered++;
    if (c->status != 200) failed++;
    if (!counting) last_before = at;
    if (counting && at >= count_from && at <= stop_at) {
        last_within = at;
        answered_in_window++;
        if (c->status == 200) good_in_window++;
    }
    if (counts(c->intended, at)) {
        statuses[c->status]++;
        add(c->status == 200 ? &good : &bad, at - c->intended);
        if (c->status == 200) {
            staged++;
            for (size_t i = 0; i < stage_count; i++) stage_sums[i] += c->stages[i];
        }
    }
    if (c->close_after) hang_up(c); else c->state = IDLE;
    c->head_length = 0;
    rest(c);
}

static void flush(struct connection *c) {
    struct text *request = &requests[c->turn];
    while (c->sent < request->length) {
        ssize_t n = send(c->fd, request->bytes + c->sent, request->length - c->sent, MSG_NOSIGNAL);
        if (n > 0) { c->sent += (size_t)n; continue; }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (c->state != SENDING) watch(c, true);
            c->state = SENDING;
            return;
        }
        /* A server may answer, and close, before it has read everything: what it said is still to be read. */
        break;
    }
    if (c->state == SENDING) watch(c, false);
    c->state = HEAD;
}

static void begin(struct connection *c, double intended) {
    c->busy = true;
    c->intended = intended;
    c->began = now();
    c->sent = 0;
    c->turn = next_turn++ % request_count;
    c->reused = c->state == IDLE;
    if (c->reused) { flush(c); return; }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) went_wrong(c, NO_CONNECTION);
}

static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
            line += length + 1;
            while (*line == ' ') line++;
            return line;
        }
    }
    return NULL;
}

static bool says(const char *value, const char *word) { return value != NULL && strncasecmp(value, word, strlen(word)) == 0; }

/* `decode;dur=2.5, queue;dur=0.1`: milliseconds by name. */
static void read_stages(struct connection *c, const char *value) {
    memset(c->stages, 0, sizeof c->stages);
    while (value != NULL && *value != '\r') {
        char name[32];
        double spent;
        int used = 0;
        if (sscanf(value, " %31[^;,\r];dur=%lf%n", name, &spent, &used) != 2 || used == 0) return;
        size_t i = 0;
        while (i < stage_count && strcmp(stage_names[i], name) != 0) i++;
        if (i == stage_count && stage_count < STAGES) strcpy(stage_names[stage_count++], name);
        if (i < STAGES) c->stages[i] = spent;
        value += used;
        while (*value == ',' || *value == ' ') value++;
    }
}

/* Reads the head once it is there whole; answers how many bytes of it came after the blank line, -1 for none yet, -2 for nonsense. */
static long read_head(struct connection *c) {
    c->head[c->head_length] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (end == NULL) return c->head_length == HEAD_BYTES ? -2 : -1;
    size_t length = (size_t)(end - c->head) + 4;
    end[2] = 0;
    int minor;
    if (sscanf(c->head, "HTTP/1.%d %d", &minor, &c->status) != 2 || c->status < 100 || c->status > 999) return -2;
    long over = (long)(c->head_length - length);
    if (c->status < 200) { /* 100 Continue: the answer follows */
        memmove(c->head, c->head + length, (size_t)over);
        c->head_length = (size_t)over;
        return over > 0 ? read_head(c) : -1;
    }
    const char *connection = header(c->head, "connection");
    const char *bytes = header(c->head, "content-length");
    c->close_after = says(connection, "close") || (minor == 0 && !says(connection, "keep-alive")) || c->sent < requests[c->turn].length;
    read_stages(c, header(c->head, "server-timing"));
    if (c->status == 204 || c->status == 304) { c->left = 0; c->state = BODY; }
    else if (says(header(c->head, "transfer-encoding"), "chunked")) { c->state = CHUNK_SIZE; c->left = 0; c->line = 0; }
    else if (bytes != NULL) { c->left = strtoull(bytes, NULL, 10); c->state = BODY; }
    else { c->state = TO_END; c->close_after = true; }
    return over;
}

/* Takes bytes of a body; answers true once the answer is whole. */
static bool take(struct connection *c, const char *bytes, size_t count) {
    size_t at = 0;
    for (;;) {
        if (c->state == TO_END) return false;
        if (c->state == BODY || c->state == CHUNK) {
            size_t some = count - at < c->left ? count - at : (size_t)c->left;
            c->left -= some;
            at += some;
            if (c->left > 0) return false;
            if (c->state == BODY) return true;
            c->state = CHUNK_END;
            c->line = 0;
        }
        if (at == count) return false;
        char byte = bytes[at++];
        if (c->state == CHUNK_END) {
            if (byte == '\n') { c->state = CHUNK_SIZE; c->left = 0; c->line = 0; }
        } else if (c->state == CHUNK_SIZE) {
            int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
            if (digit >= 0 && c->line == 0) c->left = c->left * 16 + (uint64_t)digit;
            else c->line = 1; /* an extension, or the line's end */
            if (byte == '\n') { c->state = c->left ? CHUNK : TRAILER; c->line = 0; }
        } else { /* TRAILER: lines until an empty one */
            if (byte == '\n') { if (c->line == 0) return true; c->line = 0; }
            else if (byte != '\r') c->line++;
        }
    }
}

static void receive(struct connection *c) {
    static char buffer[1 << 16];
    while (c->fd >= 0) {
        bool heading = c->state == HEAD || c->state == SENDING;
        char *into = heading ? c->head + c->head_length : buffer;
        size_t most = heading ? HEAD_BYTES - c->head_length : sizeof buffer;
        ssize_t n = recv(c->fd, into, most, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (c->state == IDLE) { hang_up(c); return; } /* closed between two requests, as servers do */
        if (n < 0) { ended(c, RESET); return; }
        if (n == 0) {
            if (c->state == TO_END) finished(c); else ended(c, CUT_OFF);
            return;
        }
        bool whole;
        if (heading) {
            c->head_length += (size_t)n;
            long over = read_head(c);
            if (over == -2) { went_wrong(c, MALFORMED); return; }
            if (over == -1) continue;
            whole = take(c, c->head + c->head_length - over, (size_t)over);
        } else whole = take(c, buffer, (size_t)n);
        if (whole) { finished(c); return; }
    }
}

static void happened(struct connection *c, uint32_t events) {
    if (c->fd < 0) return;
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) { went_wrong(c, NO_CONNECTION); return; }
        if (!(events & EPOLLOUT)) return;
        c->state = SENDING; /* was watched for writing */
        flush(c);
    } else if (c->state == SENDING && (events & EPOLLOUT)) flush(c);
    if (c->fd >= 0 && c->state != CONNECTING && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) receive(c);
}

static void start_closed(double at) {
    for (size_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (!c->busy && at >= c->retry_at) begin(c, now());
    }
}

static void start_open(double at) {
    while (pending_count > 0) {
        struct connection *c;
        if (idle_count > 0) c = &connections[idle_stack[--idle_count]];
        else if (unopened < connection_count) c = &connections[unopened++];
        else return;
        if (c->retry_at > at && c->state == CLOSED) { /* it failed just now: others first, this one later */
            idle_stack[idle_count++] = (size_t)(c - connections);
            return;
        }
        double intended = pending[pending_first];
        pending_first = (pending_first + 1) % pending_room;
        pending_count--;
        begin(c, intended);
    }
}

static void arrive(double intended) {
    if (pending_count == pending_room) {
        size_t bigger = pending_room ? pending_room * 2 : 1024;
        double *fresh = room(NULL, bigger * sizeof(double));
        for (size_t i = 0; i < pending_count; i++) fresh[i] = pending[(pending_first + i) % pending_room];
        free(pending);
        pending = fresh;
        pending_first = 0;
        pending_room = bigger;
    }
    pending[(pending_first + pending_count++) % pending_room] = intended;
}

static void late(double at) {
    for (size_t i = 0; i < connection_count; i++)
        if (connections[i].busy && at - connections[i].began > TIMEOUT_S) went_wrong(&connections[i], TIMED_OUT);
}

static int by_size(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double quantile(const struct series *series, double share, double otherwise) {
    if (series->count == 0) return otherwise;
    size_t index = (size_t)((double)series->count * share);
    return series->values[index < series->count ? index : series->count - 1];
}

static struct text whole_file(const char *path) {
    struct stat facts;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &facts) < 0) die(path);
    struct text text = {room(NULL, (size_t)facts.st_size + 1), (size_t)facts.st_size};
    for (size_t at = 0; at < text.length;) {
        ssize_t n = read(fd, text.bytes + at, text.length - at);
        if (n <= 0) die(path);
        at += (size_t)n;
    }
    close(fd);
    return text;
}

static void report(double window) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    qsort(good.values, good.count, sizeof(double), by_size);
    qsort(bad.values, bad.count, sizeof(double), by_size);
    double sum = 0;
    for (size_t i = 0; i < good.count; i++) sum += good.values[i];
    /* Where nothing was answered in time: at least as long as was waited. */
    printf("{\"requests\": %zu, \"seconds\": %.6f, \"requests_per_s\": %.6f, \"answers_per_s\": %.6f", good.count - unanswered, window,
           (double)good_in_window / window, (double)answered_in_window / window);
    printf(", \"mean_ms\": %.4f", 1000 * (good.count ? sum / (double)good.count : window));
    static const struct { const char *name; double share; } shares[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
    for (size_t i = 0; i < 3; i++) printf(", \"%s_ms\": %.4f", shares[i].name, 1000 * quantile(&good, shares[i].share, window));
    printf(", \"statuses\": {");
    const char *comma = "";
    for (int i = 0; i < 1000; i++)
        if (statuses[i]) { printf("%s\"%d\": %zu", comma, i, statuses[i]); comma = ", "; }
    printf("}, \"errors\": {");
    comma = "";
    for (int i = 0; i < ERRORS; i++)
        if (errors[i]) { printf("%s\"%s\": %zu", comma, ERROR_NAMES[i], errors[i]); comma = ", "; }
    printf("}, \"failed_p50_ms\": ");
    if (bad.count) printf("%.4f", 1000 * quantile(&bad, 0.5, 0)); else printf("null");
    printf(", \"intended\": %zu, \"unanswered\": %zu, \"answered\": %zu, \"failed\": %zu, \"stages_ms\": {", intended_count, unanswered, answered, failed);
    comma = "";
    for (size_t i = 0; i < stage_count && staged > 0; i++) {
        printf("%s\"%s\": %.4f", comma, stage_names[i], stage_sums[i] / (double)staged);
        comma = ", ";
    }
    printf("}, \"client_cpu_s\": %.4f}\n", cpu);
}

int main(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "usage: client PORT CALLERS SECONDS RATE SEED WARM_UP FILE...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    port = atoi(argv[1]);
    connection_count = (size_t)atol(argv[2]);
    seconds = atof(argv[3]);
    rate = atof(argv[4]);
    seed = strtoull(argv[5], NULL, 10) * 0x9E3779B97F4A7C15ULL + 1;
    warm_up = atof(argv[6]);
    request_count = (size_t)(argc - 7);
    requests = room(NULL, request_count * sizeof *requests);
    for (size_t i = 0; i < request_count; i++) requests[i] = whole_file(argv[7 + i]);
    connections = calloc(connection_count, sizeof *connections);
    idle_stack = calloc(connection_count, sizeof *idle_stack);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (connections == NULL || idle_stack == NULL || poller < 0 || timer < 0 || connection_count == 0 || seconds <= 0) die("start");
    for (size_t i = 0; i < connection_count; i++) connections[i].fd = -1;
    struct epoll_event ticking = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, timer, &ticking) < 0) die("epoll_ctl");

    begun = now();
    double next_arrival = begun;
    double looked = begun;
    if (rate > 0) { count_from = begun + warm_up; stop_at = count_from + seconds; counting = true; }
    for (;;) {
        double at = now();
        if (!counting && (at - begun >= warm_up) && (answered >= connection_count || at - begun >= 10 * seconds)) {
            counting = true;
            count_from = at;
            stop_at = at + seconds;
        }
        if (counting && at >= stop_at) {
            if (rate <= 0) break;
            bool waiting = false;
            for (size_t i = 0; i < connection_count && !waiting; i++) waiting = connections[i].busy;
            bool arrived = next_arrival >= stop_at; // or the process slept past the window's end, and its last ones are still to come
            if ((arrived && !waiting && pending_count == 0) || at >= stop_at + GRACE_S) break;
        }
        if (at - looked > 0.5) { late(at); looked = at; }
        double wake = at + 0.05;
        if (rate > 0) {
            for (; next_arrival <= at && next_arrival < stop_at; next_arrival += -log(uniform()) / rate) {
                if (next_arrival >= count_from) intended_count++;
                arrive(next_arrival);
            }
            start_open(at);
            if (next_arrival < stop_at && next_arrival < wake) wake = next_arrival;
        } else start_closed(at);
        if (counting && at < stop_at && stop_at < wake) wake = stop_at;
        double pause = wake - now();
        if (pause < 1e-6) pause = 1e-6;
        struct itimerspec ring = {.it_value = {(time_t)pause, (long)((pause - floor(pause)) * 1e9)}};
        timerfd_settime(timer, 0, &ring, NULL);
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr != NULL) happened(events[i].data.ptr, events[i].events);
            else { uint64_t rings; if (read(timer, &rings, sizeof rings) < 0 && errno != EAGAIN) die("timer"); }
        }
    }
    if (rate > 0) {
        double at = now();
        for (size_t i = 0; i < connection_count; i++)
            if (connections[i].busy && counts(connections[i].intended, at)) { unanswered++; add(&good, at - connections[i].intended); }
        for (size_t i = 0; i < pending_count; i++) {
            double intended = pending[(pending_first + i) % pending_room];
            if (counts(intended, at)) { unanswered++; add(&good, at - intended); }
        }
    }
    double gap = seconds * 0.2;
    bool even = rate <= 0 && count_from - last_before < gap && stop_at - last_within < gap;
    report(even ? last_within - last_before : seconds);
    return 0;
}
