// A client of the Agent Client Protocol on its official TypeScript SDK, played by a test.
//
// Reads one order a line on stdin, tells one event a line on stdout; the orders and events stand in
// interop_partner.py. All that touches the wire is the SDK's.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Readable, Writable } from "node:stream";
import { pathToFileURL } from "node:url";

const find = createRequire(join(process.env.GOCLAW_NODE_MODULES, "..", "from-here.js"));
const load = (name) => import(pathToFileURL(find.resolve(name)));
const acp = await load("@agentclientprotocol/sdk");
const { createWebSocketStream } = await load("@agentclientprotocol/sdk/experimental/ws-client");
const { default: WebSocket } = await load("ws");

// Answers nothing, for the SDK reads what a handler answers as whether it took the message.
function tell(event) {
  process.stdout.write(JSON.stringify(event) + "\n");
}

const connections = new Map();

// The SDK says on the console what it drops; to the test that is a finding.
for (const level of ["error", "warn", "log"]) {
  console[level] = (...words) =>
    tell({ event: "complaint", text: words.map((w) => (typeof w === "string" ? w : JSON.stringify(w))).join(" ") });
}
process.on("unhandledRejection", (reason) => tell({ event: "complaint", text: `unhandled: ${reason}` }));

function described(error) {
  return error instanceof acp.RequestError
    ? { code: error.code, message: error.message, data: error.data ?? null }
    : { code: null, message: String(error), data: null };
}

function app(on) {
  const ask = ({ method, params, signal }) =>
    new Promise((resolve, reject) => {
      const number = ++on.asks;
      on.open.set(number, { resolve, reject });
      signal.addEventListener("abort", () => {
        if (!on.open.delete(number)) return;
        tell({ conn: on.conn, event: "unasked", ask: number });
        reject(signal.reason);
      });
      tell({ conn: on.conn, event: "ask", ask: number, method, params });
    });
  const note = ({ method, params }) => tell({ conn: on.conn, event: "note", method, params });
  return acp
    .client({ name: "goclaw-interop" })
    .onRequest(acp.methods.client.session.requestPermission, ask)
    .onNotification(acp.methods.client.session.update, note)
    .onNotification("*", note);
}

const orders = {
  open({ conn, command, env, url, token }) {
    const on = { conn, asks: 0, open: new Map(), requests: new Map() };
    let stream;
    if (url) {
      stream = createWebSocketStream(url, { WebSocket, headers: { Authorization: `Bearer ${token}` } });
    } else {
      const agent = spawn(command[0], command.slice(1), {
        env: { ...process.env, ...env },
        stdio: ["pipe", "pipe", "inherit"],
      });
      agent.on("exit", (code, signal) => tell({ conn, event: "exit", code, signal }));
      on.end = () => agent.stdin.end();
      stream = acp.ndJsonStream(Writable.toWeb(agent.stdin), Readable.toWeb(agent.stdout));
    }
    on.connection = app(on).connect(stream);
    on.connection.closed.then(() => tell({ conn, event: "closed" }));
    on.end ??= () => on.connection.close();
    connections.set(conn, on);
  },
  request({ conn, n, method, params }) {
    const on = connections.get(conn);
    const stop = new AbortController();
    on.requests.set(n, stop);
    on.connection.agent
      .request(method, params, { cancellationSignal: stop.signal })
      .then((result) => tell({ conn, event: "reply", n, result }))
      .catch((error) => tell({ conn, event: "reply", n, error: described(error) }))
      .finally(() => on.requests.delete(n));
  },
  cancelRequest: ({ conn, n }) => connections.get(conn).requests.get(n).abort(),
  notify: ({ conn, method, params }) => connections.get(conn).connection.agent.notify(method, params),
  answer({ conn, ask, result, error }) {
    const { open } = connections.get(conn);
    const { resolve, reject } = open.get(ask);
    open.delete(ask);
    if (error) reject(new acp.RequestError(error.code, error.message, error.data));
    else resolve(result);
  },
  end: ({ conn }) => connections.get(conn).end(),
};

tell({ event: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  try {
    await orders[order.do](order);
  } catch (error) {
    tell({ event: "gone", text: `order ${line}: ${error}` });
    process.exit(1);
  }
}
process.exit(0);
