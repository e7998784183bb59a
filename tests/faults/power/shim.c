/* Preloaded into a process, it does two things to the files of one folder, HUTCH_SHIM_FOLDER (a real path):
 *
 * - it records, in the file HUTCH_SHIM_LOG, everything that changes them and every flush, in the exact order, also
 *   over several processes. Flushes are not done, only recorded: they take HUTCH_SHIM_FLUSH_US microseconds.
 * - on demand (shim_fail) it lets chosen calls fail as a failing or full disk does.
 *
 * A record is a `struct record`, then `first` bytes of a path or a text, then `second` bytes of data or of a path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
/* What a descriptor stands for: something else, a file in the folder, such a file opened with O_DSYNC or O_SYNC, one
 * without a name there (O_TMPFILE), which can fail and need not be recorded. */
enum { OTHER = 0, TRACKED = 1, DSYNC = 2, NAMELESS = 3 };

struct __attribute__((packed)) record {
    uint8_t kind;
    uint64_t inode;
    uint64_t a, b;
    uint32_t first, second;
};

static char folder[PATH_MAX];
static size_t folder_length;
static int log_fd = -1;
static unsigned flush_us;
static unsigned char kinds[FDS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* --- faults --- */

/* FLUSHES are those of files. */
enum { WRITES = 1, FLUSHES = 2, TRUNCATES = 4, READS = 8, OPENS = 16, UNLINKS = 32, FOLDER_FLUSHES = 64 };
static struct {
    int what, nth, times, error, partly, seen;
} fault;

/* From now on the calls `what` (a sum of the above) fail with `error`: the `nth`, from 1, and those after it, `times` in
 * all (0: all). `partly`: a write that fails writes half of its bytes first, and says so. `what` 0 ends it. */
void shim_fail(int what, int nth, int times, int error, int partly) {
    pthread_mutex_lock(&mutex);
    fault.what = what, fault.nth = nth, fault.times = times, fault.error = error, fault.partly = partly, fault.seen = 0;
    pthread_mutex_unlock(&mutex);
}

/* How many such calls there were since. */
int shim_seen(void) { return fault.seen; }

/* Whether this call is to fail. */
static int failing(int what) {
    if (!(fault.what & what)) return 0;
    int number = __atomic_add_fetch(&fault.seen, 1, __ATOMIC_SEQ_CST);
    if (number < fault.nth || (fault.times && number >= fault.nth + fault.times)) return 0;
    errno = fault.error;
    return 1;
}

/* --- the log --- */

static void append(uint8_t kind, uint64_t inode, uint64_t a, uint64_t b, const char *text, const struct iovec *parts,
                   int count, size_t bytes) {
    struct record head = {kind, inode, a, b, text ? strlen(text) : 0, bytes};
    struct iovec out[2 + 1024] = {{&head, sizeof head}, {(void *)(text ? text : ""), head.first}};
    int n = 2;
    size_t expected = sizeof head + head.first + bytes;
    for (int i = 0; i < count && bytes && n < 2 + 1024; i++) {
        size_t take = parts[i].iov_len < bytes ? parts[i].iov_len : bytes;
        out[n++] = (struct iovec){parts[i].iov_base, take};
        bytes -= take;
    }
    if (syscall(SYS_writev, log_fd, out, n) != (ssize_t)expected || bytes) {
        fprintf(stderr, "shim: the log cannot be written\n");
        abort();
    }
}

static void append_two(uint8_t kind, uint64_t a, const char *one, const char *two) {
    struct iovec part = {(void *)two, strlen(two)};
    append(kind, 0, a, 0, one, &part, 1, part.iov_len);
}

/* An operation and its record are one step, for all threads and processes. */
static void lock(void) {
    pthread_mutex_lock(&mutex);
    while (flock(log_fd, LOCK_EX)) continue;
}

static void unlock(void) {
    int kept = errno;
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = kept;
}

/* What the workload says: "acknowledged 17". */
void shim_mark(const char *text) {
    lock();
    append('K', 0, 0, 0, text, NULL, 0, 0);
    unlock();
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("HUTCH_SHIM_LOG"), *where = getenv("HUTCH_SHIM_FOLDER"), *us = getenv("HUTCH_SHIM_FLUSH_US");
    if (!path || !where) return;
    folder_length = snprintf(folder, sizeof folder, "%s", where);
    flush_us = us ? atoi(us) : 0;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* Out of the way of programs that count on low numbers. */
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, fd);
    if (log_fd < 0) abort();
}

/* --- helpers --- */

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int kind_of(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS ? kinds[fd] : OTHER; }

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

/* The absolute path of `path`, its last part not followed; whether it is the folder, or in it. */
static int inside(int dirfd, const char *path, char *result) {
    if (log_fd < 0 || !path) return 0;
    char whole[2 * PATH_MAX] = "", place[PATH_MAX], link[64];
    if (path[0] != '/') {
        snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, whole, PATH_MAX - 1);
        if (n < 0) return 0;
        whole[n] = 0;
    }
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    for (length = strlen(whole); length > 1 && whole[length - 1] == '/';) whole[--length] = 0;
    char *slash = strrchr(whole, '/');
    *slash = 0;
    if (!realpath(*whole ? whole : "/", place)) return 0;
    length = snprintf(result, PATH_MAX, "%s/%s", strcmp(place, "/") ? place : "", slash + 1);
    return length < PATH_MAX && !strncmp(result, folder, folder_length) && (!result[folder_length] || result[folder_length] == '/');
}

