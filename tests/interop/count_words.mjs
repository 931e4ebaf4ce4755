// A whole client in the manner of the SDK's documentation: FILE COMMAND ARGS... asks the agent that
// COMMAND starts to count the words of FILE, and prints what came of it as JSON.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { Readable, Writable } from "node:stream";
import { pathToFileURL } from "node:url";

const find = createRequire(join(process.env.GOCLAW_NODE_MODULES, "..", "from-here.js"));
const acp = await import(pathToFileURL(find.resolve("@agentclientprotocol/sdk")));

const [file, command, ...args] = process.argv.slice(2);
const agent = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
const stream = acp.ndJsonStream(Writable.toWeb(agent.stdin), Readable.toWeb(agent.stdout));

await acp.client({ name: "count-words" }).connectWith(stream, async (ctx) => {
  await ctx.request(acp.methods.agent.initialize, { protocolVersion: 1, clientCapabilities: {} });
  const told = await ctx.buildSession(dirname(file)).withSession(async (session) => {
    session.prompt(`/word-count ${file}`);
    let text = "";
    let output = null;
    for (;;) {
      const message = await session.nextUpdate();
      if (message.kind === "stop") return { stopReason: message.stopReason, text, output };
      const { update } = message;
      if (update.sessionUpdate === "agent_message_chunk") text += update.content.text;
      if (update.rawOutput) output = update.rawOutput;
    }
  });
  console.log(JSON.stringify(told));
});
agent.stdin.end();
