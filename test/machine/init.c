/*
 * The first program of the test machine: mounts what every program expects, runs /run-in-machine, writes its exit
 * code on the last line of the console, and switches the machine off.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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
    sync();
    printf("\nmachine: exit code %d\n", code);
    fflush(stdout);
    sleep(1);
    reboot(RB_POWER_OFF);
    return 1;
}
