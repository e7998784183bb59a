/* Preloaded into a process (LD_PRELOAD): counts what it makes the disk wait for, as the C library is asked for it.
 *
 * A flush is a call of fsync, fdatasync, syncfs, sync, sync_file_range or msync(MS_SYNC), or a write to a file that
 * was opened with O_SYNC or O_DSYNC. With HUTCH_BENCH_FLUSH_US a flush takes that many microseconds instead of
 * reaching the disk, so that what many threads gain can be measured on a disk of any speed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MOST_FILES 65536

static atomic_long count;
static atomic_char synced[MOST_FILES];
static long delay_us;

__attribute__((constructor)) static void start(void) {
    const char *text = getenv("HUTCH_BENCH_FLUSH_US");
    delay_us = text ? atol(text) : 0;
}

long hutch_bench_flushes(void) { return count; }

/* Whether the flush was simulated. */
static int flushed(void) {
    count++;
    if (!delay_us) return 0;
    struct timespec left = {delay_us / 1000000, delay_us % 1000000 * 1000};
    while (nanosleep(&left, &left)) {}
    return 1;
}

int fsync(int fd) { return flushed() ? 0 : REAL(fsync)(fd); }
int fdatasync(int fd) { return flushed() ? 0 : REAL(fdatasync)(fd); }
int syncfs(int fd) { return flushed() ? 0 : REAL(syncfs)(fd); }
void sync(void) { if (!flushed()) REAL(sync)(); }
int sync_file_range(int fd, off_t at, off_t length, unsigned int flags) {
    return flushed() ? 0 : REAL(sync_file_range)(fd, at, length, flags);
}
int msync(void *at, size_t length, int flags) {
    return (flags & MS_SYNC) && flushed() ? 0 : REAL(msync)(at, length, flags);
}

static int opened(int fd, int flags) {
    if (fd >= 0 && fd < MOST_FILES) synced[fd] = (flags & (O_DSYNC | O_SYNC)) != 0;
    return fd;
}

#define WITH_MODE                                            \
    mode_t mode = 0;                                         \
    if (flags & (O_CREAT | O_TMPFILE)) {                     \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                        \
    }
int open(const char *path, int flags, ...) { WITH_MODE return opened(REAL(open)(path, flags, mode), flags); }
int open64(const char *path, int flags, ...) { WITH_MODE return opened(REAL(open64)(path, flags, mode), flags); }
int openat(int at, const char *path, int flags, ...) {
    WITH_MODE return opened(REAL(openat)(at, path, flags, mode), flags);
}
int openat64(int at, const char *path, int flags, ...) {
    WITH_MODE return opened(REAL(openat64)(at, path, flags, mode), flags);
}

static void wrote(int fd) {
    if (fd >= 0 && fd < MOST_FILES && synced[fd]) flushed();
}
ssize_t write(int fd, const void *data, size_t size) { wrote(fd); return REAL(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { wrote(fd); return REAL(pwrite)(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    wrote(fd);
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) { wrote(fd); return REAL(writev)(fd, parts, n); }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    wrote(fd);
    return REAL(pwritev)(fd, parts, n, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) {
    wrote(fd);
    return REAL(pwritev64)(fd, parts, n, at);
}