/* --- opening and closing --- */

static int opened(int dirfd, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    flags |= O_LARGEFILE;
    if (!inside(dirfd, path, whole)) {
        int fd = syscall(SYS_openat, dirfd, path, flags, mode);
        if (fd >= 0 && fd < FDS) kinds[fd] = OTHER;
        return fd;
    }
    if (failing(OPENS)) return -1;
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        int fd = syscall(SYS_openat, dirfd, path, flags, mode);
        if (fd >= 0 && fd < FDS) kinds[fd] = NAMELESS;
        return fd;
    }
    lock();
    struct stat before;
    int there = !stat(whole, &before);
    int fd = syscall(SYS_openat, dirfd, path, flags, mode);
    if (fd >= 0 && fd < FDS) {
        kinds[fd] = flags & O_DSYNC ? DSYNC : TRACKED; /* O_SYNC has the bit of O_DSYNC */
        append('O', inode_of(fd), !there, (unsigned)flags, whole, NULL, 0, 0);
        if (there && flags & O_TRUNC && before.st_size) append('T', inode_of(fd), 0, 0, NULL, NULL, 0, 0);
    }
    unlock();
    return fd;
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE return opened(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE return opened(dirfd, path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < FDS) kinds[fd] = OTHER;
    return real(fd);
}

/* --- writing --- */

