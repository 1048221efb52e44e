// What stands there before the first word: which model it is, what it can do, and how to begin.

const FOR_CHAT = ["Hello! What can you do?", "How do I make tea?"];
const FOR_TEXT = ["Once upon a time", "The most important thing about birds is"];

export class Welcome {
  #box;
  #do;

  /** @param {{choose: (text: string) => void, retry: () => void}} actions */
  constructor(box, actions) {
    this.#box = box;
    this.#do = actions;
    box.querySelector(".try-again").addEventListener("click", () => actions.retry());
  }

  loading() {
    this.#say("Linnet", "Asking the server for its models …");
  }

  failed(sentence) {
    this.#say("Nothing to talk to", sentence);
    this.#part(".try-again").hidden = false;
  }

  /** Present `model`; null: a conversation has begun, and this is gone. */
  show(model) {
    this.#box.hidden = model === null;
    if (!model) return;
    const room = model.window
      ? ` It sees the last ${model.window.toLocaleString("en")} tokens, about ${words(model.window)} words.`
      : "";
    const what = model.chat
      ? "A small model that has learned conversations. It can be charming, and wrong."
      : "It has learned no conversation: it goes on with your text. Begin a sentence, and it writes the next ones.";
    this.#say(model.name, what + room);
    const examples = model.chat ? FOR_CHAT : FOR_TEXT;
    this.#part(".examples").replaceChildren(...examples.map((text) => this.#example(text)));
    this.#part(".keys").hidden = false;
  }

  #say(title, sentence) {
    this.#box.hidden = false;
    this.#part("h1").textContent = title;
    this.#part("p").textContent = sentence;
    this.#part(".try-again").hidden = true;
    this.#part(".keys").hidden = true;
    this.#part(".examples").replaceChildren();
  }

  #example(text) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => this.#do.choose(text));
    return button;
  }

  #part(selector) {
    return this.#box.querySelector(selector);
  }
}

/** Three words for four tokens of English, in round numbers. */
function words(tokens) {
  const count = 0.75 * tokens;
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(count)) - 1);
  return (unit * Math.round(count / unit)).toLocaleString("en");
}
