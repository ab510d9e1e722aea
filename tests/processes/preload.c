/* Faults of disk and clock for real processes (F9, F18), switched while they run.
 *
 * LD_PRELOAD this with HONGBAO_FAULTS naming a folder. While the folder holds a file of that name:
 *   fsync_error   fsync, fdatasync and msync fail with EIO
 *   disk_full     pwrite, pwritev, write and writev of 512 bytes or more fail with ENOSPC
 *   slow_disk     each fsync, fdatasync and msync first sleeps for that many milliseconds
 *   wall_offset   CLOCK_REALTIME is off by that many seconds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The number in a fault's file; `absent` when there is no such file. Uses raw system calls only. */
static long fault(const char *name, long absent) {
  const char *folder = getenv("HONGBAO_FAULTS");
  char path[512], text[32] = {0};
  if (!folder) return absent;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absent;
  long got = syscall(SYS_read, fd, text, sizeof text - 1);
  syscall(SYS_close, fd);
  return got > 0 ? atol(text) : 1;
}

static int sync_fault(void) {
  long slow_ms = fault("slow_disk", 0);
  if (slow_ms > 0) {
    struct timespec pause = {slow_ms / 1000, (slow_ms % 1000) * 1000000L};
    nanosleep(&pause, NULL);
  }
  if (!fault("fsync_error", 0)) return 0;
  errno = EIO;
  return -1;
}

static int write_fault(size_t bytes) {
  if (bytes < 512 || !fault("disk_full", 0)) return 0;
  errno = ENOSPC;
  return -1;
}

static size_t total(const struct iovec *parts, int count) {
  size_t bytes = 0;
  for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
  return bytes;
}

int fsync(int fd) { return sync_fault() ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_fault() ? -1 : (int)syscall(SYS_fdatasync, fd); }
int msync(void *at, size_t length, int flags) {
  return sync_fault() ? -1 : (int)syscall(SYS_msync, at, length, flags);
}
ssize_t write(int fd, const void *from, size_t bytes) {
  return write_fault(fd > 2 ? bytes : 0) ? -1 : syscall(SYS_write, fd, from, bytes);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return write_fault(total(parts, count)) ? -1 : syscall(SYS_writev, fd, parts, count);
}
ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at) {
  return write_fault(bytes) ? -1 : syscall(SYS_pwrite64, fd, from, bytes, at);
}
ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at) { return pwrite(fd, from, bytes, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
  return write_fault(total(parts, count)) ? -1 : syscall(SYS_pwritev, fd, parts, count, at, 0);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
  return pwritev(fd, parts, count, at);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = (int)syscall(SYS_clock_gettime, clock, now);
  if (!status && clock == CLOCK_REALTIME) now->tv_sec += fault("wall_offset", 0);
  return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *out) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (out) *out = exact.tv_sec;
  return exact.tv_sec;
}
