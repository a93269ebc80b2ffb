/* A disk whose power fails, or that fails, below a process that was started with LD_PRELOAD.
 *
 * Of every file below SHIM_DIR it keeps what was synced (in SHIM_IMAGE/inodes) apart from what was only written. Names
 * (made, renamed, removed) hold when their directory was synced. sync_file_range counts as no sync. A sync that fails has
 * lost what it was for, as on Linux: a later one does not bring it back.
 *
 * What it is to do is said in the file SHIM_CONTROL, which is read and removed at the next call. One order, which takes the
 * place of the one before; calls are counted from when it is read, that one included:
 *   cut KIND N                at the N-th call of this kind the power fails and the process is killed
 *   kill KIND N               at the N-th call of this kind the process is killed; what it wrote stays
 *   fail KIND N ERRNO TIMES   the N-th call of this kind fails, and the next ones until it were TIMES; 0 is for ever, and
 *                             then what finds no room (ENOSPC) is written by half before
 * Kinds: see `kinds`; "any" is each of them, for a failure each that writes or syncs.
 *
 * When the power fails, of what was not synced all of a file is kept, or nothing, or a beginning with a torn end, or each
 * sector of 512 bytes by chance (SHIM_SEED); of the names that were not synced a beginning holds. SHIM_IMAGE/tree is what is
 * left. When the process ends by itself the image is made as at a cut. SHIM_IMAGE/report says how many calls of each kind
 * came, how many syncs were carried out, how many calls were made to fail, how many writes were not
 * synced at the end, and what was lost.
 *
 * Not seen: system calls past the C library (fallocate of the ballast, whose bytes nobody reads), descriptors that were
 * duplicated, paths relative to a directory unless they are removed, maps of files. witness.py sees those.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define FDS 65536

enum kind { WRITE, SYNC, RANGE, TRUNCATE, ALLOCATE, CREATE, RENAME, UNLINK, MKDIR, KINDS };
static const char *kinds[KINDS] = {"write", "sync", "range", "truncate", "allocate", "create", "rename", "unlink", "mkdir"};

struct change { off_t at; size_t len; char *data; struct change *next; }; /* no data: cut to `at` bytes */
struct inode { int id, image, dir; struct change *first, **last; };
struct name { char *path; struct inode *inode; struct name *next; };
struct op { char *path, *from; struct inode *inode; struct op *next; }; /* no inode: the name goes; from: a directory was renamed */

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct inode *open_files[FDS];
static struct name *now, *synced;
static struct op *ops, **last_op = &ops;
static char *dir, *image, *control;
static long seen[KINDS], calls, syncs, failed, unsynced, lost_writes, lost_names;
/* Calls until the order is carried out; 0 when there is none. */
static long cut, fail_in, fail_times;
static int cut_loses, cut_kind, fail_kind, fail_errno, fail_half, inodes, done;
static uint64_t seed;

#define REAL(name)                                                    \
    ({                                                                \
        static __typeof__(&name) real;                                \
        if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        real;                                                         \
    })

static uint32_t chance(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed >> 33;
}

