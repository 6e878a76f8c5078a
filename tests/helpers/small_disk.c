/* A small file system where none may be mounted.  Preloaded into a process, it lets the files below
 * $SMALL_DISKS/N take N KiB together, in whole blocks as on a tmpfs, and then says ENOSPC.  Here are
 * the calls by which the programs under test write files: others are not seen. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define BLOCK 4096

static __thread off_t used; /* blocks */

static off_t blocks(off_t bytes) { return (bytes + BLOCK - 1) / BLOCK; }

static int add(const char *path, const struct stat *file, int type, struct FTW *where) {
    (void)path, (void)where;
    used += type == FTW_F ? blocks(file->st_size) : 0;
    return 0;
}

/* How many of `want` bytes the file may take at the offset `at`, or at its position if that is
 * negative.  -1 and ENOSPC when there is no room for a single one. */
static ssize_t room(int fd, off_t at, size_t want) {
    const char *disks = getenv("SMALL_DISKS");
    char link[32], path[PATH_MAX];
    struct stat file;
    if (disks == NULL || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) {
        return (ssize_t)want;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = '\0';
    size_t above = strlen(disks);
    if (strncmp(path, disks, above) != 0 || path[above] != '/') {
        return (ssize_t)want;
    }
    char *end;
    off_t size = strtol(path + above + 1, &end, 10) * 1024 / BLOCK;
    *end = '\0';
    used = 0;
    nftw(path, add, 16, FTW_PHYS);
    if (at < 0) {
        at = fcntl(fd, F_GETFL) & O_APPEND ? file.st_size : lseek(fd, 0, SEEK_CUR);
    }
    off_t most = (blocks(file.st_size) + size - used) * BLOCK; /* of this file */
    if (at + (off_t)want <= most) {
        return (ssize_t)want;
    }
    if (at >= most) {
        errno = ENOSPC;
        return -1;
    }
    return most - at;
}

/* How many of `want` bytes there are to copy. */
static size_t left(int fd, const off_t *at, size_t want) {
    struct stat file;
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) {
        return want;
    }
    off_t rest = file.st_size - (at != NULL ? *at : lseek(fd, 0, SEEK_CUR));
    return rest < 0 ? 0 : (size_t)rest < want ? (size_t)rest : want;
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t fits = room(fd, -1, size);
    return fits < 0 ? -1 : syscall(SYS_write, fd, data, fits);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    ssize_t fits = room(fd, at, size);
    return fits < 0 ? -1 : syscall(SYS_pwrite64, fd, data, fits, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        size += parts[i].iov_len;
    }
    if (room(fd, -1, size) == (ssize_t)size) {
        return syscall(SYS_writev, fd, parts, count);
    }
    ssize_t written = 0;
    for (int i = 0; i < count; i++) {
        ssize_t some = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (some < 0) {
            return written > 0 ? written : -1;
        }
        written += some;
    }
    return written;
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    ssize_t fits = room(to, -1, left(from, at, size));
    return fits < 0 ? -1 : syscall(SYS_sendfile, to, from, at, fits);
}

ssize_t copy_file_range(int from, off_t *at, int to, off_t *there, size_t size, unsigned flags) {
    ssize_t fits = room(to, there != NULL ? *there : -1, left(from, at, size));
    return fits < 0 ? -1 : syscall(SYS_copy_file_range, from, at, to, there, fits, flags);
}

int ftruncate(int fd, off_t size) {
    ssize_t fits = room(fd, 0, (size_t)size);
    if (fits == size) {
        return (int)syscall(SYS_ftruncate, fd, size);
    }
    errno = ENOSPC;
    return -1;
}

/* The names of programs that ask for 64 bits, which these have. */
_Static_assert(sizeof(off_t) == 8, "a 64-bit system");
ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t sendfile64(int, int, off_t *, size_t) __attribute__((alias("sendfile")));
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));
