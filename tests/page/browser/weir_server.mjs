// The real server: `weir serve` with the model that ships, on free ports.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

export class WeirServer {
  #folder = mkdtempSync(join(tmpdir(), "weir-page-"));
  #process;
  #told = "";
  address;

  async start(flags = []) {
    const ready = join(this.#folder, "ready");
    this.#process = spawn(join(process.env.WEIR_BUILD_DIR, "weir"), [
      "serve",
      join(ROOT, "models/weir-tiny"),
      "--device",
      "cpu",
      "--grpc",
      "127.0.0.1:0",
      "--http",
      "127.0.0.1:0",
      "--metrics",
      "127.0.0.1:0",
      "--ready-file",
      ready,
      ...flags,
    ]);
    for (const stream of [this.#process.stdout, this.#process.stderr])
      stream.on("data", (text) => (this.#told += text));
    for (let tries = 0; tries < 600; tries++) {
      if (this.#process.exitCode !== null) break;
      try {
        this.address = `http://${JSON.parse(readFileSync(ready, "utf8")).http}`;
        return this.address;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    throw new Error(`the server did not start: ${this.#told}`);
  }

  async stop() {
    const ended = new Promise((resolve) =>
      this.#process.once("exit", (code, signal) => resolve(code ?? signal)),
    );
    const code = this.#process.exitCode ?? (this.#process.kill("SIGTERM"), await ended);
    rmSync(this.#folder, { recursive: true });
    if (code !== 0) throw new Error(`the server ended with ${code}: ${this.#told}`);
  }
}