static void die(const char *what) {
    fprintf(stderr, "power shim: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static int below(const char *path) {
    size_t n = dir ? strlen(dir) : 0;
    return n && path && !strncmp(path, dir, n) && (path[n] == '/' || !path[n]);
}

static struct name **find(struct name **list, const char *path) {
    while (*list && strcmp((*list)->path, path)) list = &(*list)->next;
    return list;
}

static void set(struct name **list, const char *path, struct inode *inode) {
    struct name **at = find(list, path);
    if (!inode) {
        if (*at) *at = (*at)->next;
    } else if (*at) {
        (*at)->inode = inode;
    } else {
        struct name *name = calloc(1, sizeof *name);
        *name = (struct name){strdup(path), inode, NULL};
        *at = name;
    }
}

static struct inode *make_inode(int is_dir) {
    struct inode *inode = calloc(1, sizeof *inode);
    char path[PATH_MAX];
    inode->id = ++inodes;
    inode->dir = is_dir;
    inode->last = &inode->first;
    inode->image = -1;
    if (!is_dir) {
        snprintf(path, sizeof path, "%s/inodes/%d", image, inode->id);
        inode->image = REAL(open)(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (inode->image < 0) die(path);
    }
    return inode;
}

static void move(char **path, const char *from, const char *to) {
    size_t n = strlen(from);
    char moved[PATH_MAX];
    if (strncmp(*path, from, n) || ((*path)[n] && (*path)[n] != '/')) return;
    snprintf(moved, sizeof moved, "%s%s", to, *path + n);
    free(*path);
    *path = strdup(moved);
}

static void carry_out(struct name **list, const struct op *op) {
    if (!op->from) return set(list, op->path, op->inode);
    for (struct name *name = *list; name; name = name->next) move(&name->path, op->from, op->path);
}

/* A change of names, kept until its directory is synced. */
static void change_later(const char *path, struct inode *inode, const char *from) {
    struct op *op = calloc(1, sizeof *op);
    *op = (struct op){strdup(path), from ? strdup(from) : NULL, inode, NULL};
    carry_out(&now, op);
    *last_op = op;
    last_op = &op->next;
}

static void rename_later(const char *path, struct inode *inode) { change_later(path, inode, NULL); }

static void apply(struct inode *inode, struct change *change, int whole) {
    if (!change->data) {
        if ((whole || chance() % 2) && REAL(ftruncate)(inode->image, change->at)) die("ftruncate of the image");
        return;
    }
    for (size_t from = 0; from < change->len;) {
        size_t end = whole ? change->len : (change->at + from) / SECTOR * SECTOR + SECTOR - change->at;
        if (end > change->len) end = change->len;
        if (whole || chance() % 2) {
            if (REAL(pwrite)(inode->image, change->data + from, end - from, change->at + from) < 0) die("write to the image");
        }
        from = end;
    }
}

static void settle(struct inode *inode, int whole) {
    enum { NOTHING, ALL, BEGINNING, SECTORS };
    int how = whole ? ALL : chance() % 4;
    long pending = 0;
    for (struct change *change = inode->first; change; change = change->next) pending++;
    long kept = how == BEGINNING && pending ? chance() % pending : how == ALL ? pending : 0;
    for (struct change *change = inode->first, *next; change; change = next) {
        if (kept-- > 0) {
            apply(inode, change, 1);
        } else {
            lost_writes++;
            if (how == SECTORS || (how == BEGINNING && kept == -1)) apply(inode, change, 0);
        }
        next = change->next;
        free(change->data);
        free(change);
    }
    inode->first = NULL;
    inode->last = &inode->first;
}

static void note(struct inode *inode, const void *data, size_t len, off_t at) {
    struct change *change = calloc(1, sizeof *change);
    *change = (struct change){at, len, NULL, NULL};
    if (data && !(change->data = malloc(len ? len : 1))) die("memory");
    if (data) memcpy(change->data, data, len);
    *inode->last = change;
    inode->last = &change->next;
}

static void parents(char *path, size_t from) {
    for (char *slash = path + from; (slash = strchr(slash + 1, '/'));) {
        *slash = 0;
        REAL(mkdir)(path, 0700);
        *slash = '/';
    }
}

static void copy(int from, int to) {
    char buffer[1 << 16];
    ssize_t n;
    off_t at = 0;
    while ((n = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (REAL(pwrite)(to, buffer, n, at) != n) die("copy");
        at += n;
    }
}

/* Whether the names of the directories above hold too. */
static int is_reached(const char *path) {
    char above[PATH_MAX];
    snprintf(above, sizeof above, "%s", path);
    for (char *slash; strcmp(above, dir) && (slash = strrchr(above, '/'));) {
        *slash = 0;
        if (!*find(&synced, above)) return 0;
    }
    return 1;
}

/* What a power cut leaves, or all. */
static void make_image(int whole) {
    char path[PATH_MAX];
    if (done++) return;
    for (struct name *name = now; name; name = name->next) {
        for (struct change *change = name->inode->first; change; change = change->next) unsynced++;
        settle(name->inode, whole);
    }
    long pending = 0;
    for (struct op *op = ops; op; op = op->next) pending++;
    long kept = whole ? pending : chance() % (pending + 1);
    lost_names = pending - kept;
    for (struct op *op = ops; op && kept--; op = op->next) carry_out(&synced, op);
    snprintf(path, sizeof path, "%s/tree/", image);
    size_t root = strlen(path) - 1;
    parents(path, strlen(image));
    for (struct name *name = synced; name; name = name->next) {
        if (!is_reached(name->path)) continue;
        snprintf(path, sizeof path, "%s/tree%s", image, name->path + strlen(dir));
        parents(path, root);
        if (name->inode->dir) {
            REAL(mkdir)(path, 0700);
            continue;
        }
        int to = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (to < 0) die(path);
        copy(name->inode->image, to);
        REAL(close)(to);
    }
    snprintf(path, sizeof path, "%s/report", image);
    FILE *report = fopen(path, "w");
    if (!report) die(path);
    fprintf(report, "calls %ld\nsyncs %ld\nfailed %ld\nunsynced %ld\n", calls, syncs, failed, unsynced);
    fprintf(report, "lost_writes %ld\nlost_names %ld\n", lost_writes, lost_names);
    for (int kind = 0; kind < KINDS; kind++) fprintf(report, "%s %ld\n", kinds[kind], seen[kind]);
    fclose(report);
}

/* KINDS for "any". */
static int kind_of(const char *name) {
    int kind = 0;
    while (kind < KINDS && strcmp(name, kinds[kind])) kind++;
    if (kind < KINDS || !strcmp(name, "any")) return kind;
    errno = EINVAL;
    die(name);
    return kind;
}

static void order(const char *text) {
    char kind[16];
    cut = fail_in = 0;
    cut_loses = sscanf(text, "cut %15s %ld", kind, &cut) == 2;
    if (cut_loses || sscanf(text, "kill %15s %ld", kind, &cut) == 2) {
        cut_kind = kind_of(kind);
    } else if (sscanf(text, "fail %15s %ld %d %ld", kind, &fail_in, &fail_errno, &fail_times) == 4) {
        fail_kind = kind_of(kind);
        fail_half = fail_errno == ENOSPC && !fail_times;
    } else {
        errno = EINVAL;
        die(text);
    }
}

static void look_at_control(void) {
    char text[128];
    int fd = control ? REAL(open)(control, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    REAL(close)(fd);
    REAL(unlink)(control);
    order(text);
}

/* Counts a call that changes or syncs something. Lets it fail, or the power. */
static int counted(enum kind kind) {
    if (done) return 0;
    look_at_control();
    calls++;
    seen[kind]++;
    if (cut && (cut_kind == KINDS || cut_kind == (int)kind) && !--cut) {
        make_image(!cut_loses);
        kill(getpid(), SIGKILL);
        pause();
    }
    if (!fail_in || (fail_kind == KINDS ? kind > ALLOCATE : fail_kind != (int)kind)) return 0;
    if (fail_in > 1) {
        fail_in--;
        return 0;
    }
    if (fail_times && !--fail_times) fail_in = 0;
    failed++;
    errno = fail_errno;
    return -1;
}

static void take_in(const char *path) {
    DIR *found = opendir(path);
    struct dirent *entry;
    char inner[PATH_MAX];
    struct stat stat;
    if (!found) return;
    set(&now, path, make_inode(1));
    while ((entry = readdir(found))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (lstat(inner, &stat)) continue;
        if (S_ISDIR(stat.st_mode)) {
            take_in(inner);
        } else {
            struct inode *inode = make_inode(0);
            int from = REAL(open)(inner, O_RDONLY);
            if (from < 0) die(inner);
            copy(from, inode->image);
            REAL(close)(from);
            set(&now, inner, inode);
        }
    }
    closedir(found);
}

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

__attribute__((constructor)) static void begin(void) {
    char path[PATH_MAX];
    if (!getenv("SHIM_DIR") || !getenv("SHIM_IMAGE")) return;
    image = strdup(getenv("SHIM_IMAGE"));
    snprintf(path, sizeof path, "%s/inodes", image);
    REAL(mkdir)(image, 0700);
    REAL(mkdir)(path, 0700);
    seed = number("SHIM_SEED");
    control = getenv("SHIM_CONTROL") ? strdup(getenv("SHIM_CONTROL")) : NULL;
    take_in(getenv("SHIM_DIR"));
    for (struct name *name = now; name; name = name->next) set(&synced, name->path, name->inode);
    dir = strdup(getenv("SHIM_DIR"));
}

__attribute__((destructor)) static void end(void) {
    if (!dir) return;
    pthread_mutex_lock(&lock);
    make_image(0);
    pthread_mutex_unlock(&lock);
}

void abort(void) {
    end();
    /* Not by a signal: it is no cut. */
    _exit(134);
}

/* What an open changes, before it is done. */
static int opening(const char *path, int flags) {
    if (!below(path)) return 0;
    struct name *name = *find(&now, path);
    if (!name && flags & O_CREAT) return counted(CREATE);
    return name && flags & O_TRUNC ? counted(TRUNCATE) : 0;
}

static int opened(int fd, const char *path, int flags) {
    if (fd < 0 || fd >= FDS || !below(path)) return fd;
    struct name *name = *find(&now, path);
    struct inode *inode = name ? name->inode : NULL;
    if (!inode && flags & O_CREAT) {
        inode = make_inode(0);
        rename_later(path, inode);
    } else if (inode && flags & O_TRUNC) {
        note(inode, NULL, 0, 0);
    }
    open_files[fd] = inode;
    return fd;
}

#define OPEN(name, DECLARED, GIVEN)                                    \
    int name DECLARED {                                                \
        mode_t mode = 0;                                               \
        va_list more;                                                  \
        va_start(more, flags);                                         \
        if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(more, mode_t); \
        va_end(more);                                                  \
        pthread_mutex_lock(&lock);                                     \
        int fd = opening(path, flags);                                 \
        if (!fd) fd = opened(REAL(name) GIVEN, path, flags);           \
        pthread_mutex_unlock(&lock);                                   \
        return fd;                                                     \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static struct inode *known(int fd) { return fd >= 0 && fd < FDS ? open_files[fd] : NULL; }

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (known(fd)) open_files[fd] = NULL;
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* `at` -1: where the file stands. */
static ssize_t written(int fd, const void *data, size_t len, off_t at) {
    pthread_mutex_lock(&lock);
    struct inode *inode = known(fd);
    ssize_t result = inode ? counted(WRITE) : 0;
    if (result && fail_half && len > 1) {
        fail_half = 0;
        len /= 2;
        result = 0;
    }
    if (!result) {
        off_t from = at;
        if (at < 0 && inode) from = lseek(fd, 0, REAL(fcntl)(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
        result = at < 0 ? REAL(write)(fd, data, len) : REAL(pwrite)(fd, data, len, at);
        if (inode && result > 0) note(inode, data, result, from);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int fd, const void *data, size_t len) { return known(fd) ? written(fd, data, len, -1) : REAL(write)(fd, data, len); }
ssize_t pwrite(int fd, const void *data, size_t len, off_t at) { return written(fd, data, len, at); }
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) { return written(fd, data, len, at); }

static ssize_t written_in_parts(int fd, const struct iovec *parts, int count, off_t at) {
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = written(fd, parts[i].iov_base, parts[i].iov_len, at < 0 ? at : at + all);
        if (n < 0) return all ? all : n;
        all += n;
        if ((size_t)n < parts[i].iov_len) break;
    }
    return all;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return known(fd) ? written_in_parts(fd, parts, count, -1) : REAL(writev)(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return written_in_parts(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return written_in_parts(fd, parts, count, at); }

static int truncated(int fd, off_t len) {
    pthread_mutex_lock(&lock);
    struct inode *inode = known(fd);
    int result = inode ? counted(TRUNCATE) : 0;
    if (!result) {
        result = REAL(ftruncate)(fd, len);
        if (inode && !result) note(inode, NULL, 0, len);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t len) { return truncated(fd, len); }
int ftruncate64(int fd, off64_t len) { return truncated(fd, len); }

static int allocated(int fd, int mode, off_t at, off_t len) {
    pthread_mutex_lock(&lock);
    struct inode *inode = known(fd);
    int result = inode ? counted(ALLOCATE) : 0;
    struct stat stat;
    if (!result) {
        result = REAL(fallocate)(fd, mode, at, len);
        if (inode && !result && !fstat(fd, &stat)) note(inode, NULL, 0, stat.st_size);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
int fallocate(int fd, int mode, off_t at, off_t len) { return allocated(fd, mode, at, len); }
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return allocated(fd, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) { return allocated(fd, 0, at, len) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t len) { return allocated(fd, 0, at, len) ? errno : 0; }

static int is_in(const char *path, const char *directory) {
    size_t n = strlen(directory);
    return !strncmp(path, directory, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

/* Names of one directory hold from now on. */
static void sync_names(struct inode *directory) {
    struct name *name = now;
    while (name && name->inode != directory) name = name->next;
    if (!name) return;
    struct op **at = &ops;
    while (*at) {
        if (is_in((*at)->path, name->path)) {
            carry_out(&synced, *at);
            /* What was done in a directory before it was renamed is done in it still. */
            for (struct op *op = (*at)->from ? ops : *at; op != *at; op = op->next) move(&op->path, (*at)->from, (*at)->path);
            *at = (*at)->next;
        } else {
            at = &(*at)->next;
        }
    }
    last_op = at;
}

static int synchronized(int fd) {
    pthread_mutex_lock(&lock);
    struct inode *inode = known(fd);
    int result = inode ? counted(SYNC) : 0;
    if (!result && inode) {
        syncs++;
        if (inode->dir) sync_names(inode);
        else settle(inode, 1);
    } else if (inode && !inode->dir) {
        settle(inode, 0);
    }
    pthread_mutex_unlock(&lock);
    /* The real disk may take its time: nothing here ends by losing its power. */
    return result;
}
int fsync(int fd) { return known(fd) ? synchronized(fd) : REAL(fsync)(fd); }
int fdatasync(int fd) { return known(fd) ? synchronized(fd) : REAL(fdatasync)(fd); }

int sync_file_range(int fd, off64_t at, off64_t len, unsigned flags) {
    (void)at, (void)len, (void)flags;
    pthread_mutex_lock(&lock);
    int result = known(fd) ? counted(RANGE) : 0;
    pthread_mutex_unlock(&lock);
    return result;
}

static int renamed(const char *from, const char *to, unsigned flags) {
    pthread_mutex_lock(&lock);
    int ours = below(from) && below(to);
    int result = ours ? counted(RENAME) : 0;
    if (!result) result = REAL(renameat2)(AT_FDCWD, from, AT_FDCWD, to, flags);
    if (ours && !result) {
        struct name *name = *find(&now, from);
        if (name && name->inode->dir) {
            change_later(to, NULL, from);
        } else if (name) {
            struct inode *inode = name->inode;
            rename_later(to, inode);
            rename_later(from, NULL);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
int rename(const char *from, const char *to) { return renamed(from, to, 0); }
int renameat(int at, const char *from, int there, const char *to) {
    return below(from) && below(to) ? renamed(from, to, 0) : REAL(renameat)(at, from, there, to);
}
int renameat2(int at, const char *from, int there, const char *to, unsigned flags) {
    return below(from) && below(to) ? renamed(from, to, flags) : REAL(renameat2)(at, from, there, to, flags);
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int result = below(path) ? counted(UNLINK) : 0;
    if (!result) result = REAL(unlink)(path);
    if (below(path) && !result) rename_later(path, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}
int rmdir(const char *path) {
    pthread_mutex_lock(&lock);
    int result = below(path) ? counted(UNLINK) : 0;
    if (!result) result = REAL(rmdir)(path);
    if (below(path) && !result) rename_later(path, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}
int unlinkat(int at, const char *path, int flags) {
    char whole[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t n = *path == '/' || at == AT_FDCWD ? 0 : readlink(link, whole, sizeof whole - 1);
    if (n < 0) n = 0;
    snprintf(whole + n, sizeof whole - n, "%s%s", n ? "/" : "", path);
    if (!below(whole)) return REAL(unlinkat)(at, path, flags);
    return flags & AT_REMOVEDIR ? rmdir(whole) : unlink(whole);
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    int result = below(path) ? counted(MKDIR) : 0;
    if (!result) result = REAL(mkdir)(path, mode);
    if (below(path) && !result) rename_later(path, make_inode(1));
    pthread_mutex_unlock(&lock);
    return result;
}