static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset) {
    struct iovec half = {count ? parts[0].iov_base : NULL, count ? parts[0].iov_len / 2 : 0};
    if (failing(WRITES)) {
        if (!fault.partly || !half.iov_len) return -1;
        parts = &half, count = 1;
    }
    int kind = kind_of(fd), dsync = kind == DSYNC;
    lock();
    uint64_t inode = inode_of(fd);
    ssize_t done = offset >= 0 ? syscall(SYS_pwritev, fd, parts, count, (long)offset, 0L) : syscall(SYS_writev, fd, parts, count);
    if (done >= 0 && kind != NAMELESS) {
        if (offset < 0) offset = lseek(fd, 0, SEEK_CUR) - done;
        append('W', inode, offset, dsync, NULL, parts, count, done);
    }
    unlock();
    if (dsync && done >= 0) {
        if (flush_us) usleep(flush_us);
        ssize_t bytes = done;
        if (failing(FLUSHES)) done = -1;
        lock();
        append(done < 0 ? 'X' : 'D', inode, offset, bytes, NULL, NULL, 0, 0);
        unlock();
    }
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    REAL(write);
    return kind_of(fd) ? written(fd, &(struct iovec){(void *)data, bytes}, 1, -1) : real(fd, data, bytes);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return kind_of(fd) ? written(fd, parts, count, -1) : real(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    REAL(pwrite);
    return kind_of(fd) ? written(fd, &(struct iovec){(void *)data, bytes}, 1, offset) : real(fd, data, bytes, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) { return pwrite(fd, data, bytes, offset); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    REAL(pwritev);
    return kind_of(fd) ? written(fd, parts, count, offset) : real(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return pwritev(fd, parts, count, offset); }

static int cut_or_grown(int fd, int result, uint64_t before) {
    struct stat after;
    if (!result && kind_of(fd) != NAMELESS && !fstat(fd, &after) && (uint64_t)after.st_size != before) append('T', after.st_ino, after.st_size, 0, NULL, NULL, 0, 0);
    return result;
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    if (!kind_of(fd)) return real(fd, size);
    if (failing(TRUNCATES)) return -1;
    lock();
    struct stat before = {0};
    fstat(fd, &before);
    int result = cut_or_grown(fd, real(fd, size), before.st_size);
    unlock();
    return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size) {
    char whole[PATH_MAX];
    REAL(truncate);
    if (!inside(AT_FDCWD, path, whole)) return real(path, size);
    int fd = open(path, O_WRONLY);
    int result = fd < 0 ? -1 : ftruncate(fd, size);
    if (fd >= 0) close(fd);
    return result;
}

int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int posix_fallocate(int fd, off_t offset, off_t bytes) {
    REAL(posix_fallocate);
    if (!kind_of(fd)) return real(fd, offset, bytes);
    if (failing(TRUNCATES)) return fault.error;
    lock();
    struct stat before = {0};
    fstat(fd, &before);
    int result = cut_or_grown(fd, real(fd, offset, bytes), before.st_size);
    unlock();
    return result;
}

int posix_fallocate64(int fd, off64_t offset, off64_t bytes) { return posix_fallocate(fd, offset, bytes); }

int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    REAL(fallocate);
    if (!kind_of(fd)) return real(fd, mode, offset, bytes);
    if (mode) { /* holes and the like: no store makes them, and none may begin to unnoticed */
        errno = EOPNOTSUPP;
        return -1;
    }
    return (errno = posix_fallocate(fd, offset, bytes)) ? -1 : 0;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) { return fallocate(fd, mode, offset, bytes); }

/* --- flushing: begun, then done or failed. What was written after it began is not in it. --- */

static int flushed(int fd) {
    static unsigned long last;
    if (kind_of(fd) == NAMELESS) return failing(FLUSHES) ? -1 : 0;
    uint64_t inode = inode_of(fd), number = (uint64_t)getpid() << 32 | __atomic_add_fetch(&last, 1, __ATOMIC_SEQ_CST);
    lock();
    append('B', inode, number, 0, NULL, NULL, 0, 0);
    unlock();
    if (flush_us) usleep(flush_us);
    struct stat found;
    int fails = failing(!fstat(fd, &found) && S_ISDIR(found.st_mode) ? FOLDER_FLUSHES : FLUSHES), kept = errno;
    lock();
    append(fails ? 'F' : 'E', inode, number, 0, NULL, NULL, 0, 0);
    unlock();
    errno = kept;
    return fails ? -1 : 0;
}

int fsync(int fd) {
    REAL(fsync);
    return kind_of(fd) ? flushed(fd) : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return kind_of(fd) ? flushed(fd) : real(fd);
}

/* It flushes neither sizes nor the disk's cache: it promises nothing, and so nothing is recorded. */
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
    REAL(sync_file_range);
    return kind_of(fd) ? 0 : real(fd, offset, bytes, flags);
}

/* --- reading --- */

ssize_t read(int fd, void *data, size_t bytes) {
    REAL(read);
    return kind_of(fd) && failing(READS) ? -1 : real(fd, data, bytes);
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
    REAL(pread);
    return kind_of(fd) && failing(READS) ? -1 : real(fd, data, bytes, offset);
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset) { return pread(fd, data, bytes, offset); }

/* --- names --- */

int unlink(const char *path) {
    char whole[PATH_MAX];
    REAL(unlink);
    if (!inside(AT_FDCWD, path, whole)) return real(path);
    if (failing(UNLINKS)) return -1;
    lock();
    int result = real(path);
    if (!result) append('U', 0, 0, 0, whole, NULL, 0, 0);
    unlock();
    return result;
}

int rmdir(const char *path) {
    char whole[PATH_MAX];
    REAL(rmdir);
    if (!inside(AT_FDCWD, path, whole)) return real(path);
    lock();
    int result = real(path);
    if (!result) append('U', 0, 1, 0, whole, NULL, 0, 0);
    unlock();
    return result;
}

int unlinkat(int dirfd, const char *path, int flags) {
    char whole[PATH_MAX];
    REAL(unlinkat);
    if (!inside(dirfd, path, whole)) return real(dirfd, path, flags);
    lock();
    int result = real(dirfd, path, flags);
    if (!result) append('U', 0, flags & AT_REMOVEDIR ? 1 : 0, 0, whole, NULL, 0, 0);
    unlock();
    return result;
}

int remove(const char *path) {
    struct stat found;
    return !lstat(path, &found) && S_ISDIR(found.st_mode) ? rmdir(path) : unlink(path);
}

int mkdir(const char *path, mode_t mode) {
    char whole[PATH_MAX];
    REAL(mkdir);
    if (!inside(AT_FDCWD, path, whole)) return real(path, mode);
    lock();
    int result = real(path, mode);
    struct stat found;
    if (!result) append('M', stat(whole, &found) ? 0 : found.st_ino, 0, 0, whole, NULL, 0, 0);
    unlock();
    return result;
}

int rename(const char *from, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    REAL(rename);
    int here = inside(AT_FDCWD, from, one), there = inside(AT_FDCWD, to, two);
    if (!here && !there) return real(from, to);
    lock();
    int result = real(from, to);
    if (!result) append_two('R', here && there, one, two);
    unlock();
    return result;
}

int link(const char *from, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    REAL(link);
    int here = inside(AT_FDCWD, from, one), there = inside(AT_FDCWD, to, two);
    if (!here && !there) return real(from, to);
    lock();
    int result = real(from, to);
    if (!result) append_two('L', here && there, one, two);
    unlock();
    return result;
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    REAL(linkat);
    int here = inside(from_fd, from, one), there = inside(to_fd, to, two);
    if (!here && !there) return real(from_fd, from, to_fd, to, flags);
    lock();
    int result = real(from_fd, from, to_fd, to, flags);
    if (!result) append_two('L', here && there, one, two);
    unlock();
    return result;
}

/* --- maps: a write through a map is not seen here, so the existence of the map is recorded --- */

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    if (kind_of(fd) && (flags & MAP_SHARED) && (protection & PROT_WRITE)) {
        lock();
        append('P', inode_of(fd), bytes, 0, NULL, NULL, 0, 0);
        unlock();
    }
    return real(address, bytes, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return mmap(address, bytes, protection, flags, fd, offset);
}
