/* Counts the changes that a process makes to the files of one directory, and at a chosen one kills
 * the process or lets the operation fail. Preloaded, so that it sees what Rust and C write too.
 *
 * Operations, by letter: c open for creation, o open for writing, w write, t truncate, s sync,
 * r rename, m make directory, u unlink or remove directory. Linux with glibc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
    char prefix[PATH_MAX];
    size_t length;
    pid_t process;      /* the one that asked; its children are left alone */
    long seen, at;
    int error;          /* 0: SIGKILL */
    int lasting;        /* whether what follows fails too */
    int percent;        /* of a write that happens before the fault */
    int broken;
    char kinds[16];     /* the operations that can fail */
    int trace;
} state = {.trace = -1};

/* From Python: watch what happens under `prefix`, which must be absolute and without links. */
void faults_arm(const char *prefix, long at, int error, const char *kinds, int lasting,
                int percent, int trace)
{
    snprintf(state.prefix, sizeof state.prefix, "%s", prefix);
    snprintf(state.kinds, sizeof state.kinds, "%s", kinds);
    state.length = strlen(state.prefix);
    state.seen = 0;
    state.at = at;
    state.error = error;
    state.lasting = lasting;
    state.percent = percent;
    state.broken = 0;
    state.trace = trace;
    state.process = (pid_t)syscall(SYS_getpid);
}

static int watched(const char *path)
{
    return strncmp(path, state.prefix, state.length) == 0
           && (path[state.length] == '/' || path[state.length] == 0);
}

static int named(int number, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int absolute(int directory, const char *path, char *out)
{
    char above[PATH_MAX];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return 1;
    }
    if (directory == AT_FDCWD ? !getcwd(above, sizeof above) : !named(directory, above))
        return 0;
    if (strlen(above) + strlen(path) + 2 > PATH_MAX)
        return 0;
    strcpy(out, above);
    strcat(out, "/");
    strcat(out, path);
    return 1;
}

/* 0: go on. Otherwise errno of the failure. *first: whether it is the chosen operation. */
static int verdict(char kind, const char *path, int *first)
{
    *first = 0;
    if (!watched(path))
        return 0;
    long number = __atomic_add_fetch(&state.seen, 1, __ATOMIC_SEQ_CST);
    if (state.trace >= 0) {
        char line[PATH_MAX + 8];
        int length = snprintf(line, sizeof line, "%c %s\n", kind, path);
        syscall(SYS_write, state.trace, line, (size_t)length);
    }
    if (state.at == 0 || number < state.at || !strchr(state.kinds, kind))
        return 0;
    if (state.broken)
        return state.lasting ? state.error : 0;
    state.broken = 1;
    *first = 1;
    if (state.error == 0 && kind != 'w')
        syscall(SYS_kill, state.process, SIGKILL);
    return state.error ? state.error : -1;
}

static int watching(void)
{
    return state.process != 0 && (pid_t)syscall(SYS_getpid) == state.process;
}

static int refused_at(char kind, int directory, const char *path)
{
    char full[PATH_MAX];
    int first, saved = errno, found = 0;
    if (watching() && absolute(directory, path, full))
        found = verdict(kind, full, &first);
    errno = found > 0 ? found : saved;
    return found > 0;
}

static int refused_file(char kind, int number)
{
    char full[PATH_MAX];
    int first, saved = errno, found = 0;
    if (watching() && named(number, full))
        found = verdict(kind, full, &first);
    if (found < 0)
        syscall(SYS_kill, state.process, SIGKILL);
    errno = found > 0 ? found : saved;
    return found > 0;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static char opened(int flags)
{
    if (flags & (O_CREAT | O_TRUNC))
        return 'c';
    return (flags & O_ACCMODE) == O_RDONLY ? 0 : 'o';
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); MODE_OF(flags) \
        if (opened(flags) && refused_at(opened(flags), AT_FDCWD, path)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        REAL(name); MODE_OF(flags) \
        if (opened(flags) && refused_at(opened(flags), directory, path)) return -1; \
        return real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

/* A chosen write happens in part: then the process is killed, or is told how much was written
 * (no space is found out by the next one), or that it failed. */
ssize_t write(int number, const void *bytes, size_t count)
{
    REAL(write);
    char path[PATH_MAX];
    int first, saved = errno, found;
    if (!watching() || !named(number, path) || !(found = verdict('w', path, &first))) {
        errno = saved;
        return real(number, bytes, count);
    }
    size_t part = first ? count * (size_t)state.percent / 100 : 0;
    ssize_t done = part ? real(number, bytes, part) : 0;
    if (found < 0)
        syscall(SYS_kill, state.process, SIGKILL);
    if (done > 0 && state.lasting)
        return done;
    errno = found;
    return -1;
}

ssize_t writev(int number, const struct iovec *parts, int count)
{
    REAL(writev);
    return refused_file('w', number) ? -1 : real(number, parts, count);
}

ssize_t pwrite64(int number, const void *bytes, size_t count, off64_t offset)
{
    REAL(pwrite64);
    return refused_file('w', number) ? -1 : real(number, bytes, count, offset);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t count)
{
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real)
        real = (ssize_t (*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    return refused_file('w', to) ? -1 : real(to, from, offset, count);
}

int ftruncate64(int number, off64_t size)
{
    REAL(ftruncate64);
    return refused_file('t', number) ? -1 : real(number, size);
}

int fsync(int number)
{
    REAL(fsync);
    return refused_file('s', number) ? -1 : real(number);
}

int fdatasync(int number)
{
    REAL(fdatasync);
    return refused_file('s', number) ? -1 : real(number);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return refused_at('r', AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int before, const char *from, int after, const char *to)
{
    REAL(renameat);
    return refused_at('r', after, to) ? -1 : real(before, from, after, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    return refused_at('m', AT_FDCWD, path) ? -1 : real(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    REAL(mkdirat);
    return refused_at('m', directory, path) ? -1 : real(directory, path, mode);
}

int unlink(const char *path)
{
    REAL(unlink);
    return refused_at('u', AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int directory, const char *path, int flags)
{
    REAL(unlinkat);
    return refused_at('u', directory, path) ? -1 : real(directory, path, flags);
}

int rmdir(const char *path)
{
    REAL(rmdir);
    return refused_at('u', AT_FDCWD, path) ? -1 : real(path);
}
