// What was said so far.
//
// What: the turns of a conversation, or the pieces of a text that a model goes on with, and how each becomes a request.
// Why:  the server keeps nothing, so the page sends all of it each time. It is kept for this tab (sessionStorage): a page
//       that a phone has put to sleep comes back with it, and closing the tab forgets it.
// How:  a turn is {role, text}; one of the assistant has also {model, finish, failure, wait, tokens, speed, seed,
//       attempt}. `finish` is what the server said ("stop", "length"), or "stopped" by the user, or "failed".

export class Conversation {
  #keptAs;

  /** @param {"chat"|"text"} kind turns of two, or one text that is written on */
  constructor(kind) {
    this.kind = kind;
    this.#keptAs = "linnet-" + kind;
    this.turns = this.#read();
    for (const turn of this.turns) if (turn.role === "assistant") turn.finish ??= "stopped"; // as the page went away
  }

  /** Places of the user's last turn and of the assistant's; -1 where there is none. */
  last(role) {
    return this.turns.findLastIndex((turn) => turn.role === role);
  }

  add(turn) {
    this.turns.push(turn);
    this.keep();
    return turn;
  }

  /** Take back all turns from `place` on. */
  cut(place) {
    this.turns.length = place;
    this.keep();
  }

  keep() {
    try {
      sessionStorage.setItem(this.#keptAs, JSON.stringify(this.turns));
    } catch {
      // Too long, or switched off: then it holds until the page is loaded again.
    }
  }

  /** All of it as one text. */
  get text() {
    return this.turns.map((turn) => turn.text).join("");
  }

  /** Where the server is asked, and with what: the turns before the answer that is to be written. */
  request(system) {
    if (this.kind === "text") return ["v1/completions", { prompt: this.text }];
    const said = this.turns.filter((turn) => turn.text);
    const messages = said.map(({ role, text }) => ({ role, content: text }));
    return ["v1/chat/completions", { messages: system ? [{ role: "system", content: system }, ...messages] : messages }];
  }

  #read() {
    try {
      const turns = JSON.parse(sessionStorage.getItem(this.#keptAs));
      return turns.filter(({ role, text }) => typeof role === "string" && typeof text === "string");
    } catch {
      return [];
    }
  }
}
