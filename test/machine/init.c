/*
 * The first program of the test machine: mounts what every program expects, runs /run-in-machine, writes its exit
 * code on the last line of the console, and switches the machine off. When something failed, it says which processes the
 * kernel has seen die.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The kernel's own start may have mounted some of them. */
static void mount_on(const char *type, const char *at) {
    mkdir(at, 0755);
    if (mount(type, at, type, 0, 0) != 0 && errno != EBUSY) perror(at);
}

/* Lines of the kernel's log about processes that died of a fault, or for want of memory. */
static void show_deaths(void) {
    static char log[1 << 18];
    int length = klogctl(3 /* read all */, log, sizeof log - 1);
    if (length <= 0) return;
    log[length] = '\0';
    for (char *line = strtok(log, "\n"); line != NULL; line = strtok(NULL, "\n"))
        if (strstr(line, "segfault") || strstr(line, "traps:") || strstr(line, "general protection") ||
            strstr(line, "Out of memory") || strstr(line, "BUG") || strstr(line, "Oops"))
            printf("kernel: %s\n", line);
}

int main(void) {
    mount_on("proc", "/proc");
    mount_on("sysfs", "/sys");
    mount_on("devtmpfs", "/dev");
    mount_on("devpts", "/dev/pts");
    mount_on("tmpfs", "/dev/shm");
    mount_on("tmpfs", "/tmp");
    mount_on("tmpfs", "/run");
    setenv("HOME", "/tmp", 1);
    setenv("TERM", "dumb", 1);
    sethostname("trapline", 8);
    printf("machine: begins\n");
    fflush(stdout);
    int code = 255;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        execl("/bin/sh", "sh", "/run-in-machine", (char *)NULL);
        perror("run /bin/sh");
        _exit(127);
    }
    for (;;) {
        int status;
        pid_t ended = wait(&status);
        if (ended < 0) break;
        if (ended != child) continue;
        code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        break;
    }
    if (code != 0) show_deaths();
    printf("\nmachine: exit code %d\n", code);
    fflush(stdout);
    sleep(1);
    reboot(RB_POWER_OFF);
    return 1;
}
