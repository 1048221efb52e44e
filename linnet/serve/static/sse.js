// Server-sent events out of the bytes of a response.
//
// What: `events` gives the data of each event, in order.
// Why:  EventSource can neither POST nor send a key, and starts again by itself, which would be a second answer.
// How:  one decoder for the whole stream, so a character that is split between two chunks comes out whole. A line ends
//       with \n, \r\n or \r; a \r at the end of what has come may be half of \r\n and waits. An event ends with an
//       empty line; one that the stream's end cut off is not given.

/** @param {ReadableStream<Uint8Array>} body */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // The reader of the events has gone, or the stream has ended: both are fine.
  }
}
