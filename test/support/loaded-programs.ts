/** Programs that work until they are stopped, and tell whether anything went wrong: servers, and programs with threads, signals and children. */
import { existsSync, realpathSync } from "node:fs";
import { buildFixture } from "./fixtures.ts";
import { type Load, Nginx, Redis } from "./servers.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export interface LoadedProgram extends AsyncDisposable {
  pids(): readonly number[];
  /** What has been wrong so far; also waits until work has been done since the last time. */
  wrong(): Promise<readonly string[]>;
  /** Ends the load; all that was wrong. */
  stop(): Promise<readonly string[]>;
}

export interface LoadedChoice {
  readonly name: string;
  /** Images whose functions are probed. */
  readonly images: readonly string[];
  start(): Promise<LoadedProgram>;
}

function serverLoad(server: AsyncDisposable, pids: readonly number[], load: Load): LoadedProgram {
  return {
    pids: () => pids,
    wrong: async () => [],
    stop: async () => (await load.stop()).wrong,
    [Symbol.asyncDispose]: async () => await server[Symbol.asyncDispose](),
  };
}

/** A program that prints one line again and again, always the same. */
async function repeating(argv: readonly string[]): Promise<LoadedProgram> {
  const child = await UnmanagedChild.start(argv, { ready: false });
  const expected = await child.line();
  const wrong: string[] = [];
  const look = () => {
    for (const line of (child.pending as string[]).splice(0)) if (line !== expected) wrong.push(line);
    return wrong;
  };
  return {
    pids: () => [child.pid],
    async wrong() {
      look();
      // It goes on working.
      for (let i = 0; i < 2; i++) {
        const line = await child.line();
        if (line !== expected) wrong.push(line);
      }
      return look();
    },
    stop: async () => look(),
    [Symbol.asyncDispose]: async () => child[Symbol.dispose](),
  };
}

/** Threads that come and go, and a timer whose handler runs every millisecond. */
const python = `
import signal, threading, sys
ticks = 0
def tick(number, frame):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.signal(signal.SIGUSR1, tick)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def work(results, n):
    text = ','.join(str(i * n) for i in range(200))
    results[n] = sum(int(part) for part in text.split(',')) + len({text: n})
while True:
    results = {}
    threads = [threading.Thread(target=work, args=(results, n)) for n in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(sorted(results.items()), flush=True)
`;

/** Children and pipes all the time. */
const bash = `while :; do
  s=0; for i in 1 2 3; do s=$((s + $(echo $i | tr 123 456))); done
  x=$(for j in c b a; do echo $j; done | sort | tr '\\n' .); ( exit 7 ); echo "$s $x $?"
done`;

const libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";

export const loadedPrograms: readonly LoadedChoice[] = [
  {
    name: "redis-server",
    images: ["/usr/bin/redis-server", libc],
    async start() {
      const redis = await Redis.start();
      return serverLoad(redis, [redis.pid], redis.startLoad(6));
    },
  },
  {
    name: "nginx",
    images: ["/usr/sbin/nginx", libc],
    async start() {
      const nginx = await Nginx.start();
      return serverLoad(nginx, [...nginx.workers, nginx.pid], nginx.startLoad(2));
    },
  },
  {
    name: "python3, threads",
    images: ["/usr/bin/python3.11", libc],
    start: () => repeating(["/usr/bin/python3.11", "-S", "-c", python]),
  },
  {
    name: "bash, children",
    images: ["/usr/bin/bash", libc],
    start: () => repeating(["/bin/bash", "--norc", "-c", bash]),
  },
  {
    name: "C++, threads",
    images: [
      buildFixture("storm", { compiler: "g++" }),
      libc,
      "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30",
    ],
    start: () => repeating([buildFixture("storm", { compiler: "g++" })]),
  },
].map((choice) => ({
  ...choice,
  images: choice.images.filter(existsSync).map((path) => realpathSync(path)),
}));
