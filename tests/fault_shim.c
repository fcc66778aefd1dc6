// What a process asks of the file system below one folder, counted; at the n-th operation something happens to it.
//
// Preloaded (LD_PRELOAD) and armed by fault_arm(); before that every call passes through. Counted are the operations
// that change what lies on the disk: creating opens, writes, truncations, fsync, renames, links, removals, new folders.
// What a library asks of the kernel without libc (safetensors' last rename does) is not seen; AFTER kills right before it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TORN, SHORT, FAIL, AFTER };

static char root[PATH_MAX];
static size_t root_len;
static int log_fd = -1;
static long target, times, counted;
static int action, failure;
static volatile int armed, busy;

// Counts from 1; `what` happens at operation `at` and the `repeat` - 1 after it (0: at all from then on).
void fault_arm(const char *folder, const char *log, long at, long repeat, int what, int error) {
    armed = 0;
    snprintf(root, sizeof root, "%s", folder);
    root_len = strlen(root);
    if (log_fd >= 0) close(log_fd);
    log_fd = log && *log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    target = at; times = repeat; action = what; failure = error; counted = 0;
    armed = 1;
}

void fault_disarm(void) { armed = 0; }

long fault_counted(void) { return counted; }

static int inside(const char *path) {
    return strncmp(path, root, root_len) == 0 && (path[root_len] == 0 || path[root_len] == '/');
}

static int path_of_fd(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int path_at(int dirfd, const char *name, char *path) {
    char folder[PATH_MAX];
    if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return 1; }
    if (dirfd == AT_FDCWD) { if (!getcwd(folder, sizeof folder)) return 0; }
    else if (!path_of_fd(dirfd, folder)) return 0;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", folder, name);
    return 1;
}

// Tells what shall happen to this operation: COUNT lets it pass, FAIL has set errno.
static int met(const char *kind, const char *path) {
    if (busy || !inside(path)) return COUNT;
    busy = 1;
    long number = ++counted;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, kind, path[root_len] ? path + root_len + 1 : ".");
        static ssize_t (*next)(int, const void *, size_t);
        if (!next) next = dlsym(RTLD_NEXT, "write");
        next(log_fd, line, length);
    }
    busy = 0;
    if (!target || number < target || (times && number >= target + times)) return COUNT;
    int is_write = strcmp(kind, "write") == 0;
    if (action == KILL || (!is_write && (action == TORN || action == AFTER))) { kill(getpid(), SIGKILL); pause(); }
    if (action == FAIL) errno = failure;
    return action;
}

static int met_at(const char *kind, int dirfd, const char *name) {
    char path[PATH_MAX];
    if (!armed || !name || !path_at(dirfd, name, path)) return COUNT;
    return met(kind, path);
}

static int met_fd(const char *kind, int fd) {
    char path[PATH_MAX];
    if (!armed || !path_of_fd(fd, path)) return COUNT;
    return met(kind, path);
}

#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

#define OPEN(symbol) \
    int symbol(const char *path, int flags, ...) { \
        NEXT(int, #symbol, const char *, int, ...); \
        MODE_OF(flags) \
        if (CHANGES(flags) && met_at("open", AT_FDCWD, path) == FAIL) return -1; \
        return next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol) \
    int symbol(int dirfd, const char *path, int flags, ...) { \
        NEXT(int, #symbol, int, const char *, int, ...); \
        MODE_OF(flags) \
        if (CHANGES(flags) && met_at("open", dirfd, path) == FAIL) return -1; \
        return next(dirfd, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(ssize_t, "write", int, const void *, size_t);
    switch (met_fd("write", fd)) {
        case FAIL: return -1;
        case TORN: next(fd, data, size / 2); kill(getpid(), SIGKILL); pause(); return -1;
        case AFTER: next(fd, data, size); kill(getpid(), SIGKILL); pause(); return -1;
        case SHORT: return next(fd, data, size > 1 ? size / 2 : size);
    }
    return next(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(ssize_t, "writev", int, const struct iovec *, int);
    return met_fd("writev", fd) == FAIL ? -1 : next(fd, parts, count);
}

#define PWRITE(symbol, offset_t) \
    ssize_t symbol(int fd, const void *data, size_t size, offset_t offset) { \
        NEXT(ssize_t, #symbol, int, const void *, size_t, offset_t); \
        return met_fd("pwrite", fd) == FAIL ? -1 : next(fd, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FD(symbol, kind) \
    int symbol(int fd) { NEXT(int, #symbol, int); return met_fd(kind, fd) == FAIL ? -1 : next(fd); }
ON_FD(fsync, "fsync")
ON_FD(fdatasync, "fsync")

#define TRUNCATE(symbol, offset_t) \
    int symbol(int fd, offset_t size) { NEXT(int, #symbol, int, offset_t); return met_fd("truncate", fd) == FAIL ? -1 : next(fd, size); }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    NEXT(int, "rename", const char *, const char *);
    return met_at("rename", AT_FDCWD, from) == FAIL ? -1 : next(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    NEXT(int, "renameat", int, const char *, int, const char *);
    return met_at("rename", from_fd, from) == FAIL ? -1 : next(from_fd, from, to_fd, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    NEXT(int, "renameat2", int, const char *, int, const char *, unsigned);
    return met_at("rename", from_fd, from) == FAIL ? -1 : next(from_fd, from, to_fd, to, flags);
}

int link(const char *from, const char *to) {
    NEXT(int, "link", const char *, const char *);
    return met_at("link", AT_FDCWD, to) == FAIL ? -1 : next(from, to);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    NEXT(int, "linkat", int, const char *, int, const char *, int);
    return met_at("link", to_fd, to) == FAIL ? -1 : next(from_fd, from, to_fd, to, flags);
}

#define ON_PATH(symbol) \
    int symbol(const char *path) { NEXT(int, #symbol, const char *); return met_at(#symbol, AT_FDCWD, path) == FAIL ? -1 : next(path); }
ON_PATH(unlink)
ON_PATH(rmdir)

int unlinkat(int dirfd, const char *path, int flags) {
    NEXT(int, "unlinkat", int, const char *, int);
    return met_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dirfd, path) == FAIL ? -1 : next(dirfd, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(int, "mkdir", const char *, mode_t);
    return met_at("mkdir", AT_FDCWD, path) == FAIL ? -1 : next(path, mode);
}

int mkdirat(int dirfd, const char *path, mode_t mode) {
    NEXT(int, "mkdirat", int, const char *, mode_t);
    return met_at("mkdir", dirfd, path) == FAIL ? -1 : next(dirfd, path, mode);
}

int chmod(const char *path, mode_t mode) {
    NEXT(int, "chmod", const char *, mode_t);
    return met_at("chmod", AT_FDCWD, path) == FAIL ? -1 : next(path, mode);
}
