/**
 * Real servers under load: redis-server and nginx on a free port of the loopback interface, and clients that check every
 * answer. What is not installed is installed by apt-get as root; otherwise the test fails and says what to install.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface LoadReport {
  readonly requests: number;
  /** Answers that were not the expected ones, and broken connections. */
  readonly wrong: readonly string[];
}

export interface Load {
  stop(): Promise<LoadReport>;
}

/** Path of a server program, installed if it is missing and that is possible. */
function provide(program: string, debianPackage: string): string {
  const find = () => ["/usr/bin", "/usr/sbin"].map((folder) => join(folder, program)).find(existsSync);
  const install = `apt-get install -y --no-install-recommends ${debianPackage}`;
  // Its own service is not wanted, only the program.
  if (find() === undefined && process.getuid?.() === 0)
    spawnSync("sh", ["-c", `${install} || { apt-get update && ${install}; }`], {
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", RUNLEVEL: "1" },
    });
  const path = find();
  if (path === undefined) throw new Error(`${program} is not installed: ${install}`);
  return path;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function untilListening(port: number): Promise<void> {
  for (let tries = 0; ; tries++) {
    const isUp = await new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1", () => {
        socket.destroy();
        resolve(true);
      });
      socket.once("error", () => resolve(false));
    });
    if (isUp) return;
    if (tries > 200) throw new Error(`nothing listens on port ${port}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** Clients that each count up a number of their own, one request at a time. */
function startRedisClients(port: number, clients: number): Load {
  let requests = 0;
  let isStopping = false;
  const wrong: string[] = [];
  const ended = Array.from(
    { length: clients },
    (_, client) =>
      new Promise<void>((resolve) => {
        let n = 0;
        let got = "";
        const socket = connect(port, "127.0.0.1");
        const send = () => socket.write(`INCR counter-${client}\r\n`);
        socket.setNoDelay(true).setEncoding("latin1");
        socket.on("connect", send);
        socket.on("error", (error) => wrong.push(error.message));
        socket.on("close", () => {
          if (!isStopping) wrong.push(`client ${client}: connection closed after ${n} requests`);
          resolve();
        });
        socket.on("data", (text) => {
          got += text;
          if (!got.endsWith("\r\n")) return;
          n++;
          requests++;
          if (got !== `:${n}\r\n`) wrong.push(`client ${client}, request ${n}: ${JSON.stringify(got)}`);
          got = "";
          if (isStopping || wrong.length > 10) socket.destroy();
          else send();
        });
      }),
  );
  return {
    async stop() {
      isStopping = true;
      await Promise.all(ended);
      return { requests, wrong };
    },
  };
}

export class Redis implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly port: number;

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.port = port;
  }

  static async start(): Promise<Redis> {
    const port = await freePort();
    const args = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--dir", tmpdir()];
    const child = spawn(provide("redis-server", "redis-server"), args, { stdio: "ignore" });
    await untilListening(port);
    return new Redis(child, port);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  startLoad(clients: number): Load {
    return startRedisClients(this.port, clients);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endOf(this.#child);
  }
}

export class Nginx implements AsyncDisposable {
  readonly #master: ChildProcess;
  readonly #folder: string;
  readonly port: number;
  readonly #body: string;

  private constructor(master: ChildProcess, folder: string, port: number, body: string) {
    this.#master = master;
    this.#folder = folder;
    this.port = port;
    this.#body = body;
  }

  static async start(): Promise<Nginx> {
    const program = provide("nginx", "nginx-light");
    const port = await freePort();
    const folder = mkdtempSync(join(tmpdir(), "trapline-nginx-"));
    const body = "0123456789abcdef".repeat(64);
    writeFileSync(join(folder, "page"), body);
    const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((name) => `${name}_temp_path ${folder}/${name};`)
      .join(" ");
    writeFileSync(
      join(folder, "nginx.conf"),
      `daemon off; worker_processes 2; pid ${folder}/pid; error_log ${folder}/error.log;
      ${process.getuid?.() === 0 ? "user root;" : ""}
      events { worker_connections 256; }
      http { ${paths} access_log off; keepalive_requests 100000000; server_tokens off; etag off;
        server { listen 127.0.0.1:${port}; location / { root ${folder}; default_type text/plain; } } }`,
    );
    const master = spawn(program, ["-c", join(folder, "nginx.conf")], { stdio: "ignore" });
    await untilListening(port);
    return new Nginx(master, folder, port, body);
  }

  get pid(): number {
    return this.#master.pid!;
  }

  get workers(): number[] {
    const children = readFileSync(`/proc/${this.pid}/task/${this.pid}/children`, "latin1");
    return children.trim().split(" ").map(Number);
  }

  /** Every client asks for one part of the page after the other: so answers differ. */
  startLoad(clients: number): Load {
    return startHttpClients(this.port, clients, this.#body);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endOf(this.#master);
    rmSync(this.#folder, { recursive: true });
  }
}

function startHttpClients(port: number, clients: number, body: string): Load {
  let requests = 0;
  let isStopping = false;
  const wrong: string[] = [];
  const url = `http://127.0.0.1:${port}/page`;
  const ended = Array.from({ length: clients }, async () => {
    for (let n = 0; !isStopping && wrong.length < 10; n++) {
      const first = n % 1000;
      try {
        const response = await fetch(url, { headers: { range: `bytes=${first}-` } });
        const text = await response.text();
        if (response.status !== 206 || text !== body.slice(first)) wrong.push(`${response.status} ${text}`);
        requests++;
      } catch (error) {
        wrong.push(String(error));
      }
    }
  });
  return {
    async stop() {
      isStopping = true;
      await Promise.all(ended);
      return { requests, wrong };
    },
  };
}

async function endOf(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("close", resolve));
  child.kill("SIGTERM");
  await ended;
}
