// The harness's control: an agent on the official TypeScript SDK. Its prompt is a JSON list of
// messages, which it sends as they are before it answers; so a test plants any fault it likes.

import { createRequire } from "node:module";
import { join } from "node:path";
import { Readable, Writable } from "node:stream";
import { pathToFileURL } from "node:url";

const find = createRequire(join(process.env.GOCLAW_NODE_MODULES, "..", "from-here.js"));
const acp = await import(pathToFileURL(find.resolve("@agentclientprotocol/sdk")));
const { agent } = acp.methods;

const connection = acp
  .agent({ name: "example" })
  .onRequest(agent.initialize, () => ({ protocolVersion: 1, agentCapabilities: { loadSession: false } }))
  .onRequest(agent.session.new, () => ({ sessionId: "s1" }))
  .onRequest(agent.session.prompt, async ({ params, client }) => {
    if (params.prompt[0].text === "ask") {
      const { outcome } = await client.request(acp.methods.client.session.requestPermission, {
        sessionId: params.sessionId,
        toolCall: { toolCallId: "t1", title: "May I?" },
        options: [{ optionId: "yes", name: "Yes", kind: "allow_once" }],
      });
      return { stopReason: outcome.outcome === "selected" ? "end_turn" : "refusal" };
    }
    for (const message of JSON.parse(params.prompt[0].text)) {
      process.stdout.write((typeof message === "string" ? message : JSON.stringify(message)) + "\n");
    }
    return { stopReason: "end_turn" };
  })
  .connect(acp.ndJsonStream(Writable.toWeb(process.stdout), Readable.toWeb(process.stdin)));
await connection.closed;
